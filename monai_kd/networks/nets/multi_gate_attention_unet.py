"""The ResNet U-Net with two attention gates on each skip connection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_kd.networks.any_size import to_grid
from monai_kd.networks.blocks.resnet_v1c import convolution
from monai_kd.networks.blocks.units import Norm
from monai_kd.networks.nets.resnet_unet import ResNetUNet

__all__ = ["MultiGateAttentionUNet"]


class MultiGateAttentionUNet(ResNetUNet):
    """A :class:`ResNetUNet` that weighs the voxels of each skip by what the decoder has found below.

    At 2 axes, 1 -> 9 channels and depth 18: 15,076,271 parameters and 12.4 GMAC for a 224 x 224 image; the auxiliary
    head has 2,313 more.

    Args, Attributes, Shape, Raises: see :class:`ResNetUNet`.

    Stages: as there, and for each level, 3 to 1, ``gated_3``, which replaces the skip, with ``attention_3_1`` and
    ``attention_3_2``, one channel from 0 to 1 at half the skip's resolution.

    Source: Schlemper et al. 2019, arXiv 1808.08114, with the two gates of their "multi-attention" form, as in DPC-Net,
    whose number of parameters this has; depth 50 is not published. MONAI's ``AttentionUnet`` has one gate per skip, at
    the skip's resolution, and raises the decoder's map before it. Gates start from PyTorch's own initialization: by
    fan-out the attention, one channel made of many, would start saturated.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        depth: int = 18,
        channels: Sequence[int] = (64, 128, 256, 512),
        dropout: float = 0.1,
        norm: Norm | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__(spatial_dims, in_channels, out_channels, depth, channels, dropout, norm, deep_supervision)
        widths = self.encoder.out_channels
        self.gates = nn.ModuleList(
            _MultiGate(spatial_dims, widths[level], widths[level + 1], self.norm) for level in (2, 1, 0)
        )

    @property
    def tap_stages(self) -> dict[str, str]:
        gates: dict[str, str] = {}
        for index in range(3):
            gates[f"gated_{3 - index}"] = f"gates.{index}"
            for number in (1, 2):
                gates[f"attention_{3 - index}_{number}"] = f"gates.{index}.gates.{number - 1}.attention"
        return {**super().tap_stages, **gates}

    def gated_skip(self, index: int, skip: Tensor, features: Tensor) -> Tensor:
        gated: Tensor = self.gates[index](skip, features)
        return gated


class _MultiGate(nn.Module):
    """Gate a skip twice, by the decoder's map on any grid, and join both to the channels of one."""

    def __init__(self, spatial_dims: int, channels: int, gating_channels: int, norm: Norm) -> None:
        super().__init__()
        self.gates = nn.ModuleList(_AttentionGate(spatial_dims, channels, gating_channels, norm) for _ in range(2))
        self.join = convolution(spatial_dims, 2 * channels, channels, 1, norm, bias=True)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([gate(skip, gating) for gate in self.gates], dim=1))
        return joined


class _AttentionGate(nn.Module):
    """Multiply each voxel of a skip by a number that the skip, at half its resolution, and the decoder's map give."""

    def __init__(self, spatial_dims: int, channels: int, gating_channels: int, norm: Norm) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.of_skip = conv(channels, channels, 2, stride=2, bias=False)
        self.of_gating = conv(gating_channels, channels, 1)
        self.attention = nn.Sequential(nn.ReLU(inplace=True), conv(channels, 1, 1), nn.Sigmoid())
        self.project = convolution(spatial_dims, channels, channels, 1, norm, None, bias=True)

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        padded = F.pad(skip, (0, 1) * (skip.ndim - 2))  # the stride rounds up; even sizes do not read it
        coarse = self.of_skip(padded)
        attention = self.attention(coarse + to_grid(self.of_gating(gating), coarse.shape[2:]))
        weighed: Tensor = self.project(skip * to_grid(attention, skip.shape[2:]))
        return weighed
