"""Metrics that MONAI lacks."""

from monai_kd.metrics.cases import score_case, summarize
from monai_kd.metrics.center_line import center_line_dice
from monai_kd.metrics.confusion import confusion_matrix, region_dice
from monai_kd.metrics.pixels import (
    PixelCounts,
    area_under_curve,
    pool_pixels,
    score_pixels,
    summarize_pixels,
)
from monai_kd.metrics.protocols import score_volume, summarize_volumes
from monai_kd.metrics.reliance import bottleneck_reliance
from monai_kd.metrics.semantic_distance import frechet_semantic_distance

__all__ = [
    "PixelCounts",
    "area_under_curve",
    "bottleneck_reliance",
    "center_line_dice",
    "confusion_matrix",
    "frechet_semantic_distance",
    "pool_pixels",
    "region_dice",
    "score_case",
    "score_pixels",
    "score_volume",
    "summarize",
    "summarize_pixels",
    "summarize_volumes",
]
