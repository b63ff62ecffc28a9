"""Blocks that choose between a wide and a narrow kernel, channel by channel (Li et al. 2019)."""

from __future__ import annotations

import torch
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from monai_kd.networks.blocks.steady_norm import steady_mean
from monai_kd.networks.blocks.units import Norm, relu, unit

__all__ = ["SelectiveKernelBlock", "SelectiveKernelConv"]


class SelectiveKernelConv(nn.Module):
    """A 5x5 and a 3x3 convolution side by side, and a small network that weighs them for each channel.

    The sum of both is averaged over the image; from these ``channels`` numbers come two scores per channel, and a
    softmax over the two gives the shares with which the branches are added.

    Args:
        channels: of input and output, even.
        norm: in MONAI's terms; none that needs more than one voxel, so no instance norm.
        bias: whether convolutions in front of a norm have biases, which the norm takes away again.

    Shape:
        ``(B, channels, H, W)`` to the same. In training with batch norm B is at least 2: the averages are normalized.

    Raises:
        ValueError: instance norm, or channels that are odd.

    Source: Li et al. 2019, "Selective Kernel Networks", section 3.1. The wide kernel is a true 5x5 as in GKD (Qi et al.
    2024), where the paper dilates a 3x3, and the hidden layer has half the channels, where the paper has at least 32.
    """

    def __init__(self, channels: int, norm: Norm = "batch", bias: bool = False) -> None:
        super().__init__()
        name = norm if isinstance(norm, str) else norm[0]
        if name.lower().startswith("instance"):
            raise ValueError(
                "a SelectiveKernelConv normalizes averages, single voxels on which instance norm has no variance; give "
                "'batch' or ('group', {'num_groups': ...})"
            )
        if channels % 2:
            raise ValueError(f"channels of a SelectiveKernelConv is {channels!r}; give an even number")
        hidden = channels // 2
        self.wide = unit(channels, channels, 5, norm, relu(), bias=bias)
        self.narrow = unit(channels, channels, 3, norm, relu(), bias=bias)
        self.squeeze = unit(channels, hidden, 1, norm, relu(), bias=bias)
        self.scores = nn.ModuleList(nn.Conv2d(hidden, channels, 1) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        wide, narrow = self.wide(features), self.narrow(features)
        shares = self.shares(wide + narrow)
        return shares[0] * wide + shares[1] * narrow

    def shares(self, both: Tensor) -> Tensor:
        """Return the shares of the two branches, ``(2, B, C, 1, 1)``, from their sum."""
        exporting = torch.compiler.is_exporting()
        code = self.squeeze(steady_mean(both, 2) if exporting else both.mean(dim=(2, 3), keepdim=True))
        return torch.stack([score(code) for score in self.scores]).softmax(dim=0)


class SelectiveKernelBlock(nn.Module):
    """A residual block: 1x1 convolution, :class:`SelectiveKernelConv`, 1x1 convolution, each with a norm.

    Args:
        in_channels: of the input; where it differs from ``channels``, the skip has a 1x1 convolution with norm.
        channels: of the output, even.
        norm, bias: see :class:`SelectiveKernelConv`; the 1x1 convolutions have no biases.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, channels, H, W)``.

    Source: SK-U-Net of GKD (Qi et al. 2024), see :class:`monai_kd.networks.nets.SKUNet`.
    """

    def __init__(self, in_channels: int, channels: int, norm: Norm = "batch", bias: bool = False) -> None:
        super().__init__()
        self.main = nn.Sequential(
            unit(in_channels, channels, 1, norm, relu()),
            SelectiveKernelConv(channels, norm, bias),
            get_norm_layer(norm, spatial_dims=2, channels=channels),
            relu(),
            unit(channels, channels, 1, norm),
        )
        self.skip = nn.Identity() if in_channels == channels else unit(in_channels, channels, 1, norm)

    def forward(self, features: Tensor) -> Tensor:
        return (self.main(features) + self.skip(features)).relu_()
