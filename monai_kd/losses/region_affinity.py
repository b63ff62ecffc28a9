"""Distillation of how alike the features of different classes are (Qin et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_kd.losses.class_prototypes import ClassFeatureLoss, class_means, unit_vectors

__all__ = ["RegionAffinity"]


class RegionAffinity(ClassFeatureLoss):
    """Squared difference of the affinities between classes, mean over the pairs of classes present in an image (RAD).

    The affinity of two classes is the cosine of their mean features, -1 to 1. It has no channels, so those of student
    and teacher may differ and no adapter is needed. With :class:`SoftLogitKL` (temperature 4, weight 0.1) and
    attention transfer (p 4, weight 0.9) it makes up EMKD, at weight 0.9.

    Args:
        reduction: ``samplemean`` is the mean over the images that hold a pair; ``none`` the value of each, ``(B,)``.
        ignore_index: voxels with this label do not count; None ignores none.
        sigmoid: two classes, background and whatever is labeled, for overlapping foregrounds.

    Shape:
        student, teacher: features ``(B, C, *spatial)``, one tensor or a list of levels, whose losses are added. Of two
            grids the larger (1 to 3 axes) is averaged to the smaller.
        label: class indices ``(B, 1, *spatial)`` or ``(B, *spatial)``, with ``sigmoid`` also ``(B, C, *spatial)`` of 0
            and 1; brought to the features by nearest neighbor, so that small structures may vanish in deep features.

    Returns:
        0-d or ``(B,)``, 0 to 4 per level; exactly 0, with a gradient, for images with less than two classes.

    Raises:
        ValueError: an unknown reduction, batches or numbers of levels that differ, or a label that does not fit.

    Source: Qin et al. 2021, "Efficient Medical Image Segmentation Based on Knowledge Distillation" (EMKD). Published
    code sums over the pairs, so that the weight grows with the number of organs, adds 1 to the size of only one region
    of a pair, and divides by 0 for an absent other; here absent classes have no pair, and the mean is taken. Mean
    features shorter than 1e-6 have affinity 0 and no gradient.
    """

    def __init__(self, reduction: str = "samplemean", ignore_index: int | None = 255, sigmoid: bool = False) -> None:
        super().__init__(reduction, ignore_index, sigmoid)

    def compare(self, student: Tensor, teacher: Tensor, index: Tensor, classes: int) -> Tensor:
        own, counts = _affinity(student, index, classes)
        other, _ = _affinity(teacher, index, classes)
        present = counts > 0
        pairs = (present.unsqueeze(1) & present.unsqueeze(2)).triu(diagonal=1)  # each pair once
        number = pairs.sum(dim=(1, 2))
        values = torch.where(pairs, (own - other).square(), 0.0).sum(dim=(1, 2)) / number.clamp_min(1)
        return values if self.reduction == "none" else values.sum() / (number > 0).sum().clamp_min(1)


def _affinity(features: Tensor, index: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the cosines of the mean features of all pairs of classes, ``(B, K, K)``, and voxels per class."""
    means, counts = class_means(features, index, classes)
    directions = unit_vectors(means)
    return torch.bmm(directions.transpose(1, 2), directions), counts
