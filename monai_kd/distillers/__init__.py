"""The distillation core: a Distiller sums Terms over named views of a student and its teachers."""

from monai_kd.distillers.alignment import AlignmentDistiller
from monai_kd.distillers.batch_statistics import keep_running_statistics, without_dropout
from monai_kd.distillers.cached import CachedDistiller
from monai_kd.distillers.cooperative import CooperativeDistiller
from monai_kd.distillers.cooperative_teachers import CooperativeTeachers
from monai_kd.distillers.distiller import Distiller, DistillOutput
from monai_kd.distillers.generalizable import GeneralizableDistiller
from monai_kd.distillers.pairing import pair_stages
from monai_kd.distillers.self_distiller import PhotometricNoise, SelfDistiller
from monai_kd.distillers.stages import Stage, network_stages
from monai_kd.distillers.taps import FeatureTaps, stage_paths
from monai_kd.distillers.teacher_outputs import TeacherOutputs
from monai_kd.distillers.term import Term

__all__ = [
    "AlignmentDistiller",
    "CachedDistiller",
    "CooperativeDistiller",
    "CooperativeTeachers",
    "DistillOutput",
    "Distiller",
    "FeatureTaps",
    "GeneralizableDistiller",
    "PhotometricNoise",
    "SelfDistiller",
    "Stage",
    "TeacherOutputs",
    "Term",
    "keep_running_statistics",
    "network_stages",
    "pair_stages",
    "stage_paths",
    "without_dropout",
]
