"""Convolutions with standardized weights, and the residual block that BiT and hybrid transformers make of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["StandardizedBottleneck", "StandardizedConv2d"]

NORM_EPS = 1e-6  # of the GroupNorms of the main branch
_WEIGHT_EPS = 1e-5


class StandardizedConv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` whose weights are used with mean 0 and variance 1 per output channel.

    The weights themselves are stored and learned as they are. Padding is with zeros.

    Args, Shape: see ``torch.nn.Conv2d``.

    Source: Qiao et al. 2019, arXiv 1903.10520, with the variance of the population and 1e-5 beside it.
    """

    def forward(self, features: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + _WEIGHT_EPS)
        return F.conv2d(features, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StandardizedBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 standardized convolutions, a GroupNorm behind each, plus the input; then ReLU.

    Where the shape changes the input passes a standardized 1x1 convolution and a GroupNorm with a group per channel.

    Args:
        in_channels, out_channels: of the block; it is a quarter of ``out_channels`` wide inside.
        stride: of the 3x3 convolution.
        norm_groups: of the three GroupNorms, a divisor of the width inside.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, out_channels, H / stride, W / stride)``, rounded up.

    Source: Kolesnikov et al. 2020, "Big Transfer", in the order of Chen et al. 2021 ("TransUNet"): their class is named
    after pre-activation, their code normalizes and activates behind the convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, norm_groups: int = 32) -> None:
        super().__init__()
        inner = out_channels // 4
        self.conv1 = StandardizedConv2d(in_channels, inner, 1, bias=False)
        self.norm1 = nn.GroupNorm(norm_groups, inner, eps=NORM_EPS)
        self.conv2 = StandardizedConv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(norm_groups, inner, eps=NORM_EPS)
        self.conv3 = StandardizedConv2d(inner, out_channels, 1, bias=False)
        self.norm3 = nn.GroupNorm(norm_groups, out_channels, eps=NORM_EPS)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                StandardizedConv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.GroupNorm(out_channels, out_channels),
            )
        self.act = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        inside = self.act(self.norm1(self.conv1(features)))
        inside = self.act(self.norm2(self.conv2(inside)))
        added: Tensor = self.act(self.norm3(self.conv3(inside)) + self.shortcut(features))
        return added
