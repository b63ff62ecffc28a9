"""Networks of two halves that take images of any size: their strides round up, and their logits are resized."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from monai_kd.networks.blocks.units import Norm
from monai_kd.networks.halves import EncoderDecoder, Skips, check_bottleneck, is_recorded
from monai_kd.networks.shapes import resample

__all__: list[str] = []

_LINEAR = {4: "bilinear", 5: "trilinear"}


class AnySize(EncoderDecoder):
    """An :class:`EncoderDecoder` whose first skip is ``grid_of(image)``, by which the decoder knows the image's size.

    Args:
        spatial_dims: 2 or 3.
        in_channels, feature_channels, feature_stride, skip_count: as there; the empty tensor counts as a skip.
        norm: of the bottleneck map, the smallest.

    Shape:
        ``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial)``; the bottleneck map has
        ``ceil(size / feature_stride)`` voxels along each axis.

    Raises:
        ValueError: an image of other axes or channels, an empty one, or one so small that the norm has no variance;
            features or skips that do not go together.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        feature_channels: int,
        feature_stride: int,
        skip_count: int,
        norm: Norm,
    ) -> None:
        super().__init__(
            in_channels, feature_channels, feature_stride, skip_count, feature_stride, spatial_dims=spatial_dims
        )
        self._norm = (norm if isinstance(norm, str) else norm[0]).lower()

    def check_image(self, image: Tensor) -> None:
        shape, name = tuple(image.shape), type(self).__name__
        if len(shape) != self.spatial_dims + 2 or shape[1] != self.in_channels or min(shape) < 1:
            raise ValueError(
                f"{name} got {shape}; it takes (batch, {self.in_channels}, *spatial) with {self.spatial_dims} spatial "
                "sizes of at least 1"
            )
        per_image = "instance" in self._norm
        needs_more = per_image or ("batch" in self._norm and self.training and shape[0] == 1)
        if needs_more and math.prod(self._bottleneck_grid(shape[2:])) == 1:
            remedy = "" if per_image else ", or train on batches of 2 or more"
            raise ValueError(
                f"{name} got {shape}, whose bottleneck map is one voxel, on which {self._norm} norm has no variance; "
                f"give a size above {self.feature_stride}{remedy}"
            )

    def check_features(self, features: Tensor, skips: Skips) -> None:
        name = type(self).__name__
        if len(skips) != self.skip_count:
            raise ValueError(f"{name}.decode got {len(skips)} skips; it takes the {self.skip_count} that encode gives")
        batch, _, *size = skips[0].shape
        check_bottleneck(name, features, (batch, self.feature_channels, *self._bottleneck_grid(size)))

    def _bottleneck_grid(self, size: Sequence[int]) -> list[int]:
        return [-(-length // self.feature_stride) for length in size]


def to_grid(features: Tensor, size: Sequence[int]) -> Tensor:
    """Bring ``(B, C, *spatial)`` to a grid by linear interpolation, corners not aligned.

    A recorded graph always interpolates: a comparison of the sizes would tie it to those it was recorded with.
    """
    if not is_recorded():
        return resample(features, size, "linear")
    return F.interpolate(features, size=tuple(size), mode=_LINEAR[features.ndim], align_corners=False)
