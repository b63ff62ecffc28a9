"""Training engines."""

from monai_kd.engines.trainer import DistillationTrainer

__all__ = ["DistillationTrainer"]
