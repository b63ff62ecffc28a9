"""Adapters of features, one tensor or a list: to the target's channels, to its grid, to a common scale."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Act, Conv, Norm, split_args
from torch import Tensor, nn

from monai_kd.networks.shapes import (
    Features,
    LazyAdapter,
    Shape,
    as_list,
    check_maps,
    check_mode,
    check_voxels,
    grids_of,
    like,
    resample,
    widen,
)

__all__ = ["AutoAdapter", "PointwiseAdapter", "ResizeAdapter", "StandardizeAdapter"]


class PointwiseAdapter(LazyAdapter):
    """A convolution to the target's channels, if asked for with normalization and activation; the grid stays.

    Args:
        norm: a MONAI normalization, e.g. ``batch`` or ``[instance, {affine: true}]``; None leaves it out.
        act: a MONAI activation, e.g. ``relu``; None leaves it out.
        bias: whether the convolution has one.
        kernel_size: of the convolution along each axis, odd; 1 mixes channels only, 3 sees the neighbors too.

    Shape:
        ``(B, C, *spatial)`` with 1 to 3 spatial axes, or a list of such, each of which gets its own convolution.

    Raises:
        ValueError: a setting that is not known; on building, shapes that are not such pairs.
        RuntimeError: on use before it was built.

    Source: Romero et al. 2015, "FitNets", the regressor of section 2.2.
    """

    def __init__(self, norm: Any = None, act: Any = None, bias: bool = True, kernel_size: int = 1) -> None:
        super().__init__()
        self.norm = _check_layer("norm", norm, Norm)
        self.act = _check_layer("act", act, Act)
        self.bias = bias
        if isinstance(kernel_size, bool) or not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size!r}; it must be an odd whole number, e.g. 1 or 3")
        self.kernel_size = kernel_size
        self.maps = nn.ModuleList()

    def make(self, own: list[Shape], other: list[Shape]) -> None:
        check_maps(own, other, "PointwiseAdapter")
        self.maps.extend([self._layer(*pair) for pair in zip(own, other, strict=True)])

    def forward(self, student: Features) -> Any:
        features = self.take(student)
        return like(student, [layer(feature) for layer, feature in zip(self.maps, features, strict=True)])

    def _layer(self, own: Shape, other: Shape) -> nn.Module:
        if self.norm is not None and self.norm[0].lower() in ("batch", "instance"):
            check_voxels(own, self.norm[0].lower(), "PointwiseAdapter")
        layers = {"norm": self.norm, "act": self.act, "adn_ordering": "NA"}
        try:
            return Convolution(len(own) - 2, own[1], other[1], kernel_size=self.kernel_size, bias=self.bias, **layers)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"PointwiseAdapter(norm={self.norm!r}, act={self.act!r}) from {own} to {other}: {error}"
            ) from error

    def extra_repr(self) -> str:
        return f"norm={self.norm!r}, act={self.act!r}, bias={self.bias}, kernel_size={self.kernel_size}"


class AutoAdapter(LazyAdapter):
    """What it takes to give features the target's shape, and no more.

    Channels: nothing where they agree, a 1x1 convolution with bias where they differ. Grid: the mean over the voxels
    that one of the target's covers along axes on which the student is finer, linear interpolation along those on
    which it is coarser. The convolution runs on the smaller grid; it commutes with the resizing.

    Shape:
        student, target: ``(B, C, *spatial)`` with 1 to 3 spatial axes, or equally long lists of such; the grids may
        change from call to call.

    Raises:
        ValueError: shapes that are not such pairs.
        RuntimeError: on use before it was built.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList()

    def make(self, own: list[Shape], other: list[Shape]) -> None:
        check_maps(own, other, "AutoAdapter")
        for mine, theirs in zip(own, other, strict=True):
            layer = Conv[Conv.CONV, len(mine) - 2]
            self.maps.append(nn.Identity() if mine[1] == theirs[1] else layer(mine[1], theirs[1], kernel_size=1))

    def forward(self, student: Features, target: Features) -> Any:
        features = self.take(student)
        results = []
        for layer, feature, size in zip(self.maps, features, grids_of(target, features, "AutoAdapter"), strict=True):
            smaller = [min(pair) for pair in zip(feature.shape[2:], size, strict=True)]
            results.append(resample(layer(resample(feature, smaller, "area")), size, "linear"))
        return like(student, results)


class ResizeAdapter(nn.Module):
    """Features on the target's grid, whatever it is at run time; without weights.

    Args:
        mode: ``linear`` (corners not aligned), ``area`` (the mean of the voxels that a new one covers: for grids that
            shrink) or ``nearest`` (voxel centers).

    Shape:
        student, target: ``(B, C, *spatial)`` with 1 to 3 spatial axes, or equally long lists of such; the channels
        may differ.

    Raises:
        ValueError: an unknown mode, or targets with other numbers of axes.
    """

    def __init__(self, mode: str = "linear") -> None:
        super().__init__()
        self.mode = check_mode("mode", mode)

    def forward(self, student: Features, target: Features) -> Any:
        features = as_list(student)
        sizes = grids_of(target, features, "ResizeAdapter")
        results = [resample(feature, size, self.mode) for feature, size in zip(features, sizes, strict=True)]
        return like(student, results)

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}"


# deviation over mean below which a channel is constant but for rounding, as in losses.FeatureMimic
_CONSTANT = 1e-6


class StandardizeAdapter(nn.Module):
    """Each channel with zero mean and unit variance over batch and space, so that its scale does not count.

    On both sides it makes a mean squared difference a correlation: half of it is one minus Pearson's, times
    ``(n - 1) / n`` of n values. A channel that is constant becomes 0 and passes no gradient. Computed in float32.
    Statistics are those of the batch at hand, on each process; nothing is learned or kept.

    Shape:
        ``(B, C, *spatial)``, or a list of such.

    Source: Cao et al. 2022, "PKD", eq. 2 and 3. The published code adds 1e-6 to the deviation, which blows up noise on
    constant channels.
    """

    def forward(self, student: Features) -> Any:
        return like(student, [_standardized(feature) for feature in as_list(student)])


def _standardized(feature: Tensor) -> Tensor:
    if feature.ndim < 3:
        raise ValueError(f"StandardizeAdapter got {tuple(feature.shape)}; it takes (batch, channels, *spatial)")
    with torch.autocast(feature.device.type, enabled=False):
        value = widen(feature)
        axes = [0, *range(2, value.ndim)]
        count = value.numel() // value.shape[1]
        variance, mean = torch.var_mean(value, axes, correction=min(1, count - 1), keepdim=True)
        # 1 / inf is 0: no value and no gradient, where a square root near 0 has an endless one
        scale = torch.where(variance > (_CONSTANT * mean).square(), variance, torch.inf).rsqrt()
        return (value - mean) * scale


def _check_layer(name: str, value: Any, factory: Any) -> Any:
    """Return a MONAI layer description as it is, if the factory knows it."""
    if value is None:
        return None
    try:
        kind, settings = split_args(value)
        factory[kind, 1]
    except (AttributeError, TypeError, ValueError) as error:
        known = ", ".join(sorted(entry.lower() for entry in factory.names))
        raise ValueError(f"{name} is {value!r}; give a MONAI name or [name, settings]; known: {known}") from error
    return (kind, settings)
