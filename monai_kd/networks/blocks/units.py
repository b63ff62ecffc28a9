"""A 2-D convolution with its normalization and activation, of which the blocks here are made."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

__all__: list[str] = []

Norm: TypeAlias = str | tuple[str, dict[str, Any]]


def unit(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    norm: Norm,
    act: nn.Module | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    """Return a convolution that keeps the size (but for its stride), a norm and, where given, an activation."""
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    padding = (dilation * (sizes[0] // 2), dilation * (sizes[1] // 2))
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, sizes, stride, padding, dilation, groups, bias),
        get_norm_layer(norm, spatial_dims=2, channels=out_channels),
        *([] if act is None else [act]),
    )


def relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


def conv_beside_pool(convolution: nn.Conv2d, features: Tensor) -> Tensor:
    """Join a 3x3 convolution of stride 2 and padding 1 with max-pooling, on even sizes.

    There the padding below and to the right is never read. An exported graph goes without it, so that both halves have
    the same size by the same formula: the exporter could not prove two formulas equal.
    """
    if torch.compiler.is_exporting():
        padded = F.pad(features, (1, 0, 1, 0))
        halved = F.conv2d(padded, convolution.weight, convolution.bias, stride=2)
    else:
        halved = convolution(features)
    return torch.cat([halved, F.max_pool2d(features, 2)], dim=1)
