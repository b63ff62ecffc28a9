"""A vision transformer from a feature map to a feature map: each voxel is a token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.blocks import MLPBlock, SABlock
from torch import Tensor, nn

__all__ = ["TokenTransformer"]

_NORM_EPS = 1e-6


class TokenTransformer(nn.Module):
    """A 1x1 patch embedding, learned positions, and blocks that are normalized before; without a class token.

    Args:
        in_channels: of the map.
        hidden_size: of a token, a multiple of ``num_heads``.
        mlp_dim: hidden units of each block's perceptron.
        num_layers: number of blocks.
        num_heads: of the attention.
        position_grid: cells of the learned positions along each axis. They are brought to other grids linearly with
            aligned corners, as ``scipy.ndimage.zoom`` of order 1 does and the published loaders do once.
        dropout: share of the embedding, and of what the perceptrons give, that is forgotten in training; the attention
            forgets nothing.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, hidden_size, H, W)``.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929. Attention and perceptron are MONAI's; its ``TransformerBlock``
    has weights for cross-attention as well. Positions start from small random numbers, as theirs do.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        mlp_dim: int,
        num_layers: int,
        num_heads: int,
        position_grid: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(in_channels, hidden_size, 1)
        self.positions = nn.Parameter(torch.zeros(1, hidden_size, position_grid, position_grid))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(hidden_size, mlp_dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size, eps=_NORM_EPS)

    def forward(self, features: Tensor) -> Tensor:
        grid = features.shape[2:]
        # also where the grid is the table's, for which this changes no bit: an exported graph takes every grid
        positions = F.interpolate(self.positions, size=tuple(grid), mode="bilinear", align_corners=True)
        tokens = self.drop((self.embedding(features) + positions).flatten(2).transpose(1, 2))  # (B, H * W, hidden)
        for block in self.blocks:
            tokens = block(tokens)
        seen: Tensor = self.norm(tokens).transpose(1, 2).unflatten(2, grid)
        return seen


class _Block(nn.Module):
    def __init__(self, hidden_size: int, mlp_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(hidden_size, eps=_NORM_EPS)
        self.norm_mlp = nn.LayerNorm(hidden_size, eps=_NORM_EPS)
        self.attention = SABlock(hidden_size, num_heads, qkv_bias=True, use_flash_attention=True)
        self.mlp = MLPBlock(hidden_size, mlp_dim, dropout)
        for layer in (self.mlp.linear1, self.mlp.linear2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm_attention(tokens))
        seen: Tensor = tokens + self.mlp(self.norm_mlp(tokens))
        return seen
