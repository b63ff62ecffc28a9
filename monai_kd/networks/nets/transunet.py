"""TransUNet: a residual encoder, a vision transformer on its deepest map, and a U-Net's decoder (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kd.networks.blocks.standardized_bottleneck import NORM_EPS, StandardizedBottleneck, StandardizedConv2d
from monai_kd.networks.blocks.token_transformer import TokenTransformer
from monai_kd.networks.blocks.units import Norm, relu, unit
from monai_kd.networks.halves import EncoderDecoder, Skips, check_widths

__all__ = ["TransUNet"]


class TransUNet(EncoderDecoder):
    """The hybrid R50-ViT-B/16 with a cascaded decoder, for 2-D images.

    With the default settings 105,277,081 parameters at 1 or 3 channels and 9 classes, and 29.2 GMAC for a 224 x 224
    image. Trained from scratch on tens of cases it is weak; the published scores start from ImageNet-21k, see
    :func:`monai_kd.teachers.imagenet_vit.load_imagenet_vit`.

    Args:
        spatial_dims: 2.
        in_channels: of the image. One channel is shown three times, to a root made for colors.
        out_channels: logits, one per class, the background among them.
        channels: of the root (1/2) and of the three residual stages (1/4, 1/8, 1/16).
        residual_blocks: number of blocks of each stage.
        hidden_size: of a token, a multiple of ``num_heads``.
        mlp_dim: hidden units of each transformer block's perceptron.
        num_layers: blocks of the transformer.
        num_heads: of its attention.
        decoder_channels: of the convolution behind the transformer, and of the decoder's levels (1/8, 1/4, 1/2, 1).
        position_grid: cells of the learned positions along each axis, 1/16 of the image that it is trained on; they are
            interpolated for others.
        dropout: of embedding and perceptrons, in [0, 1).
        norm: of the decoder, in MONAI's terms.
        norm_groups: of the encoder's GroupNorms; divides the root's channels and a quarter of each stage's.

    Attributes:
        feature_channels: of the bottleneck map, the transformer's tokens: ``hidden_size``.
        feature_stride: 16.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``; sizes are multiples of 16, at least one of them 32.
        :meth:`encode` gives the tokens as a map and the skips of the root and of two stages, finest first. The skip at
        1/4 ends in a row and a column of zeros, since the pooling before it does not pad.

    Raises:
        ValueError: a setting out of range; on use an image, features or skips that do not fit.

    Source: Chen et al. 2021, arXiv 2102.04306; details from the authors' code, whose numbers of parameters it has.
    There images are square, of the one size that the position table is made for. Here the table is interpolated at
    each size, by the rule by which they resize it once; positions start from small random numbers where theirs are
    zero until weights are loaded; and images of other than 1 or 3 channels get a root of their own. The first map of
    the encoder is 1 narrower than a U-Net's (55 of 56 at 224), which is theirs too.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 256, 512, 1024),
        residual_blocks: Sequence[int] = (3, 4, 9),
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        decoder_channels: Sequence[int] = (512, 256, 128, 64, 16),
        position_grid: int = 14,
        dropout: float = 0.1,
        norm: Norm = "batch",
        norm_groups: int = 32,
    ) -> None:
        if spatial_dims != 2:
            raise ValueError(f"spatial_dims is {spatial_dims!r}; TransUNet has 2 axes alone, give it slices")
        check_widths("channels", channels, levels=4)
        check_widths("residual_blocks", residual_blocks, levels=3)
        check_widths("decoder_channels", decoder_channels, levels=5)
        sizes = {"hidden_size": hidden_size, "mlp_dim": mlp_dim, "num_layers": num_layers, "num_heads": num_heads}
        _check_counts({**sizes, "position_grid": position_grid, "norm_groups": norm_groups})
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size is {hidden_size}; it must be a multiple of num_heads, {num_heads}")
        if channels[0] % norm_groups or any(width % (4 * norm_groups) for width in channels[1:]):
            raise ValueError(
                f"channels is {channels!r}; with norm_groups {norm_groups} the first must be a multiple of "
                f"{norm_groups}, the others of {4 * norm_groups}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}; give a share of at least 0 and below 1")
        super().__init__(in_channels, hidden_size, feature_stride=16, skip_count=3)
        self.root = nn.Sequential(
            StandardizedConv2d(3 if in_channels == 1 else in_channels, channels[0], 7, stride=2, padding=3, bias=False),
            nn.GroupNorm(norm_groups, channels[0], eps=NORM_EPS),
            relu(),
        )
        self.pool = nn.MaxPool2d(3, stride=2)
        self.stages = nn.ModuleList(
            _stage(*pair, count, stride, norm_groups)
            for pair, count, stride in zip(pairwise(channels), residual_blocks, (1, 2, 2), strict=True)
        )
        self.fill = nn.ZeroPad2d((0, 1, 0, 1))  # the first stage's map to a quarter of the image
        self.transformer = TokenTransformer(
            channels[-1], hidden_size, mlp_dim, num_layers, num_heads, position_grid, dropout
        )
        self.enter = unit(hidden_size, decoder_channels[0], 3, norm, relu())
        beside = [*channels[2::-1], 0]
        self.up = nn.ModuleList(
            _DecoderLevel(below, skip, here, norm)
            for (below, here), skip in zip(pairwise(decoder_channels), beside, strict=True)
        )
        self.head = nn.Conv2d(decoder_channels[-1], out_channels, 3, padding=1)

    @property
    def tap_stages(self) -> dict[str, str]:
        encoders = {"encoder_1": "root", "encoder_2": "fill", "encoder_3": "stages.1", "encoder_4": "stages.2"}
        decoders = {f"decoder_{3 - index}": f"up.{index}" for index in range(4)}
        return {**encoders, "bottleneck": "transformer", **decoders}

    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        root = self.root(image.expand(-1, 3, -1, -1) if self.in_channels == 1 else image)
        quarter = self.stages[0](self.pool(root))
        eighth = self.stages[1](quarter)
        tokens = self.transformer(self.stages[2](eighth))
        return tokens, (root, self.fill(quarter), eighth)

    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        features = self.enter(features)
        for level, skip in zip(self.up, [*reversed(skips), None], strict=True):
            features = level(features, skip)
        logits: Tensor = self.head(features)
        return logits

    def check_image(self, image: Tensor) -> None:
        super().check_image(image)
        if max(image.shape[2:]) < 2 * self.feature_stride:
            raise ValueError(
                f"TransUNet got {tuple(image.shape)}, whose deepest map is a single voxel, which has no variance to "
                "normalize by; one size must be 32 or more"
            )


class _DecoderLevel(nn.Module):
    """Double the resolution, join a skip where there is one, two 3x3 convolutions."""

    def __init__(self, below: int, skip: int, here: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = unit(below + skip, here, 3, norm, relu())
        self.conv2 = unit(here, here, 3, norm, relu())

    def forward(self, features: Tensor, skip: Tensor | None) -> Tensor:
        # the skip's size is the double one; an exporter could not prove it
        size = [2 * length for length in features.shape[2:]] if skip is None else list(skip.shape[2:])
        features = F.interpolate(features, size=size, mode="bilinear", align_corners=True)
        if skip is not None:
            features = torch.cat([features, skip], dim=1)
        level: Tensor = self.conv2(self.conv1(features))
        return level


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, norm_groups: int) -> nn.Sequential:
    first = StandardizedBottleneck(in_channels, out_channels, stride, norm_groups)
    others = [StandardizedBottleneck(out_channels, out_channels, 1, norm_groups) for _ in range(blocks - 1)]
    return nn.Sequential(first, *others)


def _check_counts(values: dict[str, int]) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number above 0")
