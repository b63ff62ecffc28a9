"""Distillation losses: pure comparisons of a student tensor with a teacher tensor."""

from monai_kd.losses.dkd import DecoupledKL
from monai_kd.losses.soft_logits import SoftBernoulliKL, SoftLogitKL
from monai_kd.losses.voxelwise import VoxelLoss
from monai_kd.losses.weighting import BoundaryWeighting, ClassBalance, ForegroundWeighting, TeacherErrorGate

__all__ = [
    "BoundaryWeighting",
    "ClassBalance",
    "DecoupledKL",
    "ForegroundWeighting",
    "SoftBernoulliKL",
    "SoftLogitKL",
    "TeacherErrorGate",
    "VoxelLoss",
]
