"""Transforms that MONAI lacks."""

from monai_kd.transforms.label_regions import LabelRegionsd, PrependBackgroundd, RegionsLabeld

__all__ = ["LabelRegionsd", "PrependBackgroundd", "RegionsLabeld"]
