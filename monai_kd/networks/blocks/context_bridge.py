"""The bridge of MISSFormer: one attention over the voxels of every level of an encoder (Huang et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks.crossattention import CrossAttentionBlock
from torch import Tensor, nn

from monai_kd.networks.blocks.efficient_transformer import Grid, MixFeedForward, to_map, to_tokens

__all__ = ["ContextBridge", "join_levels", "split_levels"]


class ContextBridge(nn.Module):
    """Maps of several resolutions cut into tokens of one width, which attend to each other.

    A voxel with k times the channels of the finest level is k tokens. Keys and values come from maps that a convolution
    brings to the coarsest level's grid. Behind the attention each level has a perceptron at its own width.

    Args:
        channels: of the levels, finest first, each a multiple of the first; that one is the width of a token.
        num_layers: of attention and perceptrons.

    Shape:
        maps ``(B, channels[i], h_i, w_i)``, each half as fine as the one before, to the same.

    Source: Huang et al. 2021, arXiv 2109.07162, section 3.3, at 1 head; details from the authors' repository,
    ZhifangDeng/MISSFormer. There places of tokens are written out for an image of 224 pixels; here they follow from the
    maps. As there, a voxel's keys and values hold every k-th channel each, while its queries hold consecutive ones: the
    published weights know no other order.
    """

    def __init__(self, channels: Sequence[int], num_layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_BridgeLayer(channels) for _ in range(num_layers))
        self.levels = nn.ModuleList(_LevelMap() for _ in channels)  # modules, so that the maps can be tapped

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        shares = [level.shape[1] // maps[0].shape[1] for level in maps]
        grids = [_grid(level) for level in maps]
        tokens = join_levels([to_tokens(level) for level in maps], maps[0].shape[1])
        for layer in self.layers:
            tokens = layer(tokens, grids)
        parts = split_levels(tokens, grids, shares)
        return [level(part, grid) for level, part, grid in zip(self.levels, parts, grids, strict=True)]


def join_levels(levels: Sequence[Tensor], width: int) -> Tensor:
    """Cut the tokens of every level into tokens of one width, and string them together.

    Args:
        levels: ``(B, h_i * w_i, k_i * width)``, finest first.
        width: of the tokens returned.

    Returns:
        ``(B, sum of k_i * h_i * w_i, width)``; the tokens of a voxel are neighbors.
    """
    return torch.cat([level.reshape(level.shape[0], -1, width) for level in levels], dim=1)


def split_levels(tokens: Tensor, grids: Sequence[Grid], shares: Sequence[int]) -> list[Tensor]:
    """Undo :func:`join_levels`.

    Args:
        tokens: ``(B, sum of k_i * h_i * w_i, width)``.
        grids: ``(h_i, w_i)`` of each level.
        shares: ``k_i``, tokens per voxel of each level.

    Returns:
        ``(B, h_i * w_i, k_i * width)`` for each level.
    """
    counts = [height * width * share for (height, width), share in zip(grids, shares, strict=True)]
    parts = tokens.split(counts, dim=1)
    return [
        part.reshape(part.shape[0], height * width, share * part.shape[2])
        for part, (height, width), share in zip(parts, grids, shares, strict=True)
    ]


class _BridgeLayer(nn.Module):
    """Attention over all levels, then a perceptron for each, both normalized before and added to their input."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.shares = [width // channels[0] for width in channels]
        self.norm_attention, self.norm_mlp = nn.LayerNorm(channels[0]), nn.LayerNorm(channels[0])
        self.attention = _BridgeAttention(channels)
        self.mlps = nn.ModuleList(MixFeedForward(width) for width in channels)

    def forward(self, tokens: Tensor, grids: Sequence[Grid]) -> Tensor:
        tokens = tokens + self.attention(self.norm_attention(tokens), grids)
        parts = split_levels(self.norm_mlp(tokens), grids, self.shares)
        mixed = [mlp(part, grid) for mlp, part, grid in zip(self.mlps, parts, grids, strict=True)]
        return tokens + join_levels(mixed, tokens.shape[2])


class _BridgeAttention(nn.Module):
    """Attention of the tokens of every level to those of the same levels on the coarsest grid."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.shares = [width // channels[0] for width in channels]
        steps = range(len(channels) - 1, 0, -1)
        self.reduce = nn.ModuleList(
            nn.Conv2d(width, width, 2**step, 2**step) for width, step in zip(channels[:-1], steps, strict=True)
        )
        self.norm = nn.LayerNorm(channels[0])
        self.attend = CrossAttentionBlock(channels[0], num_heads=1, qkv_bias=True, use_flash_attention=True)

    def forward(self, tokens: Tensor, grids: Sequence[Grid]) -> Tensor:
        width = tokens.shape[2]
        *finer, coarsest = split_levels(tokens, grids, self.shares)
        context = [
            # (B, k * width, h, w) -> (B, width, k * h * w): of k channels in a row one to each token, see ContextBridge
            reduce(to_map(part, grid)).reshape(part.shape[0], width, -1).transpose(1, 2)
            for reduce, part, grid in zip(self.reduce, finer, grids[:-1], strict=True)
        ]
        context.append(join_levels([coarsest], width))
        attended: Tensor = self.attend(tokens, self.norm(torch.cat(context, dim=1)))
        return attended


class _LevelMap(nn.Module):
    """The tokens of a level as a map."""

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        return to_map(tokens, grid)


def _grid(features: Tensor) -> Grid:
    height, width = features.shape[2:]
    return height, width
