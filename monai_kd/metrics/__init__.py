"""Metrics that MONAI lacks."""

from monai_kd.metrics.cases import score_case, summarize

__all__ = ["score_case", "summarize"]
