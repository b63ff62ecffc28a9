"""The distillation core: a Distiller sums Terms over named views of a student and its teachers."""

from monai_kd.distillers.distiller import Distiller, DistillOutput
from monai_kd.distillers.taps import FeatureTaps, stage_paths
from monai_kd.distillers.term import Term

__all__ = ["DistillOutput", "Distiller", "FeatureTaps", "Term", "stage_paths"]
