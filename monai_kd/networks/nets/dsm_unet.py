"""The 2-D U-Net of Distill DSM, whose blocks exchange features between slices (Maheshwari et al. 2021)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from monai_kd.networks.layers.depth_shift import ResidualDepthShift, SliceExchange
from monai_kd.networks.layers.exchange_settings import ExchangeSettings, Norm
from monai_kd.networks.nets.slice_stack import SliceStack

__all__ = ["DSMUNet"]


class DSMUNet(SliceStack):
    """A 2-D U-Net on every slice of a volume, with a depth shift in each block: 3-D context at 2-D cost.

    Five levels, two 3x3 convolutions with normalization and ReLU each, max-pooling and bilinear upsampling in plane;
    depth is never reduced. In all blocks but the first, between the two convolutions, slices exchange features, so that
    8 slices to either side are seen. With the default channels: 1,082,211 parameters at 4 -> 3 channels without
    exchange, 1,216,266 at 1 -> 2 with ``alpha`` 1/2.

    Args:
        in_channels: of the volume.
        out_channels: logits, one per class; the background is one of them for a softmax, and none for sigmoid outputs.
        alpha: share of the channels that take part in the learned exchange, see
            :class:`monai_kd.networks.layers.DistillDepthShift`.
        exchange: ``distill`` (learned), ``plain`` (shifted channels, no parameters), ``residual`` (the same with an
            identity path round the shift) or ``none``, the 2-D U-Net.
        depth_axis, spacing, layout: see :class:`SliceStack`.
        ends: what end slices receive: ``zero``, ``replicate`` or ``circular``.
        causal: no slice waits for a later one.
        fraction: channels that move in each direction with ``plain`` and ``residual``.
        kernel_size: of the learned exchange, in plane.
        channels: of the levels, at least 2.
        norm: of each slice, in MONAI's terms: ``batch`` as in the paper, whose statistics run over slices and volumes,
            ``instance`` or ``("group", {"num_groups": 4})`` for few slices.
        exchange_norm, exchange_act: optional normalization and activation behind the learned exchange; the paper has
            none.
        start_as_plain_shift: let the learned exchange begin as a shift of its channels in place of random maps.

    Shape:
        ``(B, in_channels, *spatial)`` with three spatial axes, to ``(B, out_channels, *spatial)`` logits. In-plane
        sizes of at least ``2 ** (levels - 1)`` (16), also odd ones.

    Raises:
        ValueError: a setting out of range, or on use a volume that is too small; names what was got.

    Source: Maheshwari et al. 2021, figure 2; widths from the authors' code, which its parameter counts confirm. Their
    decoder doubles the size and pads odd rests with zeros; here it goes to the skip's size at once, the same where
    sizes are even.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        alpha: float = 0.5,
        exchange: str = "distill",
        depth_axis: int | None = None,
        spacing: Sequence[float] | None = None,
        ends: str = "zero",
        causal: bool = False,
        fraction: float = 0.25,
        kernel_size: int = 3,
        channels: Sequence[int] = (16, 32, 64, 128, 128),
        norm: Norm = "batch",
        exchange_norm: Norm | None = None,
        exchange_act: Norm | None = None,
        layout: str = "auto",
        start_as_plain_shift: bool = False,
    ) -> None:
        settings = ExchangeSettings(
            *(exchange, alpha, ends, causal, fraction, kernel_size),
            norm=exchange_norm,
            act=exchange_act,
            start_as_plain_shift=start_as_plain_shift,
        )
        network = _SliceUNet(in_channels, out_channels, channels, settings, norm)
        super().__init__(network, depth_axis, spacing, layout)
        self.in_channels = in_channels
        self.smallest = 2 ** (len(channels) - 1)

    def forward(self, volume: Tensor) -> Tensor:
        if volume.ndim == 5 and not torch.compiler.is_compiling():
            in_plane = [size for axis, size in enumerate(volume.shape[2:]) if axis != self.depth_axis]
            self._check(volume, in_plane)
        return super().forward(volume)

    def _check(self, given: Tensor, in_plane: Sequence[int]) -> None:
        if given.shape[1] != self.in_channels or min(in_plane) < self.smallest:
            raise ValueError(
                f"DSMUNet got {tuple(given.shape)}; it takes {self.in_channels} channels and, beside the slices "
                f"along spatial axis {self.depth_axis}, at least {self.smallest} voxels in plane"
            )

    def slice_steps(self, one: Tensor) -> Generator[tuple[SliceExchange, Tensor], Tensor, Tensor]:
        """Run the network on one slice that waits for its neighbors.

        Yields each exchange with the features it splits, takes what it joins, and returns the logits.

        Args:
            one: ``(1, C, H, W)``.
        """
        self._check(one, one.shape[2:])
        network: Any = self.network
        return (yield from network.steps(self.laid_out(one)))


class _Block(nn.Module):
    """Two units with an exchange between them."""

    def __init__(self, sizes: tuple[int, int, int], settings: ExchangeSettings, norm: Norm) -> None:
        super().__init__()
        entry, middle, exit_ = sizes
        self.first = _unit(entry, middle, norm)
        self.exchange = settings.make(middle, inplace=True)
        self.second = _unit(middle, exit_, norm)
        self.residual = settings.residual

    def forward(self, features: Tensor) -> Tensor:
        features = self.first(features)
        return self.finish(features, features if self.exchange is None else self.exchange(features))

    def finish(self, features: Tensor, exchanged: Tensor) -> Tensor:
        result: Tensor = self.second(exchanged)
        return ResidualDepthShift.add(features, result) if self.residual else result

    def steps(self, features: Tensor) -> Generator[tuple[SliceExchange, Tensor], Tensor, Tensor]:
        features = self.first(features)
        exchanged = features if self.exchange is None else (yield self.exchange, features)
        return self.finish(features, exchanged)


class _SliceUNet(nn.Module):
    """The U-Net of slices ``(N, C, H, W)``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        settings: ExchangeSettings,
        norm: Norm,
    ) -> None:
        super().__init__()
        if len(channels) < 2 or not all(isinstance(size, int) and size > 0 for size in channels):
            raise ValueError(f"channels is {channels!r}; give a whole number above 0 for each of at least 2 levels")
        self.stem = nn.Sequential(_unit(in_channels, channels[0], norm), _unit(channels[0], channels[0], norm))
        down = [(entry, width, width) for entry, width in pairwise(channels)]
        self.down = nn.ModuleList(_Block(sizes, settings, norm) for sizes in down)
        up, previous = [], channels[-1]
        for level in range(len(channels) - 2, -1, -1):
            result = channels[max(level - 1, 0)]
            up.append((channels[level] + previous, channels[level], result))
            previous = result
        self.up = nn.ModuleList(_Block(sizes, settings, norm) for sizes in up)
        self.head = nn.Conv2d(previous, out_channels, 1)

    @property
    def tap_stages(self) -> dict[str, str]:
        """Readable names of the stages, see :func:`monai_kd.distillers.stage_paths`."""
        depth = len(self.down)
        encoders = ["stem", *(f"down.{index}" for index in range(depth - 1))]
        named = {f"encoder_{number}": path for number, path in enumerate(encoders, start=1)}
        decoders = {f"decoder_{depth - index}": f"up.{index}" for index in range(depth)}
        return {**named, "bottleneck": f"down.{depth - 1}", **decoders}

    def forward(self, features: Tensor) -> Tensor:
        features = self.stem(features)
        skips = []
        for block in self.down:
            skips.append(features)
            features = block(F.max_pool2d(features, 2))
        for block in self.up:
            features = block(_joined(skips.pop(), features))
        logits: Tensor = self.head(features)
        return logits

    def steps(self, features: Tensor) -> Generator[tuple[SliceExchange, Tensor], Tensor, Tensor]:
        """Do the same for one slice, see :meth:`DSMUNet.slice_steps`."""
        features = self.stem(features)
        skips = []
        down: Any = self.down
        up: Any = self.up
        for block in down:
            skips.append(features)
            features = yield from block.steps(F.max_pool2d(features, 2))
        for block in up:
            features = yield from block.steps(_joined(skips.pop(), features))
        logits: Tensor = self.head(features)
        return logits


def _joined(skip: Tensor, deeper: Tensor) -> Tensor:
    """Bring the deeper features to the skip's size and put both together."""
    raised = F.interpolate(deeper, size=skip.shape[2:], mode="bilinear", align_corners=True)
    return torch.cat([skip, raised], dim=1)


def _unit(in_channels: int, out_channels: int, norm: Norm) -> nn.Sequential:
    """Return a 3x3 convolution with bias, a normalization of each slice, and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        get_norm_layer(norm, spatial_dims=2, channels=out_channels),
        nn.ReLU(inplace=True),
    )
