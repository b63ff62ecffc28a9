"""A U-Net on MobileNetV2, the student of GKD (Qi et al. 2024)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kd.networks.blocks import InvertedResidual
from monai_kd.networks.blocks.inverted_residual import relu6
from monai_kd.networks.blocks.units import Norm, unit
from monai_kd.networks.halves import EncoderDecoder, Skips

__all__ = ["MobileNetV2UNet"]

# for each stage the groups of inverted residuals: expansion, channels, how many, stride of the first
_STAGES = (
    ((1, 16, 1, 1),),
    ((6, 24, 2, 2),),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class MobileNetV2UNet(EncoderDecoder):
    """A light 2-D student: MobileNetV2 as encoder, four transposed convolutions with inverted residuals as decoder.

    The decoder ends at half resolution; logits are brought to full size by linear interpolation. At 1 -> 2 channels
    4,682,298 parameters, 4,682,323 with ``published``; 0.241 GMAC for a 128 x 128 image (encoder 0.095).

    Args:
        in_channels: of the image.
        out_channels: logits, one per class, the background among them.
        width: factor of all channels, which become multiples of 8; 1 as published.
        reduced_channels: of a 1x1 convolution that narrows the bottleneck map, such as 256; none as published. The
            first transposed convolution has 42 % of all parameters without it.
        norm: in MONAI's terms: ``batch``, ``instance`` or ``("group", {"num_groups": 8})``.
        published: the head as published, two linear 1x1 convolutions with 3 channels between them, so that logits of
            more than 3 classes are not independent; else one.

    Attributes:
        feature_channels: of the bottleneck map, 1280 or ``reduced_channels``.
        feature_stride: 32.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``, sizes that are multiples of 32. :meth:`encode` gives
        the bottleneck map, whose values lie from 0 to 6, and the four stages above it, finest first.

    Raises:
        ValueError: a setting out of range; on use an image, features or skips that do not fit.

    Starts from PyTorch's own initialization.

    Source: Qi et al. 2024, doi:10.1109/jbhi.2024.3385098, with Sandler et al. 2018, table 2; details from its released
    networks. Those have 5,963,323 parameters: 1,281,000 more for a classifier of 1,000 classes that is never used.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: float = 1.0,
        reduced_channels: int | None = None,
        norm: Norm = "batch",
        published: bool = False,
    ) -> None:
        if not width > 0:
            raise ValueError(f"width is {width!r}; give a factor above 0")
        if reduced_channels is not None and (not isinstance(reduced_channels, int) or reduced_channels < 1):
            raise ValueError(f"reduced_channels is {reduced_channels!r}; give a whole number above 0, or none")
        last = _scaled(1280, width)
        super().__init__(in_channels, reduced_channels or last, feature_stride=32, skip_count=4)
        stem, deepest = _scaled(32, width), _scaled(320, width)
        stages: list[list[nn.Module]] = []
        before = stem
        for groups in _STAGES:
            blocks, before = _stage(groups, before, width, norm)
            stages.append(blocks)
        stages[0].insert(0, unit(in_channels, stem, 3, norm, relu6(), stride=2))
        stages[-1].append(unit(deepest, last, 1, norm, relu6()))
        if reduced_channels is not None:
            stages[-1].append(unit(last, reduced_channels, 1, norm, relu6()))
        self.down = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        # from the lowest stage to half resolution
        sizes = [_scaled(groups[-1][1], width) for groups in _STAGES[-2::-1]]
        steps = list(pairwise([self.feature_channels, *sizes]))
        self.raise_ = nn.ModuleList(nn.ConvTranspose2d(below, here, 4, stride=2, padding=1) for below, here in steps)
        self.up = nn.ModuleList(InvertedResidual(2 * here, here, norm=norm) for here in sizes)
        widths = [sizes[-1], *([3] if published else []), out_channels]
        self.head = nn.Sequential(*(nn.Conv2d(before, after, 1) for before, after in pairwise(widths)))

    @property
    def tap_stages(self) -> dict[str, str]:
        encoders = {f"encoder_{number}": f"down.{number - 1}" for number in range(1, 5)}
        return {**encoders, "bottleneck": "down.4", **{f"decoder_{4 - index}": f"up.{index}" for index in range(4)}}

    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        skips: list[Tensor] = []
        features = image
        for stage in self.down[:-1]:
            features = stage(features)
            skips.append(features)
        return self.down[-1](features), tuple(skips)

    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        for raise_, block, skip in zip(self.raise_, self.up, reversed(skips), strict=True):
            features = block(torch.cat([skip, raise_(features)], dim=1))
        return F.interpolate(self.head(features), scale_factor=2.0, mode="bilinear", align_corners=False)


def _stage(
    groups: tuple[tuple[int, int, int, int], ...], before: int, width: float, norm: Norm
) -> tuple[list[nn.Module], int]:
    """Return the inverted residuals of a stage, and how many channels they give."""
    blocks: list[nn.Module] = []
    for expansion, channels, count, stride in groups:
        for index in range(count):
            after = _scaled(channels, width)
            blocks.append(InvertedResidual(before, after, stride if index == 0 else 1, expansion, norm))
            before = after
    return blocks, before


def _scaled(channels: int, width: float) -> int:
    return max(8, round(channels * width / 8) * 8)
