"""Class prototypes of feature maps: the mean feature of each labeled class, per image."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from monai_kd.losses.dense import check_reduction, class_index, foreground_index, full_precision, resize_index
from monai_kd.losses.levels import Features, level_pairs, pool_to_common

__all__: list[str] = []

# voxels that one running sum takes in: a longer one loses digits, 2 % of the mean of 128**3 equal values in float32
_BLOCK = 1024
# a squared length of features below it counts as zero: no direction, no gradient
_SQUARED_EPS = 1e-12


class ClassFeatureLoss(nn.Module, ABC):
    """Base of losses on features whose voxels are told apart by their labeled class: levels, label and precision.

    Args:
        reduction: the mean by its own name, or ``none`` for one value of each sample, ``(B,)``.
        ignore_index: voxels with this label do not count; None ignores none.
        sigmoid: two classes, background and whatever is labeled, for overlapping foregrounds.
    """

    mean_name = "samplemean"

    def __init__(self, reduction: str, ignore_index: int | None, sigmoid: bool) -> None:
        super().__init__()
        self.reduction = check_reduction(reduction, (self.mean_name, "none"))
        self.ignore_index = ignore_index
        self.sigmoid = sigmoid

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, index: Tensor, classes: int) -> Tensor:
        """Return the loss of one level from features ``(B, C, P)`` and the class of each voxel ``(B, P)``."""

    def forward(self, student: Features, teacher: Features, label: Tensor) -> Tensor:
        pairs = level_pairs(student, teacher)
        return torch.stack([self._level(ours, theirs, label) for ours, theirs in pairs]).sum(dim=0)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, sigmoid={self.sigmoid}"

    def _level(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
        with full_precision(student, teacher) as pair:
            return self.compare(*labeled_pair(*pair, label, self.ignore_index, self.sigmoid))


def labeled_pair(
    student: Tensor, teacher: Tensor, label: Tensor, ignore_index: int | None, sigmoid: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return both features ``(B, C, P)`` on one grid, the class of each voxel ``(B, P)``, and how many classes.

    The larger grid is averaged down to the smaller one, and the label is brought to it by nearest neighbor. The class
    of voxels to ignore is -1.

    Raises:
        ValueError: a label that does not go with the features, or one below 0.
    """
    student, teacher = pool_to_common(student, teacher)
    index, classes = _classes(label, student, ignore_index, sigmoid)
    return student.flatten(2), teacher.flatten(2), index.flatten(1), classes


def class_means(features: Tensor, index: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean feature of each class, ``(B, C, classes)``, and its number of voxels, ``(B, classes)``.

    Args:
        features: ``(B, C, P)``.
        index: class of each voxel, ``(B, P)``, -1 to leave it out.
        classes: more than the highest one. The mean of an absent class is 0.
    """
    batch, channels, voxels = features.shape
    slots, blocks = classes + 1, -(-voxels // _BLOCK)  # slot 0 takes what is left out
    block = torch.arange(voxels, device=index.device) // _BLOCK
    slot = (index + 1 + slots * block).unsqueeze(1)
    sums = features.new_zeros(batch, channels, blocks * slots)
    sums = sums.scatter_add(2, slot.expand(-1, channels, -1), features).view(batch, channels, blocks, slots).sum(2)
    counts = slot.new_zeros(batch, 1, blocks * slots).scatter_add_(2, slot, torch.ones_like(slot))
    counts = counts.view(batch, blocks, slots).sum(1)[:, 1:]
    return sums[..., 1:] / counts.clamp_min(1).unsqueeze(1), counts


def unit_vectors(features: Tensor) -> Tensor:
    """Return ``(B, C, n)`` with length 1 over the channels; zero vectors stay zero and get no gradient."""
    length, found = lengths(features)
    return torch.where(found, features / length, 0.0)


def lengths(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lengths over the channels, ``(B, 1, n)``, 1 for zero vectors, and where they are none."""
    squared = features.square().sum(dim=1, keepdim=True)
    found = squared > _SQUARED_EPS
    return torch.where(found, squared, 1.0).sqrt(), found


def _classes(label: Tensor, like: Tensor, ignore_index: int | None, sigmoid: bool) -> tuple[Tensor, int]:
    """Return the class of each voxel on the grid of the features, -1 to ignore it, and one more than the highest."""
    if sigmoid:  # (B, *spatial), (B, 1, *spatial) or one channel per foreground
        label = foreground_index(label if label.ndim == like.ndim else label.unsqueeze(1), ignore_index)
    index = resize_index(class_index(label, like), like.shape[2:])
    ignored = torch.zeros_like(index, dtype=torch.bool) if ignore_index is None else index == ignore_index
    low, high = torch.stack(torch.aminmax(torch.where(ignored, 0, index))).tolist()
    if low < 0:
        raise ValueError(f"label holds {low}; classes start at 0, and ignore_index is {ignore_index}")
    return torch.where(ignored, -1, index), high + 1
