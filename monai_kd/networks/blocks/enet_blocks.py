"""The bottleneck blocks of ENet: plain, dilated, asymmetric, downwards and upwards (Paszke et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from monai_kd.networks.blocks.units import Norm, relu, unit
from monai_kd.networks.layers.shared_prelu import SharedPReLU

__all__ = ["ENetBlock", "ENetDown", "ENetUp", "unpool"]

Act = Callable[[], nn.Module]


class ENetBlock(nn.Module):
    """A residual block that works on a quarter of the channels.

    Args:
        channels: of input and output, at least 4.
        dilation: of its 3x3 convolution, in voxels.
        asymmetric: a 5x1 and a 1x5 convolution in place of the 3x3.
        dropout: share of the channels of the branch that are forgotten in training.
        act: makes an activation: PReLU in the encoder, ReLU in the decoder.
        norm: in MONAI's terms.

    Shape:
        ``(B, channels, H, W)`` to the same.

    Source: Paszke et al. 2016, "ENet", section 3; one slope per PReLU and an activation behind each convolution, with
    which the number of parameters of the network is the usual one.
    """

    def __init__(
        self,
        channels: int,
        dilation: int = 1,
        asymmetric: bool = False,
        dropout: float = 0.1,
        act: Act = SharedPReLU,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        inside = channels // 4
        kernels: list[int | tuple[int, int]] = [(5, 1), (1, 5)] if asymmetric else [3]
        self.branch = nn.Sequential(
            unit(channels, inside, 1, norm, act()),
            *(unit(inside, inside, kernel, norm, act(), dilation=dilation) for kernel in kernels),
            unit(inside, channels, 1, norm, act()),
            nn.Dropout2d(dropout),
        )
        self.act = act()

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.act(features + self.branch(features))
        return result


class ENetDown(nn.Module):
    """Halve the resolution: max-pooling beside a branch whose first convolution is 2x2 with stride 2.

    Args:
        in_channels, out_channels: at least 4 and no fewer than ``in_channels``; pooled maps are filled up with zeros.
        dropout, norm: see :class:`ENetBlock`.

    Shape:
        ``(B, in_channels, H, W)`` with even sizes, to ``(B, out_channels, H / 2, W / 2)`` and the places of the maxima,
        ``(B, in_channels, H / 2, W / 2)`` whole numbers as ``torch.nn.functional.max_pool2d`` counts them.

    Source: Paszke et al. 2016, section 3.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.1, norm: Norm = "batch") -> None:
        super().__init__()
        inside = in_channels // 4
        self.missing = out_channels - in_channels
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, inside, 2, stride=2, bias=False),
            get_norm_layer(norm, spatial_dims=2, channels=inside),
            SharedPReLU(),
            unit(inside, inside, 3, norm, SharedPReLU()),
            unit(inside, out_channels, 1, norm, SharedPReLU()),
            nn.Dropout2d(dropout),
        )
        self.act = SharedPReLU()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        highest, places = F.max_pool2d(features, 2, return_indices=True)
        filled = F.pad(highest, (0, 0, 0, 0, 0, self.missing))
        return self.act(filled + self.branch(features)), places


class ENetUp(nn.Module):
    """Double the resolution: values put back to where the maxima were, beside a transposed convolution.

    Args:
        in_channels, out_channels: at least 4.
        dropout, norm: see :class:`ENetBlock`.

    Shape:
        ``(B, in_channels, H, W)`` and places ``(B, out_channels, H, W)`` to ``(B, out_channels, 2 H, 2 W)``.

    Source: Paszke et al. 2016, section 3.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.1, norm: Norm = "batch") -> None:
        super().__init__()
        inside = in_channels // 4
        self.main = unit(in_channels, out_channels, 1, norm)
        self.branch = nn.Sequential(
            unit(in_channels, inside, 1, norm, relu()),
            nn.ConvTranspose2d(inside, inside, 2, stride=2, bias=False),
            get_norm_layer(norm, spatial_dims=2, channels=inside),
            relu(),
            unit(inside, out_channels, 1, norm),
            nn.Dropout2d(dropout),
        )

    def forward(self, features: Tensor, places: Tensor) -> Tensor:
        return (unpool(self.main(features), places) + self.branch(features)).relu_()


def unpool(features: Tensor, places: Tensor) -> Tensor:
    """Put each value to its place in a map of twice the size, zeros elsewhere.

    What ``torch.nn.functional.max_unpool2d`` does for windows of 2 x 2, with operations that every runtime has and
    that give the same result each time also on a GPU.

    Args:
        features, places: ``(B, C, H, W)``; places as ``max_pool2d`` counts them.

    Returns:
        ``(B, C, 2 H, 2 W)``.
    """
    height, width = 2 * features.shape[2], 2 * features.shape[3]
    here = torch.arange(height * width, device=features.device).reshape(height, width)
    return _doubled(features).masked_fill(_doubled(places) != here, 0.0)


def _doubled(values: Tensor) -> Tensor:
    """Repeat each value in a window of 2 x 2."""
    batch, channels, height, width = values.shape
    windows = values[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
    return windows.reshape(batch, channels, 2 * height, 2 * width)
