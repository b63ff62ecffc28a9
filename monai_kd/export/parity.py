"""Does an exported file compute what PyTorch computes? Logits and labels, window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monai_kd.export.pipeline import Sample

__all__ = ["Limits", "Parity", "measure_parity"]


@dataclass(frozen=True)
class Parity:
    """How an exported network differs from PyTorch on the same inputs.

    Attributes:
        max_logit_difference: largest absolute difference, logit units.
        label_agreement: fraction of voxels with equal labels, 0 to 1.
        dice: Dice between the labels, mean over the foreground classes that either has; voxels of all windows pooled.
        windows: number of inputs compared.
        foreground: fraction of voxels that either labels as foreground, 0 to 1; without any, ``dice`` is 1.
        outliers: fraction of voxels with a logit that differs by more than was asked for, 0 to 1; None if nothing was.
    """

    max_logit_difference: float
    label_agreement: float
    dice: float
    windows: int
    foreground: float
    outliers: float | None = None


@dataclass(frozen=True)
class Limits:
    """What an export may differ by.

    Attributes:
        max_logit_difference: logit units; None judges by ``min_dice`` alone, which takes some foreground.
        min_dice: Dice between its labels and PyTorch's, 0 to 1.
        max_outliers: fraction of voxels that may differ by more than ``max_logit_difference``, 0 to 1. Above 0 it is
            for networks that choose the largest of several values: where two are equal but for rounding, another
            runtime chooses the other, and what follows from it differs.
    """

    max_logit_difference: float | None
    min_dice: float
    max_outliers: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_outliers <= 1:
            raise ValueError(f"max_outliers is {self.max_outliers}; it is a fraction of the voxels, 0 to 1")
        if self.max_outliers and self.max_logit_difference is None:
            raise ValueError("max_outliers needs a max_logit_difference, which outliers exceed")

    def objection(self, parity: Parity) -> str | None:
        """Return what is wrong, None if nothing. Numbers that are not numbers never pass."""
        most = self.max_logit_difference
        finite = parity.max_logit_difference < torch.inf
        if most is None or not finite or not self.max_outliers:
            if not (parity.max_logit_difference <= (torch.inf if most is None else most)):
                return f"differs from PyTorch by {parity.max_logit_difference:.2e} logits, more than {most or 0:.0e}"
        elif parity.outliers is None:
            raise ValueError("measure_parity counted no outliers; give it the limit")
        elif parity.outliers > self.max_outliers:
            share = f"{100 * parity.outliers:.1f} % of voxels, more than {100 * self.max_outliers:.0f} %"
            return f"differs from PyTorch by more than {most:.0e} logits in {share}"
        if most is None and self.min_dice > 0 and not parity.foreground:
            return (
                f"cannot be judged: it and PyTorch find background alone in all {parity.windows} windows compared; "
                "give images that show the classes, or more of them"
            )
        if not (parity.dice >= self.min_dice):
            return f"has a Dice of {parity.dice:.4f} between its labels and PyTorch's, less than {self.min_dice}"
        return None


def measure_parity(runtime: nn.Module, samples: Sequence[Sample], limit: float | None = None) -> Parity:
    """Compare a runtime with PyTorch's logits.

    Args:
        runtime: takes ``(B, C, *spatial)`` and returns logits ``(B, K, *spatial)``.
        samples: inputs and PyTorch's logits for them, at least one.
        limit: what differs by more is an outlier, logit units; None counts none.

    Raises:
        ValueError: no samples, or logits of another shape.
    """
    if not samples:
        raise ValueError("parity needs at least one input")
    confusion: Tensor | int = 0
    largest = torch.zeros(())
    within = voxels = 0
    for image, expected in samples:
        with torch.inference_mode():
            got = runtime(image).float()
        if got.shape != expected.shape:
            raise ValueError(f"the export returns {tuple(got.shape)}, PyTorch {tuple(expected.shape)}")
        difference = (got - expected).abs().amax(1)
        largest = torch.maximum(largest, difference.max())  # keeps NaN
        within += int((difference <= (torch.inf if limit is None else limit)).sum())
        voxels += difference.numel()
        confusion = confusion + _confusion(expected, got)
    assert isinstance(confusion, Tensor)
    equal = confusion.diagonal().sum() / confusion.sum()
    foreground = 1 - confusion[0, 0] / confusion.sum()
    outliers = None if limit is None else 1 - within / voxels
    return Parity(float(largest), float(equal), _dice(confusion), len(samples), float(foreground), outliers)


def _confusion(expected: Tensor, got: Tensor) -> Tensor:
    """Count label pairs: one row per label of PyTorch."""
    classes = max(2, expected.shape[1])
    pairs = _labels(expected) * classes + _labels(got)
    return torch.bincount(pairs.flatten(), minlength=classes**2).reshape(classes, classes).double()


def _labels(logits: Tensor) -> Tensor:
    return logits.argmax(1) if logits.shape[1] > 1 else (logits > 0).long()


def _dice(confusion: Tensor) -> float:
    both, either = confusion.diagonal()[1:], (confusion.sum(0) + confusion.sum(1))[1:]
    present = either > 0
    return float((2 * both[present] / either[present]).mean()) if present.any() else 1.0
