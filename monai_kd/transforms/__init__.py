"""Transforms that MONAI lacks."""

from monai_kd.transforms.label_regions import LabelRegionsd, PrependBackgroundd, RegionsLabeld
from monai_kd.transforms.mask_missing import MaskMissingd
from monai_kd.transforms.require_slices import RequireSlicesd

__all__ = ["LabelRegionsd", "MaskMissingd", "PrependBackgroundd", "RegionsLabeld", "RequireSlicesd"]
