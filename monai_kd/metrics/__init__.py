"""Metrics that MONAI lacks."""

from monai_kd.metrics.cases import score_case, summarize
from monai_kd.metrics.confusion import confusion_matrix, region_dice

__all__ = ["confusion_matrix", "region_dice", "score_case", "summarize"]
