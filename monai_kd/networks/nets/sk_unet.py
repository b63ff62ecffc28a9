"""The SK-U-Net, the teacher of GKD: a U-Net of selective kernels with strip pooling (Qi et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from monai_kd.networks.blocks import SelectiveKernelBlock, SelectiveKernelConv, StripPooling
from monai_kd.networks.blocks.units import Norm
from monai_kd.networks.halves import EncoderDecoder, Skips, check_widths

__all__ = ["SKUNet"]

# cells per axis of the two coarse grids, lowest decoder level first, and whether its strips weigh the input
_STRIPS = (((3, 6), False), ((12, 18), False), ((3, 6), True))


class SKUNet(EncoderDecoder):
    """A strong 2-D teacher: four levels of two selective-kernel blocks, and strip pooling in the decoder.

    With the default channels 41.7 GMAC for a 128 x 128 image (encoder 19.3) and 38,285,122 parameters at 1 -> 2
    channels, or 38,292,162 with ``published``.

    Args:
        in_channels: of the image.
        out_channels: logits, one per class, the background among them.
        channels: of the four levels, even; each level halves the resolution.
        dropout: share of the channels that the head forgets in training, in [0, 1).
        norm: in MONAI's terms: ``batch`` or ``("group", {"num_groups": 8})``, groups of at least 4 channels. Not
            ``instance``: the selective kernels normalize averages, single voxels.
        published: keep the biases that the norms behind them take away: 7,040 parameters that change nothing
            with batch norm.

    Attributes:
        feature_channels: of the bottleneck map, the last of ``channels``.
        feature_stride: 8.

    Shape:
        ``(B, in_channels, H, W)`` to ``(B, out_channels, H, W)``, sizes that are multiples of 8. In training with batch
        norm B is at least 2. :meth:`encode` gives the bottleneck map and the three levels above it, finest first.

    Raises:
        ValueError: a setting out of range; on use an image, features or skips that do not fit.

    Convolutions, the transposed ones among them, start from Xavier's uniform distribution with biases of zero.

    Source: Qi et al. 2024, doi:10.1109/jbhi.2024.3385098; details from its released networks. Those have 38,292,295
    parameters: 130 more for a second head whose result is thrown away, and 3 unused numbers, one per strip pooling,
    neither of which exists here. Coarse grids are spread as :class:`monai_kd.networks.blocks.StripPooling` says.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512),
        dropout: float = 0.5,
        norm: Norm = "batch",
        published: bool = False,
    ) -> None:
        check_widths("channels", channels, levels=4, multiple=2)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}; give a share of at least 0 and below 1")
        super().__init__(in_channels, channels[-1], feature_stride=8, skip_count=3)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(
            _blocks(before, after, norm, published) for before, after in pairwise([in_channels, *channels])
        )
        # from the lowest level to full resolution
        steps = [(below, here) for here, below in pairwise(channels)][::-1]
        self.up = nn.ModuleList(
            _DecoderLevel(below, here, StripPooling(here, grids, gated, norm), norm, published)
            for (below, here), (grids, gated) in zip(steps, _STRIPS, strict=True)
        )
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels[0], out_channels, 1))
        self.apply(_start)

    @property
    def tap_stages(self) -> dict[str, str]:
        encoders = {f"encoder_{number}": f"down.{number - 1}" for number in (1, 2, 3)}
        return {**encoders, "bottleneck": "down.3", "decoder_3": "up.0", "decoder_2": "up.1", "decoder_1": "up.2"}

    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        skips: list[Tensor] = []
        features = self.down[0](image)
        for blocks in self.down[1:]:
            skips.append(features)
            features = blocks(self.pool(features))
        return features, tuple(skips)

    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        for level, skip in zip(self.up, reversed(skips), strict=True):
            features = level(features, skip)
        logits: Tensor = self.head(features)
        return logits

    def check_image(self, image: Tensor) -> None:
        super().check_image(image)
        if len(image) == 1 and any(isinstance(m, _BatchNorm) and m.training for m in self._squeezed()):
            raise ValueError(
                "SKUNet got one image to train on with batch norm; it takes batches of 2 or more, since one average "
                "per channel has no variance (or norm=('group', {'num_groups': 8}))"
            )

    def _squeezed(self) -> list[nn.Module]:
        """Return the norms of the averages."""
        return [module.squeeze[1] for module in self.modules() if isinstance(module, SelectiveKernelConv)]


class _DecoderLevel(nn.Module):
    """Double the resolution, join the skip, two selective-kernel blocks and strip pooling."""

    def __init__(self, below: int, here: int, strips: StripPooling, norm: Norm, bias: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(below, here, 2, stride=2)
        self.blocks = _blocks(2 * here, here, norm, bias)
        self.strips = strips

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        joined = torch.cat([skip, self.up(features)], dim=1)
        level: Tensor = self.strips(self.blocks(joined))
        return level


def _blocks(in_channels: int, channels: int, norm: Norm, bias: bool) -> nn.Sequential:
    return nn.Sequential(
        SelectiveKernelBlock(in_channels, channels, norm, bias), SelectiveKernelBlock(channels, channels, norm, bias)
    )


def _start(module: nn.Module) -> None:
    """Give a convolution its first weights."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
