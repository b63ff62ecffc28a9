"""Transforms that MONAI lacks."""

from monai_kd.transforms.clahe import clahe
from monai_kd.transforms.field_of_view import FieldOfViewd, ResizeFieldOfViewd, field_diameter, field_of_view
from monai_kd.transforms.hide_label import HideLabeld
from monai_kd.transforms.label_regions import LabelRegionsd, PrependBackgroundd, RegionsLabeld
from monai_kd.transforms.mask_missing import MaskMissingd
from monai_kd.transforms.photometric_views import PhotometricViewsd
from monai_kd.transforms.require_slices import RequireSlicesd
from monai_kd.transforms.retina_green import RetinaGreend, reflect_outside
from monai_kd.transforms.slice_facts import SliceFactsd

__all__ = [
    "FieldOfViewd",
    "HideLabeld",
    "LabelRegionsd",
    "MaskMissingd",
    "PhotometricViewsd",
    "PrependBackgroundd",
    "RegionsLabeld",
    "RequireSlicesd",
    "ResizeFieldOfViewd",
    "RetinaGreend",
    "SliceFactsd",
    "clahe",
    "field_diameter",
    "field_of_view",
    "reflect_outside",
]
