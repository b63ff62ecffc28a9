"""What the segmentation networks of two halves share: an encoder and a decoder that can be called on their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

__all__: list[str] = []

Skips: TypeAlias = tuple[Tensor, ...]


class EncoderDecoder(nn.Module, ABC):
    """A network that is ``decode(*encode(image))``, bit for bit, so that its bottleneck can be replaced.

    One image may be encoded once and decoded several times: with its own features, with features made from another
    network's. A subclass gives :meth:`run_encoder`, :meth:`run_decoder` and ``tap_stages``; sizes are checked here, but
    not where the network is traced or compiled.

    Args:
        in_channels: of the image.
        feature_channels: of the bottleneck map.
        feature_stride: voxels of the image per voxel of the bottleneck map, along each axis.
        skip_count: tensors that the decoder takes beside the features.
        skip_scale: voxels of the last of them per voxel of the bottleneck map, along each axis.
        spatial_dims: axes of the image.

    Attributes:
        feature_channels, feature_stride, in_channels, spatial_dims: as given.

    Shape:
        ``(B, in_channels, *spatial)``, every size a multiple of ``feature_stride``, to ``(B, out_channels, *spatial)``.

    Raises:
        ValueError: an image of other axes, channels or sizes; features or skips that do not go together.
    """

    def __init__(
        self,
        in_channels: int,
        feature_channels: int,
        feature_stride: int,
        skip_count: int,
        skip_scale: int = 2,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.feature_channels, self.feature_stride = feature_channels, feature_stride
        self.skip_count, self.skip_scale = skip_count, skip_scale

    @property
    @abstractmethod
    def tap_stages(self) -> dict[str, str]:
        """Readable names of the stages, see :func:`monai_kd.distillers.stage_paths`."""

    def forward(self, image: Tensor) -> Tensor:
        return self.decode(*self.encode(image))

    def encode(self, image: Tensor) -> tuple[Tensor, Skips]:
        """Run the first half.

        Returns:
            The bottleneck map ``(B, feature_channels, *spatial / feature_stride)``, and what :meth:`decode` needs
            beside it.
        """
        if not is_recorded():
            self.check_image(image)
        return self.run_encoder(image)

    def decode(self, features: Tensor, skips: Skips) -> Tensor:
        """Run the second half.

        Args:
            features: the bottleneck map, or another one of its shape.
            skips: as :meth:`encode` gave them. Neither is changed, so that both may be used again.

        Returns:
            The logits.
        """
        if not is_recorded():
            self.check_features(features, skips)
        return self.run_decoder(features, skips)

    @abstractmethod
    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        """Do :meth:`encode` without its checks."""

    @abstractmethod
    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        """Do :meth:`decode` without its checks."""

    def check_image(self, image: Tensor) -> None:
        shape, stride = tuple(image.shape), self.feature_stride
        if (
            len(shape) != self.spatial_dims + 2
            or shape[1] != self.in_channels
            or any(size < 1 or size % stride for size in shape[2:])
        ):
            raise ValueError(
                f"{type(self).__name__} got {shape}; it takes (batch, {self.in_channels}, *spatial) with "
                f"{self.spatial_dims} spatial sizes that are multiples of {stride} (pad them, or crop windows of such "
                "a size)"
            )

    def check_features(self, features: Tensor, skips: Skips) -> None:
        name = type(self).__name__
        if len(skips) != self.skip_count:
            raise ValueError(f"{name}.decode got {len(skips)} skips; it takes the {self.skip_count} that encode gives")
        last = skips[-1].shape
        check_bottleneck(name, features, (last[0], self.feature_channels, *(n // self.skip_scale for n in last[2:])))


def is_recorded() -> bool:
    """Tell whether a graph of the network is being made, in which checks of sizes have no place."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def check_bottleneck(name: str, features: Tensor, expected: Sequence[int]) -> None:
    """Refuse a bottleneck map that does not go with the skips.

    Raises:
        ValueError: names the network, the shape and what is right.
    """
    if tuple(features.shape) != tuple(expected):
        raise ValueError(
            f"{name}.decode got features {tuple(features.shape)}; with these skips it takes {tuple(expected)}, the "
            "shape of the bottleneck map they came with"
        )


def grid_of(features: Tensor) -> Tensor:
    """Return an empty tensor ``(B, 0, *grid)`` that tells a decoder without other skips what it belongs to."""
    return features.detach()[:, :0]


def check_widths(name: str, value: Sequence[int], levels: int | None = None, multiple: int = 1) -> None:
    """Refuse widths that are not whole numbers above 0, one for each level (at least 2 where their number is free).

    Raises:
        ValueError: names the setting, what was got and what is right.
    """
    fits = len(value) >= 2 if levels is None else len(value) == levels
    if not fits or not all(isinstance(width, int) and width > 0 and width % multiple == 0 for width in value):
        kind = "a whole number above 0" if multiple == 1 else f"a multiple of {multiple}"
        count = "at least 2" if levels is None else levels
        raise ValueError(f"{name} is {value!r}; give {kind} for each of {count} levels")
