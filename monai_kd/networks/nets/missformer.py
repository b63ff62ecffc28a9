"""MISSFormer, a U of transformer blocks with a bridge of attention over its levels (Huang et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_kd.networks.blocks.context_bridge import ContextBridge
from monai_kd.networks.blocks.efficient_transformer import EfficientTransformerBlock, to_map, to_tokens
from monai_kd.networks.halves import EncoderDecoder, Skips, check_widths

__all__ = ["MISSFormer"]

_LEVELS = 4
_BLOCKS = 2  # of each level
_KERNELS, _STRIDES = (7, 3, 3, 3), (4, 2, 2, 2)  # of the convolutions that make tokens, finest level first
_REDUCTIONS = (8, 4, 2, 1)  # of keys and values, so that each level attends to the grid of the lowest


class MISSFormer(EncoderDecoder):
    """A strong 2-D teacher: transformer blocks at 1/4 to 1/32, and skips that have seen each other.

    With the default channels 35,452,745 parameters and 8.0 GMAC for a 224 x 224 image at 1 -> 9 channels.

    Args:
        spatial_dims: 2.
        in_channels: of the image; a single channel is repeated three times, as published.
        out_channels: logits, one per class, the background among them.
        channels: of the four levels, multiples of 4 and of the first, which is the width of a head.
        bridge_layers: of the attention over all levels.

    Attributes:
        feature_channels: of the bottleneck map, the last of ``channels``.
        feature_stride: 32.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``, sizes that are multiples of 32. The bottleneck map is
        the lowest level behind the bridge; :meth:`encode` gives it and the three levels above, behind the bridge too,
        finest first. Stages ``encoder_1`` to ``encoder_4`` lie before the bridge, ``bridged_1`` to ``bridged_3``
        behind, and ``decoder_0`` at full resolution.

    Raises:
        ValueError: a setting out of range; on use an image, features or skips that do not fit.

    Starts from PyTorch's own initialization, the decoder from Xavier's uniform distribution with biases of zero.

    Source: Huang et al. 2021, arXiv 2109.07162 (doi:10.1109/TMI.2022.3230943); details from the authors' repository,
    ZhifangDeng/MISSFormer. That has 42,462,537 parameters: 7,009,792 more for layers that never run (two layer norms in
    each perceptron, all but the expansion in the lowest level of the decoder), none of which exist here, and takes
    images of 224 x 224 alone. It also computes the first layer of each perceptron twice (9.8 GMAC). Keys and values
    have a linear map each in place of one for both.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 320, 512),
        bridge_layers: int = 4,
    ) -> None:
        if spatial_dims != 2:
            raise ValueError(f"spatial_dims is {spatial_dims!r}; MISSFormer takes 2: its tokens lie in a plane")
        check_widths("channels", channels, levels=_LEVELS, multiple=4)
        if any(width % channels[0] for width in channels):
            raise ValueError(f"channels is {channels!r}; give multiples of the first, the width of a head")
        if isinstance(bridge_layers, bool) or not isinstance(bridge_layers, int) or bridge_layers < 1:
            raise ValueError(f"bridge_layers is {bridge_layers!r}; it must be a whole number above 0")
        super().__init__(in_channels, channels[-1], feature_stride=32, skip_count=_LEVELS - 1)
        heads = [width // channels[0] for width in channels]
        before = [3 if in_channels == 1 else in_channels, *channels[:-1]]
        self.stages = nn.ModuleList(
            _EncoderLevel(*settings)
            for settings in zip(before, channels, _KERNELS, _STRIDES, heads, _REDUCTIONS, strict=True)
        )
        self.bridge = ContextBridge(channels, bridge_layers)
        # from the lowest level to 1/4, then to full resolution
        self.up = nn.ModuleList(
            _DecoderLevel(channels[level + 1], channels[level], heads[level], _REDUCTIONS[level])
            for level in range(_LEVELS - 2, -1, -1)
        )
        self.raise_ = _Expand(channels[0], channels[0], factor=_STRIDES[0])
        self.head = nn.Conv2d(channels[0], out_channels, 1)
        for part in (self.up, self.raise_, self.head):
            part.apply(_start)

    @property
    def tap_stages(self) -> dict[str, str]:
        encoders = {f"encoder_{index + 1}": f"stages.{index}" for index in range(_LEVELS)}
        bridged = {f"bridged_{index + 1}": f"bridge.levels.{index}" for index in range(_LEVELS - 1)}
        decoders = {f"decoder_{_LEVELS - 1 - index}": f"up.{index}" for index in range(_LEVELS - 1)}
        bottleneck = f"bridge.levels.{_LEVELS - 1}"
        return {**encoders, **bridged, "bottleneck": bottleneck, **decoders, "decoder_0": "raise_"}

    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        features = image.repeat(1, 3, 1, 1) if self.in_channels == 1 else image
        maps: list[Tensor] = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        *skips, bottleneck = self.bridge(maps)
        return bottleneck, tuple(skips)

    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        for level, skip in zip(self.up, reversed(skips), strict=True):
            features = level(features, skip)
        logits: Tensor = self.head(self.raise_(features))
        return logits


class _EncoderLevel(nn.Module):
    """A convolution over overlapping patches, then transformer blocks on its voxels."""

    def __init__(
        self, in_channels: int, channels: int, kernel_size: int, stride: int, num_heads: int, reduction: int
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2)
        self.embed_norm, self.norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.blocks = _blocks(channels, num_heads, reduction)

    def forward(self, features: Tensor) -> Tensor:
        embedded = self.embed(features)
        height, width = embedded.shape[2:]
        tokens = self.embed_norm(to_tokens(embedded))
        for block in self.blocks:
            tokens = block(tokens, (height, width))
        return to_map(self.norm(tokens), (height, width))


class _DecoderLevel(nn.Module):
    """Double the resolution, join the skip, then transformer blocks."""

    def __init__(self, below: int, here: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.expand = _Expand(below, below // 2, factor=2)
        self.join = nn.Linear(below // 2 + here, here)
        self.blocks = _blocks(here, num_heads, reduction)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        joined = torch.cat([self.expand(features), skip], dim=1)
        height, width = joined.shape[2:]
        tokens = self.join(to_tokens(joined))
        for block in self.blocks:
            tokens = block(tokens, (height, width))
        return to_map(tokens, (height, width))


class _Expand(nn.Module):
    """Raise the resolution: a linear map gives each voxel the channels of the finer voxels that it becomes."""

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.factor, self.out_channels = factor, out_channels
        self.linear = nn.Linear(in_channels, factor**2 * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        finer = self.linear(features.permute(0, 2, 3, 1)).unflatten(3, (self.factor, self.factor, self.out_channels))
        # (B, h, w, rows, columns, C) -> (B, C, h * rows, w * columns)
        raised: Tensor = self.norm(finer).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return raised


def _blocks(channels: int, num_heads: int, reduction: int) -> nn.ModuleList:
    return nn.ModuleList(EfficientTransformerBlock(channels, num_heads, reduction) for _ in range(_BLOCKS))


def _start(module: nn.Module) -> None:
    """Give a layer of the decoder its first weights."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
