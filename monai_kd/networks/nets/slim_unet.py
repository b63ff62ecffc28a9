"""A U-Net of one convolution a level, small enough to run anywhere (the students of MTMS-KD)."""

from __future__ import annotations

from collections.abc import Sequence

from monai_kd.networks.blocks.units import Norm
from monai_kd.networks.nets.plain_unet import PlainUNet

__all__ = ["SlimUNet"]


class SlimUNet(PlainUNet):
    """A :class:`PlainUNet` of three levels with one convolution each.

    With the default channels 57,297 parameters and 0.85 GMAC for a 256 x 256 image at 2 axes, 3 -> 1 channels; with
    (32, 64, 128) 227,233 and 3.35 GMAC. It sees 22 x 22 pixels around each: where in the body it is, it cannot know.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: logits, one per class, the background among them.
        channels: of the levels, at least 2; each level halves the resolution.
        norm: in MONAI's terms.

    Shape, Raises: see :class:`PlainUNet`; every size a multiple of 4 with three levels.

    Source: Biswas 2024, arXiv 2406.03173. The figures there draw two convolutions a level; the published numbers of
    parameters, and the code, have one.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (16, 32, 64),
        norm: Norm = "batch",
    ) -> None:
        super().__init__(spatial_dims, in_channels, out_channels, channels, norm, convolutions=1)
