"""Feature mimicking: the student's features are to be the teacher's, in value or up to the scale of each channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_kd.losses.dense import check_reduction, full_precision
from monai_kd.losses.levels import Features, level_pairs, pool_to_common

__all__ = ["FeatureMimic"]

# a standard deviation below this part of the mean is rounding: the channel is constant
_CONSTANT = 1e-6


class FeatureMimic(nn.Module):
    """Mean squared error between the features of student and teacher (FitNets), or of standardized ones (PKD).

    With ``standardize`` each channel gets mean 0 and standard deviation 1 over the batch and space, and the error is
    halved: up to ``(n - 1) / n`` for n values, one minus the Pearson correlation of a channel's values, averaged over
    the channels. It lies between 0 and 2, whatever the scale of the features, so that its weight need not be searched.
    A channel that is constant in the batch is 0 after that and gives no gradient. On different grids the larger map
    is averaged down to the smaller one along each axis. Computed in float32.

    Args:
        standardize: compare standardized channels.
        reduction: ``elementmean`` is the mean over all values, ``batchmean`` their sum over the batch size; ``none``
            returns the mean of each sample, ``(B,)``.

    Shape:
        student, teacher: features ``(B, C, *spatial)`` with the same C (an adapter brings the student to the
        teacher's), 1 to 3 spatial axes (any number on equal grids); or lists of as many features, whose losses are
        added.

    Raises:
        ValueError: other batches, channels, ranks or numbers of levels, or one value per channel to standardize.

    Source: Romero et al., ICLR 2015, eq. 3, with the mean instead of half the sum; Cao et al., NeurIPS 2022 (PKD).
        Published code of the latter adds 1e-6 to the standard deviation, which depends on the scale, and
        by which a constant channel's rounding counts as a signal.
    """

    def __init__(self, standardize: bool = False, reduction: str = "elementmean") -> None:
        super().__init__()
        self.standardize = standardize
        self.reduction = check_reduction(reduction, ("elementmean", "batchmean", "none"))

    @property
    def compares_maps(self) -> bool:
        """Whether it matters which axis holds the channels, see :class:`~monai_kd.distillers.Term`."""
        return self.standardize

    def forward(self, student: Features, teacher: Features) -> Tensor:
        pairs = level_pairs(student, teacher, channels=True)
        return torch.stack([self._level(ours, theirs) for ours, theirs in pairs]).sum(dim=0)

    def extra_repr(self) -> str:
        return f"standardize={self.standardize}, reduction={self.reduction!r}"

    def _level(self, student: Tensor, teacher: Tensor) -> Tensor:
        with full_precision(student, teacher) as (student, teacher):
            student, teacher = pool_to_common(student, teacher)
            if not self.standardize:
                return self._reduce(student, teacher)
            if student.numel() <= student.shape[1]:
                raise ValueError(
                    f"features {tuple(student.shape)} have one value per channel; standardize=True needs at least two, "
                    "in space or in the batch"
                )
            return self._reduce(_Standardized.apply(student), _Standardized.apply(teacher)) / 2

    def _reduce(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.reduction == "none":
            return (student - teacher).square().flatten(1).mean(dim=1)
        error = nn.functional.mse_loss(student, teacher)
        return error * student[0].numel() if self.reduction == "batchmean" else error


class _Standardized(torch.autograd.Function):
    """Each channel of ``(B, C, *spatial)`` with mean 0 and standard deviation 1 (n - 1); only the result is kept."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor) -> Tensor:
        axes, count = _axes(feature), feature.numel() // feature.shape[1]
        mean = feature.mean(dim=axes, keepdim=True)
        result = feature - mean
        variance = result.square().sum(dim=axes, keepdim=True).div_(count - 1)
        varies = variance > (_CONSTANT * mean).square()
        inverse = torch.where(varies, variance, torch.inf).rsqrt_()
        result.mul_(inverse)
        ctx.save_for_backward(result, inverse)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result, inverse = ctx.saved_tensors
        axes, count = _axes(result), result.numel() // result.shape[1]
        along = (gradient * result).sum(dim=axes, keepdim=True).div_(count - 1)
        # what would move the mean or the standard deviation is taken out
        change = gradient - gradient.mean(dim=axes, keepdim=True)
        return change.addcmul_(result, along, value=-1).mul_(inverse)


def _axes(feature: Tensor) -> list[int]:
    return [0, *range(2, feature.ndim)]
