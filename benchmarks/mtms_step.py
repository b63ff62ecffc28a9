"""Time of one training step of MTMS-KD with the published networks, beside the step as its formulas read.

    python benchmarks/mtms_step.py [--batch 4] [--size 256] [--threads 2] [--rounds 5]
    python benchmarks/mtms_step.py --quick [--out FILE]

T1, 43.2 million parameters, teaches S1, 57 thousand, on slices. The literal step (benchmarks/literal_mtms.py) runs both
of the teacher's decoders and compares maps as they are. Ours leaves the reconstruction out and compares grids of 4 x 4
cells with a queue, as the bundle does (live), or reads what a bank of drawn slices has stored of the teacher (cached).
The student alone is the floor.

All run in turn, round by round, so that a drift of the machine's speed hits all. Nothing is published if the gradient
with stored targets is another than with a live teacher, or supervision and prediction maps have other values than the
literal step's; its contrast is another by design. Beside the times stand the operations of each step, the most memory
that it holds beyond what was there, and the rate of a plain matrix product. About 2 minutes on 2 cores. The record goes
to docs/results/mtms_step.json, from which the table in the documents is made. --quick takes tiny sizes and writes
nothing unless --out is given.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bundle_runs import REPOSITORY
from interleaved import TOLERANCE, check_same, interleave, medians, paired, relative_error, timer
from literal_mtms import STAGES, TAU, TEMPERATURE, WEIGHTS, LiteralStep
from measurements import allocated_peak, matrix_gflops, publish
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from monai_kd.distillers import CachedDistiller, Distiller, Term
from monai_kd.handlers.provenance import environment, network_facts
from monai_kd.losses import MultiScaleContrastive, SoftLogitKL
from monai_kd.networks import GridPool, ProjectionHead
from monai_kd.networks.nets import MultiTaskUNet, SlimUNet
from monai_kd.visualize.mtms_step import mtms_step_markdown

RESULT = REPOSITORY / "docs" / "results" / "mtms_step.json"
LITERAL, LIVE, CACHED, ALONE = "literal", "live", "cached", "student alone"
SAME = ("seg", "maps")  # terms with the literal step's values
# of bundles/mtms-kd
GRID, WIDTH, QUEUE, NEIGHBORS = 4, 256, 256, 4
FACTS = {"group": "group", "position": "position"}


class Case(NamedTuple):
    """Slices in a batch, and their edge in pixels."""

    batch: int
    size: int


class Step(NamedTuple):
    """One way: what learns, and what computes the loss."""

    module: nn.Module
    loss: Callable[[], Tensor]


def make_student() -> nn.Module:
    """Return the published student with random weights, the same each time."""
    torch.manual_seed(0)
    return SlimUNet(2, 1, 2).train()


def make_teacher() -> nn.Module:
    """Return the published teacher with random weights; frozen, so that all ways share it."""
    torch.manual_seed(1)
    return MultiTaskUNet(2, 1, 2, reconstruction_skips=4).eval().requires_grad_(False)


def make_batch(case: Case) -> dict[str, Tensor]:
    """Return made-up slices and labels, each of another patient."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(case.batch, 1, case.size, case.size, generator=generator)
    numbers = {"group": torch.arange(case.batch), "position": torch.zeros(case.batch, dtype=torch.int64)}
    return {"image": image, "label": (image > 1).float(), **numbers}


def our_terms(names: tuple[str, ...]) -> dict[str, Term]:
    """Return some of the terms of the bundle, with the published weights."""
    dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=False, batch=True, smooth_nr=1, smooth_dr=1)
    known = {
        "seg": Term(dice, "student/logits", "label", WEIGHTS["seg"]),
        "maps": Term(SoftLogitKL(TEMPERATURE), "student/logits", "teacher/logits", WEIGHTS["maps"]),
    }
    for name, stage in STAGES.items():
        known[name] = Term(
            MultiScaleContrastive(tau=TAU, queue_size=QUEUE, neighbors=NEIGHBORS),
            f"student/{stage}",
            f"teacher/{stage}",
            WEIGHTS[name],
            adapter=ProjectionHead(GRID),
            target_adapter=GridPool(GRID, WIDTH),
            inputs=FACTS,
        )
    return {name: known[name] for name in names}


def our_step(kind: type[Distiller], teacher: nn.Module, case: Case) -> Distiller:
    """Return our distiller with all terms; heads start alike in each."""
    student = make_student()
    shape = [1, 1, case.size, case.size]
    return kind(student, {"teacher": teacher}, our_terms(tuple(WEIGHTS)), cached=FACTS, input_shape=shape).train()


def make_ways(case: Case) -> dict[str, Step]:
    """Return all ways on one batch, the literal step first."""
    batch, teacher, student = make_batch(case), make_teacher(), make_student()
    literal = LiteralStep(student, teacher)
    live, cached = our_step(Distiller, teacher, case), our_step(CachedDistiller, teacher, case)
    stored: dict[str, Tensor] = cached.targets(batch)  # type: ignore[operator]
    alone = Distiller(make_student(), terms=our_terms(("seg",))).train()
    image, label = batch["image"], batch["label"]
    return {
        LITERAL: Step(student, lambda: literal.loss(image, label)),
        LIVE: Step(live, lambda: live(**batch).loss),
        CACHED: Step(cached, lambda: cached(**batch, **stored).loss),
        ALONE: Step(alone, lambda: alone(image, label).loss),
    }


def check_terms(case: Case) -> None:
    """Refuse supervision or prediction maps that have other values than the literal step's.

    Raises:
        RuntimeError: names the term and its error.
    """
    batch, teacher = make_batch(case), make_teacher()
    expected = LiteralStep(make_student(), teacher).terms(batch["image"], batch["label"])
    found = our_step(Distiller, teacher, case)(**batch).terms
    for name in SAME:
        check_same(f"the term '{name}'", found[name], expected[name].detach())


def gradient(step: Step) -> Tensor:
    """Return the gradient of all that learns, flat."""
    step.module.zero_grad()
    step.loss().backward()
    return torch.cat([p.grad.flatten() for p in step.module.parameters() if p.grad is not None])


def check_gradient(cached: Tensor, live: Tensor) -> None:
    """Refuse stored targets that teach something else than the live teacher.

    Raises:
        RuntimeError: names the error.
    """
    error = relative_error(cached, live)
    if not error <= TOLERANCE:
        raise RuntimeError(
            f"the gradient with stored targets differs from the live teacher's by {error:.1e} relative, allowed "
            f"{TOLERANCE:g}"
        )


def operations(loss: Callable[[], Tensor]) -> float:
    """Return the floating-point operations of forward and backward, 10**9."""
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return counter.get_total_flops() / 1e9


def peak_mb(step: Step) -> float:
    """Return the most memory that a step holds beyond what was there, gradients included, 10**6 bytes."""
    step.module.zero_grad()
    return allocated_peak(lambda: step.loss().backward()) / 1e6


def measure(case: Case, rounds: int) -> dict[str, dict[str, Any]]:
    """Check terms and gradients, then time all ways in turn."""
    check_terms(case)
    ways = make_ways(case)
    check_gradient(gradient(ways[CACHED]), gradient(ways[LIVE]))
    timers = {}
    for way, step in ways.items():
        timers[way] = timer(lambda loss: loss().backward(), lambda s=step: (s.module.zero_grad(), s.loss)[1], "cpu")
    times = interleave(timers, rounds, "steps")
    return {
        way: {
            **medians(times[way]),
            "speedup": paired(times[LITERAL], times[way])["wall"],
            "gflop": operations(step.loss),
            "peak_mb": peak_mb(step),
        }
        for way, step in ways.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="slices in a batch")
    parser.add_argument("--size", type=int, default=256, help="edge of a slice in pixels, a multiple of 16, from 64 on")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a trial of the machinery")
    parser.add_argument("--out", type=Path, help="the record; by default in docs/results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    case = Case(2, 64) if arguments.quick else Case(arguments.batch, arguments.size)
    out = RESULT if arguments.out is None and not arguments.quick and case == Case(4, 256) else arguments.out
    rounds = 1 if arguments.quick else arguments.rounds
    record = {
        **environment("cpu", REPOSITORY),
        **case._asdict(),
        "grid": GRID,
        "rounds": rounds,
        "load_before": os.getloadavg()[0],
        "student": network_facts(make_student()),
        "teacher": network_facts(make_teacher()),
        "matrix_gflops": matrix_gflops(),
        "steps": measure(case, rounds),
    }
    publish(record, mtms_step_markdown(record), out)


if __name__ == "__main__":
    main()
