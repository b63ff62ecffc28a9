"""The frame of losses that compare class probabilities voxel by voxel."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from monai_kd.losses.dense import (
    check_label,
    check_number,
    check_pair,
    check_reduction,
    class_index,
    foreground_index,
    full_precision,
    given_weight,
    none_ignored,
    reduce_voxels,
    resize,
    resize_index,
)

__all__ = ["VoxelLoss"]

Weighting = Callable[[Tensor, Tensor | None, bool], Tensor]


class VoxelLoss(nn.Module, ABC):
    """Base of losses with one value per voxel: grid, labels to ignore, weights and reduction in one place.

    A subclass gives :meth:`voxel_loss`. Everything runs in float32, also inside autocast (float64 stays), and the
    teacher receives no gradient.

    Args:
        temperature: softening factor, > 0, no unit.
        reduction: ``pixelmean`` is the sum over classes and the mean over valid voxels: it depends on neither the
            resolution nor the batch size. ``elementmean`` divides by the number of classes too, ``batchmean`` by the
            batch size only, ``sum`` by nothing; ``none`` returns the weighted map ``(B, *spatial)``.
        ignore_index: voxels with this label do not count; None looks at no label.
        weighting: weight maps such as :class:`ForegroundWeighting`, one or several (multiplied). The mean is divided
            by the sum of the weights.
        sigmoid: channels are independent foregrounds, not exclusive classes.

    Shape:
        student_logits, teacher_logits: ``(B, C, *spatial)``, any number of spatial axes. A student on another grid
            (1 to 3 axes) is interpolated linearly to the teacher's.
        label: class indices ``(B, 1, *spatial)`` or ``(B, *spatial)``; with ``sigmoid`` also ``(B, C, *spatial)`` of 0
            and 1. On another grid it is brought to the logits' by nearest neighbor.
        weight: a map of your own, or a mask, ``(B, 1, *spatial)`` or ``(B, *spatial)``, multiplied with the others;
            voxels at 0 or below do not count. On another grid it is interpolated linearly to the logits'.

    Returns:
        0-d; exactly 0, with a gradient, if no voxel counts.
    """

    def __init__(
        self,
        temperature: float,
        reduction: str = "pixelmean",
        ignore_index: int | None = 255,
        weighting: Weighting | Sequence[Weighting] | None = None,
        sigmoid: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = check_number("temperature", temperature, above=0)
        self.reduction = check_reduction(reduction)
        self.ignore_index = ignore_index
        self.weighting = _as_list(weighting)
        self.sigmoid = sigmoid

    @property
    def needs_classes(self) -> bool:
        """Whether :meth:`voxel_loss` reads the class of each voxel."""
        return False

    @abstractmethod
    def voxel_loss(self, student: Tensor, teacher: Tensor, index: Tensor | None) -> Tensor:
        """Return the loss of each voxel, ``(B, *spatial)``, from logits and class indices on one grid."""

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        label: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        check_pair(student_logits, teacher_logits)
        self.check_classes(student_logits.shape[1])
        with full_precision(student_logits, teacher_logits) as (student, teacher):
            student, teacher, index = self.common_grid(student, teacher, self._index(label, teacher))
            ignored = self._ignored(index)
            weights = self._weights(teacher, index, ignored, weight)
            if ignored is not None:  # what is not finite there must not reach a gradient
                student, teacher = (logits.masked_fill(ignored.unsqueeze(1), 0.0) for logits in (student, teacher))
            values = self.voxel_loss(student, teacher, index)
            return reduce_voxels(values, weights, self.reduction, student.shape[1])

    def check_classes(self, classes: int) -> None:
        """Refuse a number of channels for which the loss would be constant."""
        if classes < 2 and not self.sigmoid:
            raise ValueError(
                f"{type(self).__name__} got logits with 1 class channel, it needs at least 2: a softmax over one is "
                "always 1; use SoftBernoulliKL, or sigmoid=True where there is one"
            )

    def common_grid(
        self, student: Tensor, teacher: Tensor, index: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Bring student and label to the teacher's grid."""
        size = teacher.shape[2:]
        return resize(student, size), teacher, None if index is None else resize_index(index, size)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"

    def _index(self, label: Tensor | None, like: Tensor) -> Tensor | None:
        """Return the classes; None if nothing would come of them."""
        if label is None or not (self.needs_classes or self.weighting or self.ignore_index is not None):
            return None
        several = self.sigmoid and label.ndim == like.ndim and label.shape[1] == like.shape[1] > 1
        if not several:
            check_label(label, like)
        if not (self.needs_classes or self.weighting) and none_ignored(label, self.ignore_index):
            return None
        return foreground_index(label, self.ignore_index) if several else class_index(label, like)

    def _ignored(self, index: Tensor | None) -> Tensor | None:
        """Return which voxels do not count; None for none."""
        if index is None or self.ignore_index is None or none_ignored(index, self.ignore_index):
            return None
        return index.eq(self.ignore_index)

    def _weights(
        self, teacher: Tensor, index: Tensor | None, ignored: Tensor | None, given: Tensor | None
    ) -> Tensor | None:
        """Return the product of all weights, ``(B, *spatial)``; None where every voxel counts alike."""
        maps = [] if ignored is None else [ignored.logical_not().to(teacher.dtype)]
        if given is not None:
            maps.append(given_weight(given, teacher))
        known = index if ignored is None or index is None else torch.where(ignored, -1, index)
        maps += [weighting(teacher, known, not self.sigmoid) for weighting in self.weighting]
        return math.prod(maps[1:], start=maps[0]) if maps else None


def _as_list(weighting: Weighting | Sequence[Weighting] | None) -> list[Weighting]:
    found = [] if weighting is None else list(weighting) if isinstance(weighting, Sequence) else [weighting]
    for entry in found:
        if not callable(entry):
            raise TypeError(f"weighting holds {entry!r}; give weight maps such as ForegroundWeighting()")
    return found
