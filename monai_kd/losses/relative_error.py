"""Squared error as a share of the target's variance."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_kd.losses.dense import full_precision

__all__ = ["RelativeSquaredError"]

# a standard deviation below this part of the mean is rounding: the target is constant
_CONSTANT = 1e-6


class RelativeSquaredError(nn.Module):
    """Mean squared error over the variance of the target: the share of it that is not explained.

    0 for equal tensors, 1 for the best constant, whatever the scale of the features, so that one weight serves
    networks of any. Mean and variance (with n) run over all values of the batch: a channel or sample that is constant
    does no harm. A target without any variance has nothing to share: the value is the mean squared error. Computed in
    float32, also inside autocast. The teacher receives no gradient.

    Shape:
        student, teacher: the same shape, whatever it is.

    Returns:
        0-d, >= 0, no unit.

    Raises:
        ValueError: shapes differ, or are empty.

    Source: Qi et al. 2024 reconstruct features from latents; to divide by the variance is this project's reading.
        :class:`FeatureMimic` is the same without the division, or standardizes both sides, by which the scale is lost.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape != teacher.shape or not student.numel():
            raise ValueError(
                f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape that is not "
                "empty"
            )
        with full_precision(student, teacher) as (student, teacher):
            variance, mean = torch.var_mean(teacher, correction=0)
            varies = variance > (_CONSTANT * mean).square()
            return nn.functional.mse_loss(student, teacher) / torch.where(varies, variance, 1.0)
