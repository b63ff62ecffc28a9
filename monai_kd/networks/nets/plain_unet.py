"""The U-Net as its paper draws it, with padded convolutions and batch norm (Ronneberger et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from monai_kd.networks.blocks.units import Norm
from monai_kd.networks.halves import EncoderDecoder, Skips, check_widths

__all__ = ["PlainUNet"]


class PlainUNet(EncoderDecoder):
    """The classic U-Net: two 3x3 convolutions a level, max-pooling down, transposed convolutions up.

    With the default channels 31,042,434 parameters and 12.0 GMAC for a 128 x 128 image at 2 axes, 1 -> 2 channels.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: logits, one per class, the background among them.
        channels: of the levels, at least 2; each level halves the resolution.
        norm: in MONAI's terms: ``batch``, ``instance`` or ``("group", {"num_groups": 8})``.
        convolutions: of a level, at least 1.

    Attributes:
        feature_channels: of the bottleneck map, the last of ``channels``.
        feature_stride: ``2 ** (levels - 1)`` (16).

    Shape:
        ``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial)``; every size a multiple of ``feature_stride``.
        :meth:`encode` gives the bottleneck map and the levels above it, finest first.

    Raises:
        ValueError: a setting out of range; on use an image, features or skips that do not fit.

    Source: Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28. Differs by padding, so that the output has the
    size of the image, and by norms. Convolutions keep their biases, which a norm behind makes redundant, since the
    usual number of parameters counts them. MONAI's ``BasicUNet`` has five levels always and LeakyReLU. Starts from
    PyTorch's own initialization.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
        norm: Norm = "batch",
        convolutions: int = 2,
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {spatial_dims!r}; known: 2, 3")
        check_widths("channels", channels)
        if isinstance(convolutions, bool) or not isinstance(convolutions, int) or convolutions < 1:
            raise ValueError(f"convolutions is {convolutions!r}; it must be a whole number of at least 1")
        steps = len(channels) - 1
        super().__init__(in_channels, channels[-1], 2**steps, skip_count=steps, spatial_dims=spatial_dims)
        conv, up = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]
        self.pools = nn.ModuleList(Pool[Pool.MAX, spatial_dims](2) for _ in range(steps))  # one each: they are tapped
        self.down = nn.ModuleList(
            level_block(spatial_dims, before, after, norm, convolutions)
            for before, after in pairwise([in_channels, *channels])
        )
        # from the lowest level to full resolution
        levels = [(below, here) for here, below in pairwise(channels)][::-1]
        self.raise_ = nn.ModuleList(up(below, here, 2, stride=2) for below, here in levels)
        self.up = nn.ModuleList(level_block(spatial_dims, 2 * here, here, norm, convolutions) for _, here in levels)
        self.head = conv(channels[0], out_channels, 1)

    @property
    def tap_stages(self) -> dict[str, str]:
        steps = self.skip_count
        numbers = range(1, steps + 1)
        encoders = {f"encoder_{number}": f"down.{number - 1}" for number in numbers}
        pooled = {f"pooled_{number}": f"pools.{number - 1}" for number in numbers}
        decoders = {f"decoder_{steps - index}": f"up.{index}" for index in range(steps)}
        return {**encoders, **pooled, "bottleneck": f"down.{steps}", **decoders}

    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        skips: list[Tensor] = []
        features = self.down[0](image)
        for pool, block in zip(self.pools, self.down[1:], strict=True):
            skips.append(features)
            features = block(pool(features))
        return features, tuple(skips)

    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        for raise_, block, skip in zip(self.raise_, self.up, reversed(skips), strict=True):
            features = block(torch.cat([skip, raise_(features)], dim=1))
        logits: Tensor = self.head(features)
        return logits


def level_block(
    spatial_dims: int, in_channels: int, out_channels: int, norm: Norm, convolutions: int = 2
) -> nn.Sequential:
    """Return 3x3 convolutions, each with norm and ReLU."""
    layers: list[nn.Module] = []
    for width in (in_channels, *[out_channels] * (convolutions - 1)):
        layers.append(Conv[Conv.CONV, spatial_dims](width, out_channels, 3, padding=1))
        layers.append(get_norm_layer(norm, spatial_dims=spatial_dims, channels=out_channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
