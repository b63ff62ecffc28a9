"""MedNeXt with the expansion ratios of its authors, also on the way down (Roy et al. 2023)."""

from __future__ import annotations

import math
from itertools import pairwise

from monai.networks.blocks.mednext_block import MedNeXtBlock, MedNeXtDownBlock, MedNeXtOutBlock, MedNeXtUpBlock
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_kd.networks.halves import EncoderDecoder, Skips

__all__ = ["OfficialMedNeXt"]

_STEPS = 4
# of the nine stages: four of the encoder, the bottleneck, four of the decoder from the lowest up
_RATIOS = {
    "S": (2,) * 9,
    "B": (2, 3, 4, 4, 4, 4, 4, 3, 2),
    "M": (2, 3, 4, 4, 4, 4, 4, 3, 2),
    "L": (3, 4, 8, 8, 8, 8, 8, 4, 3),
}
_BLOCKS = {"S": (2,) * 9, "B": (2,) * 9, "M": (3, 4, 4, 4, 4, 4, 4, 4, 3), "L": (3, 4, 8, 8, 8, 8, 8, 4, 3)}


class OfficialMedNeXt(EncoderDecoder):
    """A U-Net of depthwise convolutions and inverted bottlenecks, into which the authors' weights fit.

    Each step down has the expansion ratio of the stage that it leads to. With the default width 5,472,233 (S),
    10,447,625 (B), 17,418,441 (M) and 61,556,585 (L) parameters at 2 axes, 1 -> 9 channels, and 6.7, 10.9, 16.8 and
    46.4 GMAC for a 224 x 224 image.

    With ``deep_supervision`` the output in training is a mapping of ``logits`` and ``logits_1`` (half the resolution)
    to ``logits_4`` (the bottleneck's); a Distiller asks for a term for each, in evaluation there are the logits alone::

        deep_1: Term(DiceCELoss(...), "student/logits_1", "label", weight=0.5, adapter=ResizeAdapter())

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: logits, one per class, the background among them.
        variant: ``S``, ``B``, ``M`` or ``L``: number of blocks and their expansion ratios.
        kernel_size: of the depthwise convolutions, odd; the paper has 3 and 5.
        init_filters: channels at full resolution; each level doubles them.
        deep_supervision: a head on the bottleneck and on each level of the decoder, in training.

    Attributes:
        feature_channels: of the bottleneck map, 16 times ``init_filters``.
        feature_stride: 16.
        head_names: the heads of deep supervision; empty without.

    Shape:
        ``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial)``; every size a multiple of 16, one of them at
        least 32. ``logits_k`` has the sizes divided by ``2 ** k``. :meth:`encode` gives the bottleneck map and the four
        levels above it, finest first.

    Raises:
        ValueError: a setting out of range; on use an image, features or skips that do not fit.

    Source: Roy et al. 2023, doi:10.1007/978-3-031-43901-8_39; ratios from the authors' repository, MIC-DKFZ/MedNeXt.
    Blocks and names of weights are MONAI's, whose ``MedNeXt`` is this network in the variant S. Its B, M and L go down
    with the ratio of the stage they leave, have fewer parameters, and do not take the authors' weights. Differs from
    the authors' by the heads, which do not run in evaluation, and by two tools of their memory-saving training that
    change no result: checkpoints of activations, and a single number that no output depends on, which they count.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        variant: str = "S",
        kernel_size: int = 3,
        init_filters: int = 32,
        deep_supervision: bool = False,
    ) -> None:
        _check_settings(spatial_dims, variant, kernel_size, init_filters)
        widths = [init_filters * 2**level for level in range(_STEPS + 1)]
        super().__init__(in_channels, widths[-1], 2**_STEPS, skip_count=_STEPS, spatial_dims=spatial_dims)
        self.variant, self.kernel_size, self.deep_supervision = variant, kernel_size, deep_supervision
        ratios, blocks, dim = _RATIOS[variant], _BLOCKS[variant], f"{spatial_dims}d"

        def step(kind: type[MedNeXtBlock], before: int, after: int, stage: int) -> nn.Module:
            return kind(before, after, ratios[stage], kernel_size, use_residual_connection=True, dim=dim)

        def level(width: int, stage: int) -> nn.Sequential:
            return nn.Sequential(*(step(MedNeXtBlock, width, width, stage) for _ in range(blocks[stage])))

        self.stem = Conv[Conv.CONV, spatial_dims](in_channels, init_filters, 1)
        self.enc_stages = nn.ModuleList(level(width, stage) for stage, width in enumerate(widths[:-1]))
        self.down_blocks = nn.ModuleList(
            step(MedNeXtDownBlock, here, below, stage) for stage, (here, below) in enumerate(pairwise(widths), start=1)
        )
        self.bottleneck = level(widths[-1], _STEPS)
        # from the lowest level to full resolution
        up = list(enumerate(pairwise(widths[::-1]), start=_STEPS + 1))
        self.up_blocks = nn.ModuleList(step(MedNeXtUpBlock, below, here, stage) for stage, (below, here) in up)
        self.dec_stages = nn.ModuleList(level(here, stage) for stage, (_, here) in up)
        self.out_0 = MedNeXtOutBlock(init_filters, out_channels, dim)
        heads = widths[:0:-1] if deep_supervision else []
        self.out_blocks = nn.ModuleList(MedNeXtOutBlock(width, out_channels, dim) for width in heads)

    @property
    def tap_stages(self) -> dict[str, str]:
        encoders = {f"encoder_{index + 1}": f"enc_stages.{index}" for index in range(_STEPS)}
        decoders = {f"decoder_{_STEPS - index}": f"dec_stages.{index}" for index in range(_STEPS)}
        return {**encoders, "bottleneck": "bottleneck", **decoders}

    @property
    def head_names(self) -> tuple[str, ...]:
        return tuple(f"logits_{number + 1}" for number in range(len(self.out_blocks)))

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:  # type: ignore[override]
        features, skips = self.encode(image)
        if not (self.training and self.deep_supervision):
            return self.decode(features, skips)
        maps = [features, *self._levels(features, skips)]
        heads = [head(level) for head, level in zip(self.out_blocks, maps[:-1], strict=True)]
        return {"logits": self.out_0(maps[-1]), **dict(zip(self.head_names, reversed(heads), strict=True))}

    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        skips: list[Tensor] = []
        features = self.stem(image)
        for stage, down in zip(self.enc_stages, self.down_blocks, strict=True):
            skips.append(stage(features))
            features = down(skips[-1])
        return self.bottleneck(features), tuple(skips)

    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        logits: Tensor = self.out_0(self._levels(features, skips)[-1])
        return logits

    def check_image(self, image: Tensor) -> None:
        super().check_image(image)
        if math.prod(image.shape[2:]) == self.feature_stride**self.spatial_dims:
            raise ValueError(
                f"OfficialMedNeXt got {tuple(image.shape)}, of which the bottleneck is a single voxel, and its norm "
                f"takes away whatever that holds; it takes at least {2 * self.feature_stride} along one axis"
            )

    def _levels(self, features: Tensor, skips: Skips) -> list[Tensor]:
        """Return the maps of the decoder, from the lowest to full resolution."""
        maps: list[Tensor] = []
        for up, stage, skip in zip(self.up_blocks, self.dec_stages, reversed(skips), strict=True):
            features = stage(up(features) + skip)
            maps.append(features)
        return maps


def _check_settings(spatial_dims: int, variant: str, kernel_size: int, init_filters: int) -> None:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims!r}; known: 2, 3")
    if variant not in _BLOCKS:
        raise ValueError(f"variant is {variant!r}; known: {', '.join(_BLOCKS)}")
    if not _is_count(kernel_size) or kernel_size % 2 == 0 or kernel_size < 3:
        raise ValueError(f"kernel_size is {kernel_size!r}; give an odd number of at least 3, as 3 or 5")
    if not _is_count(init_filters):
        raise ValueError(f"init_filters is {init_filters!r}; give a whole number above 0")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
