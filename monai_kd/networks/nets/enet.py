"""ENet, a student of a third of a million parameters (Paszke et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from monai_kd.networks.blocks import ENetBlock, ENetDown, ENetUp
from monai_kd.networks.blocks.units import Norm, conv_beside_pool, relu
from monai_kd.networks.halves import EncoderDecoder, Skips, check_widths
from monai_kd.networks.layers.shared_prelu import SharedPReLU

__all__ = ["ENet"]


class ENet(EncoderDecoder):
    """A very small 2-D network: early downsampling, bottleneck blocks, and a short decoder that only puts back.

    Its decoder has no skip maps; it takes the places of the maxima that the encoder pooled. With the default channels
    348,996 parameters and 0.115 GMAC for a 128 x 128 image at 1 -> 2 channels.

    Args:
        in_channels: of the image, fewer than the first of ``channels``.
        out_channels: logits, one per class, the background among them.
        channels: at strides 2, 4 and 8, multiples of 4, none smaller than the one before.
        dropout: share of the channels that each block forgets in training, at stride 4 of the encoder and elsewhere.
        norm: in MONAI's terms: ``batch``, ``instance`` or ``("group", {"num_groups": 4})``.

    Attributes:
        feature_channels: of the bottleneck map, the last of ``channels``.
        feature_stride: 8.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``, sizes that are multiples of 8. :meth:`encode` gives
        the bottleneck map and the places of the maxima of both poolings, whole numbers
        ``(B, channels[0], H / 4, W / 4)`` and ``(B, channels[1], H / 8, W / 8)``.

    Raises:
        ValueError: a setting out of range; on use an image, features or skips that do not fit.

    Starts from PyTorch's own initialization.

    Where two values of a pooling window are equal but for rounding, as in an even background, it is up to the runtime
    whose place is the maximum's, and the logits around it differ between runtimes.

    Source: Paszke et al. 2016, arXiv:1606.02147, as a student in GKD (Qi et al. 2024), whose number of parameters it
    has. Blocks: see :class:`monai_kd.networks.blocks.ENetBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (16, 64, 128),
        dropout: tuple[float, float] = (0.01, 0.1),
        norm: Norm = "batch",
    ) -> None:
        check_widths("channels", channels, levels=3, multiple=4)
        if list(channels) != sorted(channels) or in_channels >= channels[0]:
            raise ValueError(
                f"channels is {channels!r} for {in_channels} channels of the image; give more for the first level, and "
                "for no level fewer than for the one before"
            )
        super().__init__(in_channels, channels[-1], feature_stride=8, skip_count=2, skip_scale=1)
        first, second, third = channels
        early, later = dropout
        self.initial = _Initial(in_channels, first, norm)
        self.down = nn.ModuleList([ENetDown(first, second, early, norm), ENetDown(second, third, later, norm)])
        self.encode_blocks = nn.ModuleList(
            [
                nn.Sequential(*(ENetBlock(second, dropout=early, norm=norm) for _ in range(4))),
                nn.Sequential(*_contexts(third, later, norm), *_contexts(third, later, norm)),
            ]
        )
        # from the lowest level to half resolution
        self.up = nn.ModuleList([ENetUp(third, second, later, norm), ENetUp(second, first, later, norm)])
        self.decode_blocks = nn.ModuleList(
            nn.Sequential(*(ENetBlock(width, dropout=later, act=relu, norm=norm) for _ in range(count)))
            for width, count in ((second, 2), (first, 1))
        )
        self.head = nn.ConvTranspose2d(first, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False)

    @property
    def tap_stages(self) -> dict[str, str]:
        encoders = {"encoder_1": "initial", "encoder_2": "encode_blocks.0", "bottleneck": "encode_blocks.1"}
        return {**encoders, "decoder_2": "decode_blocks.0", "decoder_1": "decode_blocks.1"}

    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        skips: list[Tensor] = []
        features = self.initial(image)
        for down, blocks in zip(self.down, self.encode_blocks, strict=True):
            features, places = down(features)
            skips.append(places)
            features = blocks(features)
        return features, tuple(skips)

    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        for up, blocks, places in zip(self.up, self.decode_blocks, reversed(skips), strict=True):
            features = blocks(up(features, places))
        logits: Tensor = self.head(features)
        return logits


class _Initial(nn.Module):
    """Halve the resolution by a convolution beside max-pooling of the image."""

    def __init__(self, in_channels: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels - in_channels, 3, stride=2, padding=1, bias=False)
        self.norm = get_norm_layer(norm, spatial_dims=2, channels=channels)
        self.act = SharedPReLU()

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.act(self.norm(conv_beside_pool(self.conv, image)))
        return result


def _contexts(channels: int, dropout: float, norm: Norm) -> list[ENetBlock]:
    """Return the eight blocks of the paper's stage 2, which its stage 3 repeats, with ever wider dilations."""
    blocks = []
    for dilation, asymmetric in ((2, False), (4, True), (8, False), (16, True)):
        blocks.append(ENetBlock(channels, 1, asymmetric, dropout, norm=norm))
        blocks.append(ENetBlock(channels, dilation, False, dropout, norm=norm))
    return blocks
