"""What a run records and shows."""

from monai_kd.handlers.case_scores import CaseScores, write_metrics_csv
from monai_kd.handlers.mean_case_dice import MeanCaseDice
from monai_kd.handlers.progress import Progress
from monai_kd.handlers.publish import PublishBest
from monai_kd.handlers.run_record import EvaluationRecord, TrainingRecord, new_run_name, require_weights
from monai_kd.handlers.scalars import named_scalars

__all__ = [
    "CaseScores",
    "EvaluationRecord",
    "MeanCaseDice",
    "Progress",
    "PublishBest",
    "TrainingRecord",
    "named_scalars",
    "new_run_name",
    "require_weights",
    "write_metrics_csv",
]
