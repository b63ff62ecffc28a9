"""What a network's channels mean, read off the voxels: confusion between predicted and labelled classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment

__all__ = ["best_meaning", "confusion", "confusion_table", "foreground_dice"]


def confusion(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Count voxels by labelled class (row) and predicted class (column).

    Args:
        pred, label: one-hot ``(K, *spatial)`` of one case.
    """
    counts = pred.flatten(1).double() @ label.flatten(1).double().T  # (K predicted, K labelled)
    return counts.T.round().long()


def foreground_dice(counts: torch.Tensor) -> float | None:
    """Return the mean Dice of one case over the foreground classes in its label; None if there is none."""
    overlap = _overlap(counts)
    present = [number for number in range(1, len(counts)) if counts[number].sum() > 0]
    return sum(float(overlap[number, number]) for number in present) / len(present) if present else None


def best_meaning(counts: torch.Tensor) -> tuple[list[int], float, float]:
    """Return the labelled class that each channel fits best, and the mean foreground Dice as it is and so permuted."""
    overlap = _overlap(counts)
    rows, columns = linear_sum_assignment(overlap.numpy(), maximize=True)
    meaning = [0] * len(counts)
    for row, column in zip(rows, columns, strict=True):
        meaning[column] = int(row)
    present = [number for number in range(1, len(counts)) if counts[number].sum() > 0]
    if not present:
        return list(range(len(counts))), 0.0, 0.0
    now = sum(float(overlap[number, number]) for number in present) / len(present)
    permuted = sum(float(overlap[number, meaning.index(number)]) for number in present) / len(present)
    return meaning, now, permuted


def _overlap(counts: torch.Tensor) -> torch.Tensor:
    """Dice between every labelled and every predicted class."""
    sizes = counts.sum(1, keepdim=True) + counts.sum(0, keepdim=True)
    return 2 * counts.double() / sizes.clamp(min=1)


def confusion_table(counts: torch.Tensor, class_names: Sequence[str]) -> str:
    """Format the counts in one line: ``anterior -> anterior 910, posterior 12; ...``, classes of the label first."""
    rows = []
    for number, name in enumerate(class_names):
        hits = [f"{other} {int(counts[number, column])}" for column, other in enumerate(class_names)]
        rows.append(f"{name} -> {', '.join(hits)}")
    return "labelled -> predicted voxels: " + "; ".join(rows)
