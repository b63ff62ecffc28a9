"""ERFNet, a student of two million parameters (Romera et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from monai_kd.networks.blocks import NonBottleneck1D
from monai_kd.networks.blocks.units import Norm, conv_beside_pool, relu
from monai_kd.networks.halves import EncoderDecoder, Skips, check_widths, grid_of

__all__ = ["ERFNet"]


class ERFNet(EncoderDecoder):
    """A small 2-D network of factorized residual blocks, without skip connections.

    With the default channels 2,062,872 parameters and 0.826 GMAC for a 128 x 128 image at 1 -> 2 channels.

    Args:
        in_channels: of the image, fewer than the first of ``channels``.
        out_channels: logits, one per class, the background among them.
        channels: at strides 2, 4 and 8, each larger than the one before.
        dropout: share of the channels that each block of the encoder forgets in training, at strides 4 and 8.
        norm: in MONAI's terms: ``batch``, ``instance`` or ``("group", {"num_groups": 8})``.

    Attributes:
        feature_channels: of the bottleneck map, the last of ``channels``.
        feature_stride: 8.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``, sizes that are multiples of 8. :meth:`encode` gives
        the bottleneck map and one empty tensor ``(B, 0, H / 8, W / 8)``, by which :meth:`decode` knows the size.

    Raises:
        ValueError: a setting out of range; on use an image, features or skips that do not fit.

    Starts from PyTorch's own initialization.

    Source: Romera et al. 2018, doi:10.1109/TITS.2017.2750080, table I, as a student in GKD (Qi et al. 2024). The
    2,063,130 parameters given there count the 258 of a head on the encoder that its pretraining alone uses, which does
    not exist here.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (16, 64, 128),
        dropout: tuple[float, float] = (0.03, 0.3),
        norm: Norm = ("batch", {"eps": 1e-3}),
    ) -> None:
        check_widths("channels", channels, levels=3)
        if not in_channels < channels[0] < channels[1] < channels[2]:
            raise ValueError(
                f"channels is {channels!r} for {in_channels} channels of the image; give more for each level than for "
                "the one before"
            )
        super().__init__(in_channels, channels[-1], feature_stride=8, skip_count=1, skip_scale=1)
        first, second, third = channels
        early, later = dropout
        self.down = nn.ModuleList(
            [
                _Down(in_channels, first, norm),
                nn.Sequential(_Down(first, second, norm), *(NonBottleneck1D(second, 1, early, norm) for _ in range(5))),
                nn.Sequential(
                    _Down(second, third, norm),
                    *(NonBottleneck1D(third, dilation, later, norm) for dilation in (2, 4, 8, 16) * 2),
                ),
            ]
        )
        # from the lowest level to half resolution
        self.up = nn.ModuleList(
            nn.Sequential(_up(below, here, norm), *(NonBottleneck1D(here, norm=norm) for _ in range(2)))
            for below, here in ((third, second), (second, first))
        )
        self.head = nn.ConvTranspose2d(first, out_channels, 2, stride=2)

    @property
    def tap_stages(self) -> dict[str, str]:
        encoders = {"encoder_1": "down.0", "encoder_2": "down.1", "bottleneck": "down.2"}
        return {**encoders, "decoder_2": "up.0", "decoder_1": "up.1"}

    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        features = image
        for stage in self.down:
            features = stage(features)
        return features, (grid_of(features),)

    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        for stage in self.up:
            features = stage(features)
        logits: Tensor = self.head(features)
        return logits


class _Down(nn.Module):
    """Halve the resolution by a convolution beside max-pooling, then norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.norm = get_norm_layer(norm, spatial_dims=2, channels=out_channels)

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.norm(conv_beside_pool(self.conv, features)), inplace=True)


def _up(in_channels: int, out_channels: int, norm: Norm) -> nn.Sequential:
    """Return a transposed convolution that doubles the resolution, with norm and ReLU."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1),
        get_norm_layer(norm, spatial_dims=2, channels=out_channels),
        relu(),
    )
