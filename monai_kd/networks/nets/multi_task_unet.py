"""A U-Net that segments the image and rebuilds it, one encoder for both (teacher T1 of MTMS-KD)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_kd.networks.blocks.units import Norm
from monai_kd.networks.halves import Skips
from monai_kd.networks.multi_task import MultiTask, check_reconstruction_skips
from monai_kd.networks.nets.plain_unet import PlainUNet, level_block

__all__ = ["MultiTaskUNet"]


class MultiTaskUNet(MultiTask, PlainUNet):
    """A :class:`PlainUNet` with a second decoder, which rebuilds the image from the same bottleneck.

    In evaluation the output is the logits, and the second decoder does not run. In training it is a mapping of
    ``logits`` and ``reconstruction``, for a term each::

        reconstruction: Term(MSELoss(), "student/reconstruction", "original", weight=0.2)

    With the default channels, 2 axes, 3 -> 1 channels and all four skips in the second decoder, as published:
    43,236,036 parameters, of which the segmentation takes 31,043,521.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image, and of what is rebuilt.
        out_channels: logits, one per class, the background among them.
        channels: of the levels, at least 2; each level halves the resolution.
        norm: in MONAI's terms.
        reconstruction_skips: how many skips, from the deepest up, the second decoder takes. 0, the default, leaves it
            the bottleneck alone. With all of them, as published, the first skip is the image but for two convolutions:
            copying it solves the task, and the bottleneck learns nothing from it.

    Attributes:
        head_names: what a Distiller must have a term for.

    Shape:
        ``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial)``, and ``(B, in_channels, *spatial)`` of any
        sign; every size a multiple of ``feature_stride``.

    Raises:
        ValueError: see :class:`PlainUNet`; or more ``reconstruction_skips`` than there are.

    Source: Biswas 2024, arXiv 2406.03173. There each step runs the network twice, once for each task, and in the
    distillation the decoder runs though nothing reads it.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        norm: Norm = "batch",
        reconstruction_skips: int = 0,
    ) -> None:
        super().__init__(spatial_dims, in_channels, out_channels, channels, norm)
        check_reconstruction_skips(reconstruction_skips, self.skip_count)
        self.reconstruction = _Rebuild(spatial_dims, in_channels, channels, norm, reconstruction_skips)

    def reconstruct(self, features: Tensor, skips: Skips) -> Tensor:
        image: Tensor = self.reconstruction(features, skips)
        return image


class _Rebuild(nn.Module):
    """The decoder of a plain U-Net with so many of the deepest skips."""

    def __init__(self, spatial_dims: int, out_channels: int, channels: Sequence[int], norm: Norm, skips: int) -> None:
        super().__init__()
        up = Conv[Conv.CONVTRANS, spatial_dims]
        levels = [(below, here) for here, below in pairwise(channels)][::-1]
        self.raise_ = nn.ModuleList(up(below, here, 2, stride=2) for below, here in levels)
        self.up = nn.ModuleList(
            level_block(spatial_dims, 2 * here if index < skips else here, here, norm)
            for index, (_, here) in enumerate(levels)
        )
        self.head = Conv[Conv.CONV, spatial_dims](channels[0], out_channels, 1)
        self.skips = skips

    def forward(self, features: Tensor, skips: Skips) -> Tensor:
        for index, (raise_, block, skip) in enumerate(zip(self.raise_, self.up, reversed(skips), strict=True)):
            features = raise_(features)
            features = block(torch.cat([skip, features], dim=1) if index < self.skips else features)
        image: Tensor = self.head(features)
        return image
