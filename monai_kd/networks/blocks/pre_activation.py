"""The residual block of MTCM-KD's U-Net: normalization and activation before each convolution (He et al. 2016)."""

from __future__ import annotations

from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_kd.networks.blocks.steady_norm import SteadyGroupNorm

__all__ = ["PreActivationResBlock", "group_norm"]

_SLOPE = 0.01  # of every LeakyReLU


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm of 6 groups where 6 divides the channels, else of 4.

    Raises:
        ValueError: neither divides them.
    """
    groups = next((count for count in (6, 4) if channels % count == 0), None)
    if groups is None:
        raise ValueError(f"{channels} channels cannot be normalized in 6 or 4 groups; take a multiple of 4 or 6")
    return SteadyGroupNorm(groups, channels)


class PreActivationResBlock(nn.Module):
    """Two 3x3x3 convolutions, each behind GroupNorm and LeakyReLU, plus a convolution of the input round them.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: multiples of 4 or of 6.
        stride: of the first convolution and of the skip.
        skip_kernel_size: 3 as published, or 1, which saves a third of the block.

    Shape:
        ``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial / stride)``.

    Source: Ahmad et al. 2024 (MTCM-KD), whose skip is a 3x3x3 convolution and a GroupNorm, without activation.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, stride: int = 1, skip_kernel_size: int = 3
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.main = nn.Sequential(
            group_norm(in_channels),
            nn.LeakyReLU(_SLOPE, inplace=True),  # of a fresh normalization, as below: one map less to keep
            conv(in_channels, out_channels, 3, stride=stride, padding=1),
            group_norm(out_channels),
            nn.LeakyReLU(_SLOPE, inplace=True),
            conv(out_channels, out_channels, 3, padding=1),
        )
        self.skip = nn.Sequential(
            conv(in_channels, out_channels, skip_kernel_size, stride=stride, padding=skip_kernel_size // 2),
            group_norm(out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = self.main(features) + self.skip(features)
        return added
