"""Volumetric Dice of overlapping regions from one count of class pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["confusion_matrix", "region_dice"]


def confusion_matrix(pred: Tensor, label: Tensor, classes: int) -> Tensor:
    """Count voxels by labeled and predicted class, in one pass and without leaving the device.

    Args:
        pred, label: class indices of one shape, whole numbers from 0 to ``classes - 1``. Voxels with a higher label
            do not count; a higher prediction would be counted as another pair.
        classes: K.

    Returns:
        ``(K, K)`` int64: row is the label, column the prediction.

    Raises:
        ValueError: shapes differ.
    """
    if pred.shape != label.shape:
        raise ValueError(f"prediction {tuple(pred.shape)} and label {tuple(label.shape)} differ; give one grid")
    pairs = label.reshape(-1).long() * classes + pred.reshape(-1).long()
    return torch.bincount(pairs, minlength=classes * classes)[: classes * classes].reshape(classes, classes)


def region_dice(confusion: Tensor, regions: Mapping[str, Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the volumetric Dice of each region, and whether label or prediction has it.

    Args:
        confusion: ``(..., K, K)``, see :func:`confusion_matrix`.
        regions: name to class indices; they may overlap.

    Returns:
        Dice in 0 to 1, and booleans, both ``(..., R)``. Where a region is in neither the Dice is 0 and means nothing.
    """
    counts = confusion.double()
    dice, found = [], []
    for members in regions.values():
        index = torch.as_tensor(list(members), device=confusion.device)
        both = counts.index_select(-2, index).index_select(-1, index).sum(dim=(-2, -1))
        total = counts.index_select(-2, index).sum(dim=(-2, -1)) + counts.index_select(-1, index).sum(dim=(-2, -1))
        found.append(total > 0)
        dice.append(torch.where(total > 0, 2 * both / total.clamp_min(1), torch.zeros_like(total)))
    return torch.stack(dice, dim=-1), torch.stack(found, dim=-1)
