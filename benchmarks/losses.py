"""What each distillation loss costs, forward and backward: time and peak memory, beside the textbook formulation.

    python benchmarks/losses.py [--device cpu] [--threads 2] [--rounds 9] [--quick] [--out FILE]

Inputs: logits of 9 classes on 512 x 512 (batch 2) and of 4 classes on 128 x 128 x 128; features of 32 channels on half
that grid. The textbook formulation is the paper's formula as it is usually written in PyTorch, see
benchmarks/textbook_losses.py; its value and gradient are checked to be ours before anything is timed. Both run in turn
(ours, textbook, ours, ...), so that a drift of the machine's speed hits both; the ratio is the median over pairs.

Ours is called as a training calls it: a loss that takes a label gets it, as float32, also where it serves only to look
for voxels to ignore (ignore_index 255), of which there are none here. The textbook formulation stays the paper's, which
looks at a label only where it needs one (DKD, IFVD, RAD), and ignores no voxel.

Peak memory is what is allocated at once beyond the inputs, the student's gradient included: from the allocator's own
record (torch.profiler) on a CPU, from its counter on CUDA. The aim is two thirds of the textbook's time and memory.

The record goes to docs/results/zoo/loss_costs.json (loss_costs_cuda.json), from which the table in the documents is
made. --quick takes small sizes and writes nothing unless --out is given.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import textbook_losses as textbook
import torch
import torch.nn.functional as F
from bundle_runs import REPOSITORY
from measurements import allocated_peak, publish
from torch import Tensor, nn
from tqdm import tqdm

from monai_kd import losses
from monai_kd.distillers import Term
from monai_kd.handlers.provenance import environment
from monai_kd.visualize.loss_costs import costs_markdown

RESULTS = REPOSITORY / "docs" / "results" / "zoo"
TOLERANCE = 1e-4  # of value and gradient, relative
CHANNELS = 32  # of features
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


class Inputs(NamedTuple):
    """Two tensors to compare and the label of the images."""

    student: Tensor
    teacher: Tensor
    label: Tensor


class Pair(NamedTuple):
    """A loss and its textbook formulation."""

    ours: Formula
    textbook: Formula
    on: str  # logits or features


def as_in_training(loss: nn.Module) -> Formula:
    """Return a loss as a term of a training calls it: with the label if it takes one."""
    if Term(loss, student="student/logits", target="teacher/logits").wants_label:
        return lambda student, teacher, label: loss(student, teacher, label=label)
    return lambda student, teacher, _label: loss(student, teacher)


PAIRS: dict[str, Pair] = {
    "KD": Pair(as_in_training(losses.SoftLogitKL(temperature=2.0)), textbook.kd, "logits"),
    "LSKD": Pair(as_in_training(losses.SoftLogitKL(temperature=2.0, standardize=True)), textbook.lskd, "logits"),
    "DKD": Pair(as_in_training(losses.DecoupledKL(alpha=1.0, beta=2.0, temperature=4.0)), textbook.dkd, "logits"),
    "DIST": Pair(as_in_training(losses.CorrelationDistillation()), textbook.dist, "logits"),
    "CWD": Pair(as_in_training(losses.ChannelWiseKL(temperature=4.0)), textbook.cwd, "logits"),
    "AT": Pair(as_in_training(losses.AttentionTransfer(p=2)), textbook.at, "features"),
    "HCL (ReviewKD)": Pair(as_in_training(losses.KnowledgeReview()), textbook.hcl, "features"),
    "FitNets": Pair(as_in_training(losses.FeatureMimic()), textbook.fitnets, "features"),
    "PKD": Pair(as_in_training(losses.FeatureMimic(standardize=True)), textbook.pkd, "features"),
    "IFVD": Pair(as_in_training(losses.IntraClassVariation()), textbook.ifvd, "features"),
    "RAD (EMKD)": Pair(as_in_training(losses.RegionAffinity()), textbook.rad, "features"),
}


def make_inputs(batch: int, classes: int, grid: tuple[int, ...], device: str) -> dict[str, Inputs]:
    """Draw logits and features that know something about a label of blobs, the same for every run."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    coarse = normal(batch, classes, *(max(2, length // 16) for length in grid))
    label = F.interpolate(coarse, size=grid).argmax(1, keepdim=True)
    half = tuple(length // 2 for length in grid)
    near = F.interpolate(label.float(), size=half, mode="nearest-exact").long().squeeze(1)

    def logits() -> Tensor:
        return normal(batch, classes, *grid).mul_(2).scatter_add_(1, label, torch.ones(label.shape))

    def features() -> Tensor:
        return normal(batch, CHANNELS, *half).add_(normal(classes, CHANNELS)[near].movedim(-1, 1))

    drawn = {name: [draw() for _ in range(2)] for name, draw in (("logits", logits), ("features", features))}
    given = label.float()  # as images are loaded
    return {name: Inputs(*(value.to(device) for value in (*both, given))) for name, both in drawn.items()}


def run(formula: Formula, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return loss and gradient."""
    student = inputs.student.detach().requires_grad_()
    loss = formula(student, inputs.teacher, inputs.label)
    loss.backward()
    assert student.grad is not None
    return loss.detach(), student.grad


def check(name: str, pair: Pair, inputs: Inputs) -> None:
    """Refuse a textbook formulation that is another loss than ours; it is taken in float64, where it is exact."""
    exact = Inputs(inputs.student.double(), inputs.teacher.double(), inputs.label)
    own, expected = run(pair.ours, inputs), run(pair.textbook, exact)
    for what, ours, theirs in zip(("value", "gradient"), own, expected, strict=True):
        error = float((ours - theirs).norm() / theirs.norm())
        if not error <= TOLERANCE:
            raise RuntimeError(
                f"{name}: the {what} differs from the textbook's by {error:.1e} relative, allowed {TOLERANCE}"
            )


def seconds(formula: Formula, inputs: Inputs) -> float:
    """Time one forward and backward."""
    cuda = inputs.student.is_cuda
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(formula, inputs)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(formula: Formula, inputs: Inputs) -> int:
    """Return the most bytes that forward and backward hold at once beyond the inputs."""
    if inputs.student.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(formula, inputs)
        return torch.cuda.max_memory_allocated() - before
    return allocated_peak(lambda: run(formula, inputs))


def measure(pair: Pair, inputs: Inputs, rounds: int) -> dict[str, Any]:
    """Time both in turn and find their peaks."""
    formulas = {"ours": pair.ours, "textbook": pair.textbook}
    times: dict[str, list[float]] = {name: [] for name in formulas}
    for number in range(-1, rounds):  # the first warms up
        for name, formula in formulas.items():
            elapsed = seconds(formula, inputs)
            if number >= 0:
                times[name].append(elapsed)
    ratios = [own / other for own, other in zip(times["ours"], times["textbook"], strict=True)]
    peaks = {name: peak_bytes(formula, inputs) for name, formula in formulas.items()}
    return {
        "on": pair.on,
        "shape": list(inputs.student.shape),
        "ms": {name: 1000 * statistics.median(values) for name, values in times.items()},
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "peak_bytes": peaks,
        "memory_ratio": peaks["ours"] / peaks["textbook"],
    }


def cases(quick: bool) -> Iterator[tuple[str, int, int, tuple[int, ...]]]:
    """Yield name, batch size, classes and grid."""
    yield "2-D", 2, 9, (64, 64) if quick else (512, 512)
    yield "3-D", 1, 4, (24, 24, 24) if quick else (128, 128, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=9, help="timed pairs of each loss")
    parser.add_argument("--quick", action="store_true", help="small sizes: a trial of the machinery")
    parser.add_argument("--out", type=Path, help="the record; by default in docs/results/zoo")
    arguments = parser.parse_args()
    kind = torch.device(arguments.device).type
    name = "loss_costs.json" if kind == "cpu" else f"loss_costs_{kind}.json"
    out = arguments.out or (None if arguments.quick else RESULTS / name)
    torch.set_num_threads(arguments.threads)
    record: dict[str, Any] = {**environment(arguments.device, REPOSITORY), "rounds": arguments.rounds, "sizes": {}}
    with tqdm(total=2 * len(PAIRS), unit="loss") as bar:
        for size, batch, classes, grid in cases(arguments.quick):
            inputs = make_inputs(batch, classes, grid, arguments.device)
            found = record["sizes"].setdefault(size, {})
            for loss, pair in PAIRS.items():
                bar.set_description(f"{size} {loss}")
                check(loss, pair, inputs[pair.on])
                found[loss] = measure(pair, inputs[pair.on], arguments.rounds)
                bar.update()
    publish(record, costs_markdown(record), out)


if __name__ == "__main__":
    main()
