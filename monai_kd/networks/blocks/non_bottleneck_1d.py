"""The block of ERFNet: 3x3 convolutions taken apart into columns and rows (Romera et al. 2018)."""

from __future__ import annotations

from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from monai_kd.networks.blocks.units import Norm, relu

__all__ = ["NonBottleneck1D"]


class NonBottleneck1D(nn.Module):
    """A residual block of two pairs of a 3x1 and a 1x3 convolution, the second pair dilated.

    Args:
        channels: of input and output.
        dilation: of the second pair, in voxels.
        dropout: share of the channels of the branch that are forgotten in training.
        norm: in MONAI's terms, behind each pair.

    Shape:
        ``(B, channels, H, W)`` to the same.

    Source: Romera et al. 2018, "ERFNet", figure 2c. Convolutions have biases, also in front of the norm, as there.
    """

    def __init__(self, channels: int, dilation: int = 1, dropout: float = 0.0, norm: Norm = "batch") -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_pair(channels, 1, norm), relu(), *_pair(channels, dilation, norm), nn.Dropout2d(dropout)
        )

    def forward(self, features: Tensor) -> Tensor:
        return (self.layers(features) + features).relu_()


def _pair(channels: int, dilation: int, norm: Norm) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1)),
        relu(),
        nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation)),
        get_norm_layer(norm, spatial_dims=2, channels=channels),
    ]
