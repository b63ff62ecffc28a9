"""The distillation core: a Distiller sums Terms over named views of a student and its teachers."""

from monai_kd.distillers.cooperative import CooperativeDistiller
from monai_kd.distillers.cooperative_teachers import CooperativeTeachers
from monai_kd.distillers.distiller import Distiller, DistillOutput
from monai_kd.distillers.pairing import pair_stages
from monai_kd.distillers.self_distiller import PhotometricNoise, SelfDistiller
from monai_kd.distillers.stages import Stage, network_stages
from monai_kd.distillers.taps import FeatureTaps, stage_paths
from monai_kd.distillers.term import Term

__all__ = [
    "CooperativeDistiller",
    "CooperativeTeachers",
    "DistillOutput",
    "Distiller",
    "FeatureTaps",
    "PhotometricNoise",
    "SelfDistiller",
    "Stage",
    "Term",
    "network_stages",
    "pair_stages",
    "stage_paths",
]
