"""A dilated ResNet with the head of a fully convolutional network, teacher (50) and student (18) of the zoo."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Dropout
from torch import Tensor, nn

from monai_kd.networks.any_size import AnySize, to_grid
from monai_kd.networks.blocks.resnet_v1c import ResNetV1c, convolution, start_convolutions
from monai_kd.networks.blocks.units import Norm
from monai_kd.networks.halves import Skips, grid_of

__all__ = ["ResNetFCN"]


class ResNetFCN(AnySize):
    """A ResNet at stride 8 and three convolutions, without skip connections; logits are brought to full size.

    At 2 axes, 1 -> 9 channels: 12,671,657 parameters and 10.6 GMAC for a 224 x 224 image at depth 18, 47,127,337 and
    37.8 GMAC at depth 50.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: logits, one per class, the background among them.
        depth: 18 or 50, see :class:`~monai_kd.networks.blocks.resnet_v1c.ResNetV1c`.
        channels: widths of the four stages, multiples of 4.
        dropout: share of the channels that the head forgets in training, in [0, 1).
        norm: in MONAI's terms: ``batch``, ``instance`` or ``("group", {"num_groups": 8})``.

    Attributes:
        feature_channels: of the bottleneck map, the last of ``channels`` times 1 (18) or 4 (50).
        feature_stride: 8.

    Shape:
        ``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial)``, any size. :meth:`encode` gives the bottleneck
        map and one empty tensor ``(B, 0, *spatial)``, by which :meth:`decode` knows the size.

    Stages: ``encoder_1`` (stride 4) to ``encoder_3`` and ``bottleneck`` (stride 8) of the ResNet; ``decoder_2``, what
    the head makes of them, shaped as ``encoder_2``.

    Raises:
        ValueError: a setting out of range; on use an image, features or skips that do not fit, or an image of 8 voxels
            or fewer along each axis where the norm needs more than one value per channel.

    Source: Shelhamer et al. 2017, arXiv 1605.06211, in the form of MMSegmentation's ``fcn_r50-d8``: no skips, three
    convolutions, the input of the first two concatenated to their output. The auxiliary head there is left out, as in
    the published distillation pairs.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        depth: int = 18,
        channels: Sequence[int] = (64, 128, 256, 512),
        dropout: float = 0.1,
        norm: Norm = "batch",
    ) -> None:
        check_dropout(dropout)
        encoder = ResNetV1c(spatial_dims, in_channels, depth, channels, norm)
        deepest, stride = encoder.out_channels[-1], encoder.strides[-1]
        super().__init__(spatial_dims, in_channels, deepest, stride, skip_count=1, norm=norm)
        inside = deepest // 4
        self.encoder = encoder
        self.convolutions = nn.Sequential(
            convolution(spatial_dims, deepest, inside, 3, norm), convolution(spatial_dims, inside, inside, 3, norm)
        )
        self.join = convolution(spatial_dims, deepest + inside, inside, 3, norm)
        for part in (self.convolutions, self.join):
            part.apply(start_convolutions)
        self.head = head(spatial_dims, inside, out_channels, dropout)

    @property
    def tap_stages(self) -> dict[str, str]:
        encoders = {f"encoder_{number}": f"encoder.stages.{number - 1}" for number in (1, 2, 3)}
        return {**encoders, "bottleneck": "encoder.stages.3", "decoder_2": "join"}

    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        return self.encoder(image)[-1], (grid_of(image),)

    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        joined = torch.cat([features, self.convolutions(features)], dim=1)
        return to_grid(self.head(self.join(joined)), skips[0].shape[2:])


def head(spatial_dims: int, channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Return dropout of channels and a 1x1 convolution with small first weights, so that no class leads at first."""
    last = Conv[Conv.CONV, spatial_dims](channels, out_channels, 1)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(Dropout[Dropout.DROPOUT, spatial_dims](dropout), last)


def check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}; give a share of at least 0 and below 1")
