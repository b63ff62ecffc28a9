"""What a run records and shows."""

from monai_kd.handlers.attach import Attach
from monai_kd.handlers.average_weights import AverageWeights
from monai_kd.handlers.case_scores import CaseScores, write_metrics_csv
from monai_kd.handlers.checkpoints import ResumableTraining, SaveBest
from monai_kd.handlers.clip_gradients import ClipGradients
from monai_kd.handlers.ema_teacher import EMATeacher
from monai_kd.handlers.evaluation_record import EvaluationRecord, require_weights
from monai_kd.handlers.gradient_ratio import GradientRatios
from monai_kd.handlers.mean_case_dice import MeanCaseDice
from monai_kd.handlers.overrides import check_overrides, override_problems
from monai_kd.handlers.performance_weights import PerformanceWeights
from monai_kd.handlers.pixel_scores import PixelScores
from monai_kd.handlers.progress import Progress
from monai_kd.handlers.publish import PublishBest
from monai_kd.handlers.run_dir import clear_run_dir, new_run_name, open_run_dir, require_free_space, run_name
from monai_kd.handlers.sampler_epoch import SamplerEpoch
from monai_kd.handlers.scalars import named_scalars
from monai_kd.handlers.schedules import TermSchedules
from monai_kd.handlers.teacher_scores import TeacherScores
from monai_kd.handlers.training_record import TrainingRecord

__all__ = [
    "Attach",
    "AverageWeights",
    "CaseScores",
    "ClipGradients",
    "EMATeacher",
    "EvaluationRecord",
    "GradientRatios",
    "MeanCaseDice",
    "PerformanceWeights",
    "PixelScores",
    "Progress",
    "PublishBest",
    "ResumableTraining",
    "SamplerEpoch",
    "SaveBest",
    "TeacherScores",
    "TermSchedules",
    "TrainingRecord",
    "check_overrides",
    "clear_run_dir",
    "named_scalars",
    "new_run_name",
    "open_run_dir",
    "override_problems",
    "require_free_space",
    "require_weights",
    "run_name",
    "write_metrics_csv",
]
