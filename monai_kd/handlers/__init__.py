"""What a run records and shows."""

from monai_kd.handlers.case_scores import CaseScores, write_metrics_csv
from monai_kd.handlers.checkpoints import ResumableTraining, SaveBest
from monai_kd.handlers.ema_teacher import EMATeacher
from monai_kd.handlers.evaluation_record import EvaluationRecord, require_weights
from monai_kd.handlers.gradient_ratio import GradientRatios
from monai_kd.handlers.mean_case_dice import MeanCaseDice
from monai_kd.handlers.overrides import check_overrides, override_problems
from monai_kd.handlers.progress import Progress
from monai_kd.handlers.publish import PublishBest
from monai_kd.handlers.run_dir import clear_run_dir, new_run_name, open_run_dir, require_free_space, run_name
from monai_kd.handlers.scalars import named_scalars
from monai_kd.handlers.schedules import TermSchedules
from monai_kd.handlers.training_record import TrainingRecord

__all__ = [
    "CaseScores",
    "EMATeacher",
    "EvaluationRecord",
    "GradientRatios",
    "MeanCaseDice",
    "Progress",
    "PublishBest",
    "ResumableTraining",
    "SaveBest",
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
