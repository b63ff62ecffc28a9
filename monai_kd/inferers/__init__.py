"""Inferers that MONAI lacks."""

from monai_kd.inferers.autocast import AutocastInferer, cpu_has_bfloat16

__all__ = ["AutocastInferer", "cpu_has_bfloat16"]
