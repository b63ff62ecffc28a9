"""Hierarchical context loss of knowledge review: features compared at several scales (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kd.losses.dense import check_reduction, full_precision
from monai_kd.losses.levels import Features, level_pairs

__all__ = ["KnowledgeReview"]


class KnowledgeReview(nn.Module):
    """Mean squared difference of features on their own grid and on coarser ones, summed over the stages.

    Each level averages the features within a few bins per axis, so coarse levels compare what a region holds and the
    full one where it lies. The full level weighs 1, every pooled level that is used half of the one before, and a
    stage's value is divided by the sum of its weights: it depends on neither resolution, channels nor batch size.

    The features must agree in shape: this is the loss of :class:`monai_kd.networks.ReviewFusion`, which brings the
    student's stages to the teacher's shapes. Zero exactly when they are equal. Computed in float32 (float64 stays).

    Args:
        levels: bins per axis of the pooled levels, whole numbers, from many to few. A level is pooled to
            ``min(level, size)`` bins on each axis and left out of a stage where that shrinks no axis. An empty list
            leaves the plain mean squared difference.
        reduction: ``mean`` over samples, channels and bins; ``none`` returns one value per sample, ``(B,)``.

    Shape:
        student, teacher: ``(B, C, *spatial)`` with 1 to 3 spatial axes, or equally long lists of such; the shapes of
        a pair are the same, those of two stages need not be.

    Raises:
        ValueError: levels out of range, lists of other lengths, or a pair whose shapes differ; names both.

    Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review", section 3.3. The published code decides by
    the height alone which levels are used and pools to squares; the same on square maps.
    """

    compares_maps = True  # see Term

    def __init__(self, levels: Sequence[int] = (4, 2, 1), reduction: str = "mean") -> None:
        super().__init__()
        self.levels = _check_levels(levels)
        self.reduction = check_reduction(reduction, ("mean", "none"))

    def forward(self, student: Features, teacher: Features) -> Tensor:
        pairs = level_pairs(student, teacher)
        _check_shapes(pairs)
        return torch.stack([self._stage(*pair) for pair in pairs]).sum(dim=0)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, reduction={self.reduction!r}"

    def _stage(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one stage, 0-d or of each sample, ``(B,)``."""
        with full_precision(student, teacher) as (own, target):
            total, weight, weights = self._mean_square(own, target), 1.0, 1.0
            size = own.shape[2:]
            for level in self.levels:
                bins = [min(level, length) for length in size]
                if bins == list(size):
                    continue
                weight /= 2
                weights += weight
                pooled = (F.interpolate(value, size=bins, mode="area") for value in (own, target))
                total = total + weight * self._mean_square(*pooled)
            return total / weights

    def _mean_square(self, own: Tensor, target: Tensor) -> Tensor:
        if self.reduction == "mean":  # keeps no difference for backward
            return F.mse_loss(own, target)
        return (own - target).square().flatten(1).mean(dim=1)


def _check_shapes(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for own, target in pairs:
        if own.shape != target.shape:
            raise ValueError(
                f"student features {tuple(own.shape)} and teacher features {tuple(target.shape)} differ; give the term "
                "the adapter monai_kd.networks.ReviewFusion"
            )
        if own.ndim > 5:
            raise ValueError(f"features {tuple(own.shape)} have {own.ndim - 2} spatial axes; 1 to 3 can be pooled")
    batches = {own.shape[0] for own, _ in pairs}
    if len(batches) > 1:
        raise ValueError(f"the stages have the batch sizes {sorted(batches)}; give features of the same images")


def _check_levels(levels: Sequence[int]) -> tuple[int, ...]:
    if isinstance(levels, str) or not isinstance(levels, Sequence):
        raise ValueError(f"levels is {levels!r}; give whole numbers of bins from many to few, e.g. [4, 2, 1]")
    found = tuple(levels)
    whole = all(isinstance(level, int) and not isinstance(level, bool) and level > 0 for level in found)
    if not whole or list(found) != sorted(set(found), reverse=True):
        raise ValueError(f"levels is {list(found)}; give whole numbers of bins from many to few, e.g. [4, 2, 1]")
    return found
