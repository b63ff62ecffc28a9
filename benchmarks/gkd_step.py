"""Time of one training step of GKD with the published networks, beside the step as its formulas read.

    python benchmarks/gkd_step.py [--batch 2] [--size 128] [--threads 2] [--rounds 5]
    python benchmarks/gkd_step.py --quick [--out FILE]

SK-U-Net teaches MobileNetV2-U-Net on patches with four views each. The literal step (benchmarks/literal_gkd.py) goes
view by view. Ours takes the teacher's views together (live), or reads what a bank of drawn patches has stored of it
(bank); then only the decoding of the student's latent is left of the teacher. Without that term (bank, no
cross_encoder) nothing is. The student alone is the floor.

All run in turn, round by round, so that a drift of the machine's speed hits all. Nothing is published if the gradient
of a full step is another than the literal one's. Beside the times stand the operations of each step and the rate of a
plain matrix product. About 5 minutes on 2 cores. The record goes to docs/results/gkd_step.json, from which the table in
the documents is made. --quick takes tiny sizes and writes nothing unless --out is given.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bundle_runs import REPOSITORY
from interleaved import check_same, interleave, medians, paired, timer
from literal_gkd import WEIGHTS, LiteralStep
from measurements import matrix_gflops, publish
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from monai_kd.distillers import GeneralizableDistiller, TeacherOutputs, Term
from monai_kd.handlers.provenance import environment, network_facts
from monai_kd.losses import CompleteGraph, SoftLogitKL, StarGraph
from monai_kd.networks.nets import AlignmentNetwork, MobileNetV2UNet, SKUNet
from monai_kd.visualize.gkd_step import gkd_step_markdown

RESULT = REPOSITORY / "docs" / "results" / "gkd_step.json"
LITERAL, ALONE = "literal", "student alone"
CACHED = {"teacher_latents": "teacher/latents", "teacher_logits": "teacher/logits"}
VIEWS = 4


class Case(NamedTuple):
    """Patches in a batch, and their edge in pixels."""

    batch: int
    size: int


class Networks(NamedTuple):
    """The networks of one step; each way has its own, with equal weights."""

    student: nn.Module
    teacher: nn.Module
    own: nn.Module
    other: nn.Module


def make_networks() -> Networks:
    """Return the published networks with random weights, the same each time."""
    torch.manual_seed(0)
    student, teacher = MobileNetV2UNet(1, 2), SKUNet(1, 2).eval().requires_grad_(False)
    own = AlignmentNetwork(2, 1280, 128, 16, 8, act="relu6").requires_grad_(False)
    other = AlignmentNetwork(2, 512, 128, 16, 8, act="relu").requires_grad_(False)
    return Networks(student.train(), teacher, own.eval(), other.eval())


def make_batch(case: Case) -> dict[str, Tensor]:
    """Return made-up patches, labels and views."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(case.batch, 1, case.size, case.size, generator=generator)
    noise = torch.randn(case.batch, VIEWS, 1, case.size, case.size, generator=generator)
    return {"image": image, "label": (image > 1).float(), "views": image.unsqueeze(1) + 0.3 * noise}


class CrossEntropy(nn.Module):
    """The literal step's supervision."""

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, label[:, 0].long())


def our_step(networks: Networks, names: tuple[str, ...], cached: bool) -> GeneralizableDistiller:
    """Return our distiller with these terms."""
    divergence = SoftLogitKL(temperature=1.0)
    known = {
        "seg": Term(CrossEntropy(), "student/logits", "label", WEIGHTS["seg"]),
        "intra": Term(StarGraph(), "student/latents", "teacher/latents", WEIGHTS["intra"]),
        "inter": Term(CompleteGraph(), "student/latents", "teacher/latents", WEIGHTS["inter"]),
        "cross_encoder": Term(divergence, "teacher/cross_logits", "teacher/logits", WEIGHTS["cross_encoder"]),
        "cross_decoder": Term(divergence, "student/cross_logits", "teacher/logits", WEIGHTS["cross_decoder"]),
    }
    terms = {name: known[name] for name in names}
    if names == ("seg",):
        return GeneralizableDistiller(networks.student, terms=terms).train()
    alignments = {"student": networks.own, "teacher": networks.other}
    given = CACHED if cached else {}
    return GeneralizableDistiller(networks.student, networks.teacher, terms, alignments, given).train()


def make_ways(batch: dict[str, Tensor]) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Return each way's student and what computes its loss; the literal step first."""
    stored = TeacherOutputs(make_networks().teacher, make_networks().other)(batch)
    networks = make_networks()
    literal = LiteralStep(*networks)
    ways: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        LITERAL: (networks.student, lambda: literal.loss(batch["image"], batch["label"], batch["views"]))
    }
    everything = tuple(WEIGHTS)
    kept = tuple(name for name in everything if name != "cross_encoder")
    plan = {
        "live": (everything, False),
        "bank": (everything, True),
        "bank, no cross_encoder": (kept, True),
        ALONE: (("seg",), False),
    }
    for way, (names, cached) in plan.items():
        distiller = our_step(make_networks(), names, cached)
        given = {**batch, **stored} if cached else dict(batch)
        if way == ALONE:
            del given["views"]
        ways[way] = distiller.student, lambda distiller=distiller, given=given: distiller(**given).loss
    return ways


def gradient(student: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """Return the gradient of the student, flat."""
    student.zero_grad()
    loss().backward()
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


def operations(loss: Callable[[], Tensor]) -> float:
    """Return the floating-point operations of forward and backward, 10**9."""
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return counter.get_total_flops() / 1e9


def measure(case: Case, rounds: int) -> dict[str, dict[str, Any]]:
    """Check the gradients, then time all ways in turn."""
    ways = make_ways(make_batch(case))
    expected = gradient(*ways[LITERAL])
    for way in ("live", "bank"):
        check_same(f"the gradient of '{way}'", gradient(*ways[way]), expected)
    timers = {}
    for way, (student, loss) in ways.items():
        timers[way] = timer(lambda loss: loss().backward(), lambda s=student, g=loss: (s.zero_grad(), g)[1], "cpu")
    times = interleave(timers, rounds, "steps")
    return {
        way: {
            **medians(times[way]),
            "speedup": paired(times[LITERAL], times[way])["wall"],
            "gflop": operations(loss),
        }
        for way, (_, loss) in ways.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2, help="patches in a batch")
    parser.add_argument("--size", type=int, default=128, help="edge of a patch in pixels, a multiple of 32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a trial of the machinery")
    parser.add_argument("--out", type=Path, help="the record; by default in docs/results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    case = Case(2, 32) if arguments.quick else Case(arguments.batch, arguments.size)
    out = RESULT if arguments.out is None and not arguments.quick and case == Case(2, 128) else arguments.out
    networks = make_networks()
    record = {
        **environment("cpu", REPOSITORY),
        **case._asdict(),
        "views": VIEWS,
        "rounds": 1 if arguments.quick else arguments.rounds,
        "load_before": os.getloadavg()[0],
        "student": network_facts(networks.student),
        "teacher": network_facts(networks.teacher),
        "matrix_gflops": matrix_gflops(),
        "steps": measure(case, 1 if arguments.quick else arguments.rounds),
    }
    publish(record, gkd_step_markdown(record), out)


if __name__ == "__main__":
    main()
