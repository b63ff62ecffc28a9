"""Layers that MONAI lacks."""

from monai_kd.networks.layers.depth_shift import DepthShift, DistillDepthShift, ResidualDepthShift, SliceExchange
from monai_kd.networks.layers.shared_prelu import SharedPReLU
from monai_kd.networks.layers.slice_count import SliceCount, fold_slices, unfold_slices

__all__ = [
    "DepthShift",
    "DistillDepthShift",
    "ResidualDepthShift",
    "SharedPReLU",
    "SliceCount",
    "SliceExchange",
    "fold_slices",
    "unfold_slices",
]
