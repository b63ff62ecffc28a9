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
    """

    max_logit_difference: float
    label_agreement: float
    dice: float
    windows: int
    foreground: float


@dataclass(frozen=True)
class Limits:
    """What an export may differ by.

    Attributes:
        max_logit_difference: logit units; None judges by ``min_dice`` alone, which takes some foreground.
        min_dice: Dice between its labels and PyTorch's, 0 to 1.
    """

    max_logit_difference: float | None
    min_dice: float

    def objection(self, parity: Parity) -> str | None:
        """Return what is wrong, None if nothing. Numbers that are not numbers never pass."""
        most = self.max_logit_difference
        if not (parity.max_logit_difference <= (torch.inf if most is None else most)):
            return f"differs from PyTorch by {parity.max_logit_difference:.2e} logits, more than {most or 0:.0e}"
        if most is None and self.min_dice > 0 and not parity.foreground:
            return (
                f"cannot be judged: it and PyTorch find background alone in all {parity.windows} windows compared; "
                "give images that show the classes, or more of them"
            )
        if not (parity.dice >= self.min_dice):
            return f"has a Dice of {parity.dice:.4f} between its labels and PyTorch's, less than {self.min_dice}"
        return None


def measure_parity(runtime: nn.Module, samples: Sequence[Sample]) -> Parity:
    """Compare a runtime with PyTorch's logits.

    Args:
        runtime: takes ``(B, C, *spatial)`` and returns logits ``(B, K, *spatial)``.
        samples: inputs and PyTorch's logits for them, at least one.

    Raises:
        ValueError: no samples, or logits of another shape.
    """
    if not samples:
        raise ValueError("parity needs at least one input")
    confusion: Tensor | int = 0
    largest = torch.zeros(())
    for image, expected in samples:
        with torch.inference_mode():
            got = runtime(image).float()
        if got.shape != expected.shape:
            raise ValueError(f"the export returns {tuple(got.shape)}, PyTorch {tuple(expected.shape)}")
        difference = (got - expected).abs().max()
        largest = torch.maximum(largest, difference)  # keeps NaN
        confusion = confusion + _confusion(expected, got)
    assert isinstance(confusion, Tensor)
    equal = confusion.diagonal().sum() / confusion.sum()
    foreground = 1 - confusion[0, 0] / confusion.sum()
    return Parity(float(largest), float(equal), _dice(confusion), len(samples), float(foreground))


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
