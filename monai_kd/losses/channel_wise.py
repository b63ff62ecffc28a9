"""Channel-wise distillation: where each channel looks, as a distribution over the positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_kd.losses.dense import (
    check_label,
    check_number,
    check_reduction,
    class_index,
    full_precision,
    none_ignored,
    resize,
    resize_index,
)
from monai_kd.losses.levels import Features, level_pairs
from monai_kd.losses.position_kl import position_kl

__all__ = ["ChannelWiseKL"]

# a logit that no softmax sees, finite so that a difference of two is 0 and not NaN
_NOWHERE = -1e30


class ChannelWiseKL(nn.Module):
    """KL divergence from teacher to student of the distributions of each channel over space (CWD).

    Each channel of each sample is a softmax over all its positions; the divergences, times ``temperature**2``, are
    averaged over channels and samples. Zero exactly when the maps agree up to a constant per channel. Works on logits
    with any number of classes, also one, and on features. Computed in float32.

    Args:
        temperature: softening factor, > 0, no unit; 4 is usual for logits, 1 for features.
        include_background: whether channel 0 counts.
        present_only: whether only the channels of those classes count that the sample's label holds; the map of an
            absent class is noise. Needs a label, and channels that are classes.
        reduction: ``channelmean`` is the mean over all channels and samples that count, ``sum`` their sum; ``none``
            returns the divergence of each, ``(B, C)`` (without channel 0, if that does not count), 0 where absent.
        ignore_index: positions with this label take no part in the distributions; None looks at no label for that.

    Shape:
        student, teacher: logits or features ``(B, C, *spatial)`` with the same C, any number of spatial axes; or lists
            of such stages, whose values are summed. A student on another grid (1 to 3 axes) is interpolated linearly
            to the teacher's.
        label: class indices ``(B, 1, *spatial)`` or ``(B, *spatial)``, brought to the teacher's grid by nearest
            neighbor. Optional but for ``present_only``. Where labels have several channels set ``ignore_index=None``.

    Returns:
        0-d, or the map; exactly 0, with a gradient, if no channel counts.

    Raises:
        ValueError: shapes differ, no channel besides the background, or no label for ``present_only``.

    Source: Shu et al., ICCV 2021. Its code takes the logarithm of a softmax, which is minus infinity, and
        the loss NaN, where a probability of a large map rounds to 0; here logarithms are computed directly.
        ``present_only`` and ``ignore_index`` are ours.
    """

    compares_maps = True  # see Term

    def __init__(
        self,
        temperature: float = 4.0,
        include_background: bool = True,
        present_only: bool = False,
        reduction: str = "channelmean",
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__()
        self.temperature = check_number("temperature", temperature, above=0)
        self.include_background = include_background
        self.present_only = present_only
        self.reduction = check_reduction(reduction, ("channelmean", "sum", "none"))
        self.ignore_index = ignore_index

    def forward(self, student: Features, teacher: Features, label: Tensor | None = None) -> Tensor:
        pairs = level_pairs(student, teacher, channels=True)
        if self.reduction == "none" and len(pairs) > 1:
            raise ValueError(f"reduction 'none' has no one map for {len(pairs)} stages; use it on one")
        return torch.stack([self._level(ours, theirs, label) for ours, theirs in pairs]).sum(dim=0)

    def _level(self, student: Tensor, teacher: Tensor, label: Tensor | None) -> Tensor:
        index = self._index(label, teacher)
        if not self.include_background:
            if student.shape[1] < 2:
                raise ValueError(
                    f"include_background=False leaves none of the {student.shape[1]} channel; set it to True"
                )
            student, teacher = student[:, 1:], teacher[:, 1:]
        with full_precision(student, teacher) as (student, teacher):
            student = resize(student, teacher.shape[2:])
            if index is None:
                return self._reduce(self._divergence(student, teacher), None)
            ignored = self._ignored(index)
            values = self._divergence(self._without(student, ignored), self._without(teacher, ignored))
            return self._reduce(values, self._counts(index, ignored, values))

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, include_background={self.include_background}, "
            f"present_only={self.present_only}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"
        )

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return position_kl(student.flatten(2), teacher.flatten(2), self.temperature)

    def _index(self, label: Tensor | None, like: Tensor) -> Tensor | None:
        """Return the label on the teacher's grid; None if it is not looked at."""
        if label is None and self.present_only:
            raise ValueError("ChannelWiseKL(present_only=True) got no label; give one, or present_only=False")
        if label is None or not (self.present_only or self.ignore_index is not None):
            return None
        check_label(label, like)
        if not self.present_only and none_ignored(label, self.ignore_index):
            return None
        return resize_index(class_index(label, like), like.shape[2:])

    def _ignored(self, index: Tensor) -> Tensor:
        return torch.zeros_like(index, dtype=torch.bool) if self.ignore_index is None else index.eq(self.ignore_index)

    def _without(self, maps: Tensor, ignored: Tensor) -> Tensor:
        if self.ignore_index is None or (maps.device.type == "cpu" and not ignored.any()):
            return maps  # elsewhere the question costs more than the copy
        return maps.masked_fill(ignored.unsqueeze(1), _NOWHERE * self.temperature)

    def _counts(self, index: Tensor, ignored: Tensor, values: Tensor) -> Tensor:
        """Return which channels ``(B, C)`` count: all of a sample with a valid position, or those of its classes."""
        if not self.present_only:
            return ignored.logical_not().flatten(1).any(dim=1, keepdim=True).expand_as(values)
        first = 0 if self.include_background else 1
        classes = values.shape[1] + first
        known = (index >= 0) & (index < classes) & ~ignored
        found = torch.zeros(len(index), classes + 1, dtype=torch.bool, device=index.device)
        found.scatter_(1, torch.where(known, index, classes).flatten(1), True)  # the last is the bin of all others
        return found[:, first:classes]

    def _reduce(self, values: Tensor, counts: Tensor | None) -> Tensor:
        if counts is not None:
            values = torch.where(counts, values, 0.0)
        if self.reduction == "none":
            return values
        if self.reduction == "sum":
            return values.sum()
        return values.mean() if counts is None else values.sum() / counts.sum().clamp_min(1)
