"""Distillation of how features vary within each class (Wang et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_kd.losses.class_prototypes import ClassFeatureLoss, class_means, lengths, unit_vectors

__all__ = ["IntraClassVariation"]


class IntraClassVariation(ClassFeatureLoss):
    """Squared difference of how similar each voxel's features are to the mean features of its class (IFVD).

    For student and teacher alike, the similarity of a voxel is the cosine of its features with the mean features of
    its labeled class in the same image, -1 to 1. It has no channels, so those of student and teacher may differ and
    no adapter is needed, and it does not depend on the scale of the features.

    Args:
        reduction: ``pixelmean`` is the mean over valid voxels of the batch; ``none`` that of each sample, ``(B,)``.
        ignore_index: voxels with this label count neither in the means nor in the loss; None ignores none.
        sigmoid: two classes, background and whatever is labeled, for overlapping foregrounds.

    Shape:
        student, teacher: features ``(B, C, *spatial)``, one tensor or a list of levels, whose losses are added. Of two
            grids the larger (1 to 3 axes) is averaged to the smaller.
        label: class indices ``(B, 1, *spatial)`` or ``(B, *spatial)``, with ``sigmoid`` also ``(B, C, *spatial)`` of 0
            and 1; brought to the features by nearest neighbor, so that small structures may vanish in deep features.

    Returns:
        0-d or ``(B,)``, 0 to 4 per level; exactly 0, with a gradient, where no voxel is valid.

    Raises:
        ValueError: an unknown reduction, batches or numbers of levels that differ, or a label that does not fit.

    Source: Wang et al. 2020, "Intra-class Feature Variation Distillation for Semantic Segmentation"; the paper's weight
    is 200, since the values are small. The published code takes the class means image by image too, but goes over full
    maps once per class and lets voxels to ignore stand for themselves (similarity 1); here they do not count. Features
    shorter than 1e-6 have similarity 0 and no gradient, where a bound in the denominator would give them a huge one.
    """

    mean_name = "pixelmean"

    def __init__(self, reduction: str = "pixelmean", ignore_index: int | None = 255, sigmoid: bool = False) -> None:
        super().__init__(reduction, ignore_index, sigmoid)

    def compare(self, student: Tensor, teacher: Tensor, index: Tensor, classes: int) -> Tensor:
        difference = _similarity(student, index, classes) - _similarity(teacher, index, classes)
        valid = index >= 0
        squared = torch.where(valid, difference.square(), 0.0)
        axes = (1,) if self.reduction == "none" else (0, 1)
        return squared.sum(axes) / valid.sum(axes).clamp_min(1)


def _similarity(features: Tensor, index: Tensor, classes: int) -> Tensor:
    """Return the cosine of the features of each voxel with the mean of its class, ``(B, P)``; any where ignored."""
    means, _ = class_means(features, index, classes)
    # with every class, then pick: a map of classes is smaller than the map of each voxel's mean features
    along = torch.bmm(unit_vectors(means).transpose(1, 2), features).gather(1, index.clamp_min(0).unsqueeze(1))
    length, found = lengths(features)
    return torch.where(found, along / length, 0.0).squeeze(1)
