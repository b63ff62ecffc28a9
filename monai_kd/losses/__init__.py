"""Distillation losses: pure comparisons of a student tensor with a teacher tensor."""

from monai_kd.losses.soft_logits import SoftBernoulliKL, SoftLogitKL

__all__ = ["SoftBernoulliKL", "SoftLogitKL"]
