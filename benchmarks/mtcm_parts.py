"""The parts of a step of MTCM-KD that ours does in another way, each beside its literal form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import literal_mtcm as literal
import torch
from interleaved import check_same, interleave, medians, paired, timer
from mtcm_ways import CLASSES, DICE, REGIONS, TEMPERATURE, make_batch
from torch import Tensor

from monai_kd.losses import DiceJaccardCE, PerformanceKL
from monai_kd.metrics import confusion_matrix, region_dice

Run = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """Two forms of one thing, each of the student's logits, and whether it has a gradient."""

    literal: Run
    ours: Run
    has_gradient: bool = True


def make_logits(size: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    label = make_batch(size)[1]
    hints = torch.zeros(1, CLASSES, *[size] * 3).scatter_(1, label, 2.0)
    return [torch.randn(hints.shape, generator=generator) + hints for _ in range(count)]


def make_parts(size: int) -> tuple[dict[str, Part], Tensor]:
    """Return the parts by name, and the logits to call them with."""
    label = make_batch(size)[1]
    student, *teachers = make_logits(size, 1 + len(DICE))
    shared = DiceJaccardCE(include_background=True, smooth=0.0, resampling="nearest")
    single = PerformanceKL(len(DICE), REGIONS, TEMPERATURE, mode="linear")
    single.dice.copy_(torch.tensor(DICE).unsqueeze(1).expand_as(single.dice))
    weights = [dice / sum(DICE) for dice in DICE]
    parts = {
        "softmax": Part(
            lambda logits: literal.supervised_loss(logits, label),
            lambda logits: shared(logits, label),
        ),
        "divergence": Part(
            lambda logits: literal.response_loss(logits, teachers, weights, TEMPERATURE),
            lambda logits: single(logits, teachers, label),
        ),
        "dice": Part(
            lambda _: torch.tensor([literal.slice_dice(logits, label) for logits in teachers]),
            lambda _: counted_dice(teachers, label),
            has_gradient=False,
        ),
    }
    return parts, student


def counted_dice(teachers: list[Tensor], label: Tensor) -> Tensor:
    """Return each teacher's volumetric Dice of each region, ``(M, R)``."""
    index = label.squeeze(1)
    counts = [confusion_matrix(logits.argmax(dim=1).to(torch.uint8), index, CLASSES) for logits in teachers]
    return region_dice(torch.stack(counts), REGIONS)[0]


def call(run: Run, logits: Tensor, has_gradient: bool) -> Tensor:
    """Return the gradient, or the value of what has none."""
    if not has_gradient:
        return run(logits)
    given = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(run(given), given)
    return gradient


def retained_bytes(run: Run, logits: Tensor) -> int:
    """Return how much the graph keeps for the backward pass, beside the logits."""
    given = logits.detach().requires_grad_()
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = run(given)
    kept.pop(given.untyped_storage().data_ptr(), None)
    del value  # not earlier: until then no address is used twice
    return sum(kept.values())


def measure_parts(size: int, rounds: int) -> dict[str, Any]:
    """Time both forms of each part in turn; gradients are checked to be the same before."""
    parts, logits = make_parts(size)
    found = {}
    for name, part in parts.items():
        forms = {"literal": part.literal, "ours": part.ours}
        if part.has_gradient:
            check_same(name, *(call(run, logits, True) for run in (part.ours, part.literal)))
        timers = {
            form: timer(lambda given, run=run, part=part: call(run, given, part.has_gradient), lambda: logits, "cpu")
            for form, run in forms.items()
        }
        times = interleave(timers, rounds, name)
        found[name] = {
            **{form: medians(times[form]) for form in forms},
            "speedup": paired(times["literal"], times["ours"]),
            "retained_bytes": {form: retained_bytes(run, logits) for form, run in forms.items()}
            if part.has_gradient
            else None,
        }
    return found
