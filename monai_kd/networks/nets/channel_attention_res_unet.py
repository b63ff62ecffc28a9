"""The channel-attention residual U-Net of MTCM-KD (Ahmad et al. 2024), student and teacher alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn

from monai_kd.networks.blocks import ChannelGate, PreActivationResBlock, SteadyInstanceNorm

__all__ = ["ChannelAttentionResUNet"]


class ChannelAttentionResUNet(nn.Module):
    """A residual U-Net whose decoder weighs the channels of each skip connection before it uses them.

    With the default channels and side heads: 9,459,478 parameters at 3 axes, 1 -> 4 channels; 9,458,702 without side
    heads; 6,663,958 with 1x1x1 skips. 222 GFLOP for one 64 x 64 x 64 patch.

    In training with ``side_heads`` the output is a list: the logits, then those of the decoder stages at half, quarter,
    ... resolution, as networks with deep supervision give them. In evaluation it is the logits alone.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: logits, one per class, the background among them.
        channels: of the levels, at least 2, multiples of 4; each level halves the resolution.
        skip_kernel_size: of the residual blocks' skips: 3 as published, or 1 (36 % fewer operations).
        side_heads: whether decoder stages below full resolution have heads of their own.
        reduction: of the hidden layer of each channel gate.

    Shape:
        ``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial)``; every size a multiple of
        ``2 ** (levels - 1)`` (8).

    Raises:
        ValueError: a setting out of range, or on use an image of other axes or channels or of a size that cannot be
            halved so often.

    Source: Ahmad et al. 2024, doi:10.1016/j.knosys.2024.111854; details from its reference code, which has the same
    number of parameters. All networks here start from PyTorch's own initialization; there the student alone starts from
    Xavier's.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        skip_kernel_size: int = 3,
        side_heads: bool = False,
        reduction: int = 16,
    ) -> None:
        super().__init__()
        _check_settings(spatial_dims, channels, skip_kernel_size)
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.levels = len(channels)
        conv, up = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]
        width = channels[0]
        self.stem = nn.Sequential(
            conv(in_channels, width, 3, padding=1),
            SteadyInstanceNorm(Norm[Norm.INSTANCE, spatial_dims](width)),
            nn.LeakyReLU(0.01, inplace=True),
            conv(width, width, 3, padding=1),
        )
        self.stem_skip = conv(in_channels, width, 3, padding=1)
        kernel = skip_kernel_size
        self.down = nn.ModuleList(
            PreActivationResBlock(spatial_dims, before, after, 2, kernel) for before, after in pairwise(channels)
        )
        # from the lowest level to full resolution
        steps = [(below, here) for here, below in pairwise(channels)][::-1]
        self.up = nn.ModuleList(up(below, below, 2, stride=2) for below, _ in steps)
        self.gates = nn.ModuleList(ChannelGate(below + here, reduction) for below, here in steps)
        self.decode_blocks = nn.ModuleList(
            PreActivationResBlock(spatial_dims, below + here, here, 1, kernel) for below, here in steps
        )
        self.head = conv(width, out_channels, 1)
        # from half resolution downwards
        self.side_heads = nn.ModuleList(conv(size, out_channels, 1) for size in channels[1:-1] if side_heads)

    @property
    def tap_stages(self) -> dict[str, str]:
        """Readable names of the stages, see :func:`monai_kd.distillers.stage_paths`.

        ``encoder_1`` is the stem's main path, before its skip is added.
        """
        down = [f"down.{index}" for index in range(self.levels - 2)]
        encoders = {f"encoder_{number}": path for number, path in enumerate(["stem", *down], start=1)}
        last = self.levels - 1
        decoders = {f"decoder_{last - index}": f"decode_blocks.{index}" for index in range(last)}
        return {**encoders, "bottleneck": f"down.{last - 1}", **decoders}

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        half, skip, deeper = self._lower(image)
        logits = self.top(half, skip)
        if not (self.training and len(self.side_heads)):
            return logits
        return [logits, *(head(stage) for head, stage in zip(self.side_heads, [half, *deeper], strict=False))]

    def lower(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run all but the last decoder stage.

        Returns:
            The features at half resolution (``decoder_2``) and those that the last stage gets from the stem; what
            :meth:`top` takes.
        """
        return self._lower(image)[:2]

    def top(self, half: Tensor, skip: Tensor) -> Tensor:
        """Return the logits from what :meth:`lower` gives; ``forward`` is both in turn."""
        logits: Tensor = self.head(self._raise(self.levels - 2, half, skip))
        return logits

    def _lower(self, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the half-resolution features, the stem's, and the decoder stages below, finest first."""
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            self._check(image)
        features = self.stem(image) + self.stem_skip(image)
        skips = []
        for block in self.down:
            skips.append(features)
            features = block(features)
        stages: list[Tensor] = []
        for index in range(self.levels - 2):
            features = self._raise(index, features, skips.pop())
            stages.insert(0, features)
        return features, skips.pop(), stages[1:]

    def _raise(self, index: int, features: Tensor, skip: Tensor) -> Tensor:
        """Double the resolution and join the skip: one decoder stage."""
        joined = torch.cat([self.up[index](features), skip], dim=1)
        stage: Tensor = self.decode_blocks[index](self.gates[index](joined))
        return stage

    def _check(self, image: Tensor) -> None:
        multiple = 2 ** (self.levels - 1)
        shape = tuple(image.shape)
        if (
            len(shape) != self.spatial_dims + 2
            or shape[1] != self.in_channels
            or any(size % multiple for size in shape[2:])
        ):
            raise ValueError(
                f"ChannelAttentionResUNet got {shape}; it takes (batch, {self.in_channels}, *spatial) with "
                f"{self.spatial_dims} spatial sizes that are multiples of {multiple} (pad them, or crop windows of "
                "such a size)"
            )


def _check_settings(spatial_dims: int, channels: Sequence[int], skip_kernel_size: int) -> None:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims!r}; known: 2, 3")
    if len(channels) < 2 or not all(isinstance(size, int) and size > 0 and size % 4 == 0 for size in channels):
        raise ValueError(f"channels is {channels!r}; give a multiple of 4 for each of at least 2 levels")
    if skip_kernel_size not in (1, 3):
        raise ValueError(f"skip_kernel_size is {skip_kernel_size!r}; known: 3 (as published), 1")
