"""The block of MobileNetV2: few channels outside, many inside (Sandler et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from monai_kd.networks.blocks.units import Norm, unit

__all__ = ["InvertedResidual"]


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel by itself with 3x3, narrow by a 1x1 convolution.

    Where input and output have the same shape, the input is added. The output has no activation.

    Args:
        in_channels, out_channels: outside.
        stride: of the 3x3 convolution, 1 or 2.
        expansion: channels inside per channel of the input; with 1 there is no widening convolution.
        norm: in MONAI's terms.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, out_channels, H / stride, W / stride)``, rounded up.

    Source: Sandler et al. 2018, "MobileNetV2", section 3.3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, expansion: int = 6, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        inside = in_channels * expansion
        widen = [unit(in_channels, inside, 1, norm, relu6())] if expansion != 1 else []
        self.layers = nn.Sequential(
            *widen,
            unit(inside, inside, 3, norm, relu6(), stride=stride, groups=inside),
            unit(inside, out_channels, 1, norm),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.layers(features)
        return features + result if self.residual else result


def relu6() -> nn.ReLU6:
    return nn.ReLU6(inplace=True)
