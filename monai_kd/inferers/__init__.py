"""Inferers that MONAI lacks."""

from monai_kd.inferers.autocast import AutocastInferer, cpu_has_bfloat16
from monai_kd.inferers.depth_chunks import ChunkedDepthInferer
from monai_kd.inferers.depth_stream import StreamingDepthInferer
from monai_kd.inferers.shallow_convolutions import ShallowConvolutionsInFloat32
from monai_kd.inferers.slice_window import slice_window

__all__ = [
    "AutocastInferer",
    "ChunkedDepthInferer",
    "ShallowConvolutionsInFloat32",
    "StreamingDepthInferer",
    "cpu_has_bfloat16",
    "slice_window",
]
