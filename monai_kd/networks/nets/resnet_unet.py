"""U-Nets on ResNets: on a dilated ResNet-18, and on a plain ResNet-50 with instance norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_kd.networks.any_size import AnySize, to_grid
from monai_kd.networks.blocks.resnet_v1c import RELU, ResNetV1c, check_depth, convolution, start_convolutions
from monai_kd.networks.blocks.units import Norm
from monai_kd.networks.halves import Skips, grid_of
from monai_kd.networks.nets.resnet_fcn import check_dropout, head

__all__ = ["ResNetUNet"]


class _Variant(NamedTuple):
    """What the published network of a depth has besides its residual blocks."""

    plain: bool
    norm: Norm
    act: tuple[str, dict[str, Any]]  # of the decoder
    convolutions: int  # of a decoder level


_VARIANTS = {
    18: _Variant(plain=False, norm="batch", act=RELU, convolutions=2),
    50: _Variant(
        plain=True, norm="instance", act=("leakyrelu", {"negative_slope": 0.01, "inplace": True}), convolutions=1
    ),
}


class ResNetUNet(AnySize):
    """A U-Net on a ResNet, whose decoder ends at stride 4; logits are brought to full size by linear interpolation.

    Depth 18 is the dilated ResNet "V1c, d8": of three decoder levels the lower two stay at stride 8, and each has two
    3x3 convolutions. Depth 50 has the plain ResNet with strides to 32, one 3x3 convolution a level, LeakyReLU in the
    decoder and instance norm throughout.

    At 2 axes, 1 -> 9 channels: 13,694,185 parameters and 11.7 GMAC for a 224 x 224 image at depth 18, 50,977,865 and
    16.3 GMAC at depth 50; the auxiliary head has 2,313 and 9,225 more.

    With ``deep_supervision`` the output in training is a mapping of ``logits`` and ``logits_1``, those of an auxiliary
    head on the lowest decoder level, for a term each; in evaluation it is the logits alone. The published weights are
    4/7 and 1/7::

        seg: Term(loss, "student/logits", "label", weight=4 / 7)
        auxiliary: Term(loss, "student/logits_1", "label", weight=1 / 7)

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: logits, one per class, the background among them.
        depth: 18 or 50, see :class:`~monai_kd.networks.blocks.resnet_v1c.ResNetV1c`.
        channels: widths of the encoder's four stages, multiples of 4; the decoder has those of the skips.
        dropout: share of the channels that the heads forget in training, in [0, 1).
        norm: in MONAI's terms; None is as published, ``batch`` at depth 18 and ``instance`` at depth 50.
        deep_supervision: whether there is an auxiliary head.

    Attributes:
        feature_channels: of the bottleneck map, the last of ``channels`` times 1 (18) or 4 (50).
        feature_stride: 8 (18) or 32 (50).
        head_names: what a Distiller must have a term for.

    Shape:
        ``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial)``, both heads, any size. :meth:`encode` gives
        the bottleneck map, one empty tensor ``(B, 0, *spatial)`` and the three stages above it, finest first.

    Stages: ``encoder_1`` to ``encoder_3`` and ``bottleneck`` of the ResNet, at strides 4, 8, 8, 8 (18) or 4, 8, 16, 32
    (50); ``decoder_3`` to ``decoder_1``, each with the shape of its encoder stage.

    Raises:
        ValueError: a setting out of range; on use an image, features or skips that do not fit, or an image no larger
            than ``feature_stride`` along each axis where the norm needs more than one value per channel.

    Source: Ronneberger et al. 2015 on He et al. 2016, as in mmseg-kd, whose numbers of parameters both have: the
    decoder's convolutions keep biases in front of norms that take them away, and at depth 50 no norm has weights. There
    labels are shrunk linearly to the auxiliary head's map, which mixes classes; here its logits are brought to full
    size. MONAI's ``FlexibleUNet`` takes other ResNets, without dilation.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        depth: int = 18,
        channels: Sequence[int] = (64, 128, 256, 512),
        dropout: float = 0.1,
        norm: Norm | None = None,
        deep_supervision: bool = False,
    ) -> None:
        check_depth(depth)
        check_dropout(dropout)
        variant = _VARIANTS[depth]
        if norm is None:
            norm = variant.norm
        encoder = ResNetV1c(spatial_dims, in_channels, depth, channels, norm, variant.plain)
        widths, strides = encoder.out_channels, encoder.strides
        super().__init__(spatial_dims, in_channels, widths[-1], strides[-1], skip_count=4, norm=norm)
        self.encoder, self.norm = encoder, norm
        # from the lowest level up
        self.up = nn.ModuleList(
            _Level(spatial_dims, widths[level + 1], widths[level], strides[level + 1] > strides[level], variant, norm)
            for level in (2, 1, 0)
        )
        self.up.apply(start_convolutions)
        self.head = head(spatial_dims, widths[0], out_channels, dropout)
        self.auxiliary = head(spatial_dims, widths[2], out_channels, dropout) if deep_supervision else None

    @property
    def head_names(self) -> tuple[str, ...]:
        return () if self.auxiliary is None else ("logits_1",)

    @property
    def tap_stages(self) -> dict[str, str]:
        encoders = {f"encoder_{number}": f"encoder.stages.{number - 1}" for number in (1, 2, 3)}
        decoders = {f"decoder_{3 - index}": f"up.{index}" for index in range(3)}
        return {**encoders, "bottleneck": "encoder.stages.3", **decoders}

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:  # type: ignore[override]
        features, skips = self.encode(image)
        if self.auxiliary is None or not self.training:
            return self.decode(features, skips)
        maps, size = self._decoder_maps(features, skips), image.shape[2:]
        return {"logits": to_grid(self.head(maps[-1]), size), "logits_1": to_grid(self.auxiliary(maps[0]), size)}

    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        *maps, features = self.encoder(image)
        return features, (grid_of(image), *maps)

    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        maps = self._decoder_maps(features, skips)
        return to_grid(self.head(maps[-1]), skips[0].shape[2:])

    def gated_skip(self, index: int, skip: Tensor, features: Tensor) -> Tensor:
        """Return what level ``index``, the lowest first, takes beside the features from below: here the skip itself."""
        return skip

    def _decoder_maps(self, features: Tensor, skips: Skips) -> list[Tensor]:
        """Return the maps of the levels, the lowest first."""
        maps: list[Tensor] = []
        for index, (level, skip) in enumerate(zip(self.up, reversed(skips[1:]), strict=True)):
            features = level(features, self.gated_skip(index, skip, features))
            maps.append(features)
        return maps


class _Level(nn.Module):
    """Bring features to the skip's grid and channels, join both, and 3x3 convolutions."""

    def __init__(self, spatial_dims: int, below: int, here: int, is_finer: bool, variant: _Variant, norm: Norm) -> None:
        super().__init__()
        self.is_finer = is_finer
        # the published numbers of parameters tell which of them has a bias
        self.reduce = convolution(spatial_dims, below, here, 1, norm, variant.act, bias=not is_finer)
        self.blocks = nn.Sequential(
            *(
                convolution(spatial_dims, width, here, 3, norm, variant.act, bias=True)
                for width in (2 * here, here)[: variant.convolutions]
            )
        )

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        if self.is_finer:
            features = to_grid(features, skip.shape[2:])
        level: Tensor = self.blocks(torch.cat([skip, self.reduce(features)], dim=1))
        return level
