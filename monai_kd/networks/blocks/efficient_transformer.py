"""Transformer blocks whose attention looks at a coarser map, and whose perceptron at the neighbors."""

from __future__ import annotations

import torch.nn.functional as F
from monai.networks.blocks.crossattention import CrossAttentionBlock
from torch import Tensor, nn

__all__ = ["EfficientAttention", "EfficientTransformerBlock", "MixFeedForward"]

Grid = tuple[int, int]


class EfficientAttention(nn.Module):
    """Self-attention of all voxels of a map to the voxels of a coarser one, made by a convolution.

    Args:
        channels: of a token, a multiple of ``num_heads``.
        num_heads: of the attention.
        reduction: voxels per voxel of the coarser map along each axis; 1 looks at the map itself.

    Shape:
        tokens ``(B, h * w, channels)`` in row-major order to the same; ``grid`` is ``(h, w)``, multiples of
        ``reduction``.

    Source: Wang et al. 2021, "Pyramid Vision Transformer", with a strided convolution for the reduction, as Xie et al.
    2021, "SegFormer". Attention is MONAI's, computed without the matrix of all pairs in memory.
    """

    def __init__(self, channels: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(channels) if reduction > 1 else None
        self.attend = CrossAttentionBlock(channels, num_heads, qkv_bias=True, use_flash_attention=True)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        context = tokens
        if self.reduce is not None and self.norm is not None:
            context = self.norm(to_tokens(self.reduce(to_map(tokens, grid))))
        attended: Tensor = self.attend(tokens, context)
        return attended


class MixFeedForward(nn.Module):
    """A perceptron whose hidden units also see the 3x3 neighbors: the "enhanced Mix-FFN".

    Args:
        channels: of a token.
        ratio: hidden units per channel.

    Shape:
        tokens ``(B, h * w, channels)`` in row-major order to the same; ``grid`` is ``(h, w)``.

    Source: Huang et al. 2021, "MISSFormer", arXiv 2109.07162, section 3.2. The authors' code has two more layer norms,
    which nothing runs.
    """

    def __init__(self, channels: int, ratio: int = 4) -> None:
        super().__init__()
        hidden = ratio * channels
        self.expand = nn.Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = nn.LayerNorm(hidden)
        self.project = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        hidden = self.expand(tokens)
        around = to_tokens(self.depthwise(to_map(hidden, grid)))
        mixed: Tensor = self.project(F.gelu(self.norm(around + hidden)))
        return mixed


class EfficientTransformerBlock(nn.Module):
    """Efficient attention and a perceptron that sees neighbors, each normalized before and added to its input.

    Args:
        channels: of a token, a multiple of ``num_heads``.
        num_heads: of the attention.
        reduction: see :class:`EfficientAttention`.

    Shape:
        as :class:`EfficientAttention`.

    Source: Huang et al. 2021, arXiv 2109.07162.
    """

    def __init__(self, channels: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = EfficientAttention(channels, num_heads, reduction)
        self.mlp = MixFeedForward(channels)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        tokens = tokens + self.attention(self.norm_attention(tokens), grid)
        seen: Tensor = tokens + self.mlp(self.norm_mlp(tokens), grid)
        return seen


def to_tokens(features: Tensor) -> Tensor:
    """Return a map ``(B, C, h, w)`` as tokens ``(B, h * w, C)`` in row-major order."""
    return features.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """Return tokens ``(B, h * w, C)`` in row-major order as a map ``(B, C, h, w)``."""
    return tokens.transpose(1, 2).unflatten(2, grid)
