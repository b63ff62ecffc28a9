"""What adapters share: features as lists, their shapes, and layers made once the shapes are known."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor, nn

__all__: list[str] = []

Features: TypeAlias = Tensor | Sequence[Tensor]
Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Sequence[int] | Sequence[Sequence[int]]

# nearest-exact: voxel centers, as in linear interpolation; the same as "nearest" where a grid grows by a whole factor
_MODES = {
    "nearest": dict.fromkeys((3, 4, 5), "nearest-exact"),
    "linear": {3: "linear", 4: "bilinear", 5: "trilinear"},
    "area": dict.fromkeys((3, 4, 5), "area"),
}


def plain_tensor(value: Tensor) -> Tensor:
    """Return the tensor without MONAI's metadata, which costs time in each operation."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value


def as_list(features: Features) -> list[Tensor]:
    """Return features as a list; a single tensor is a list of one."""
    return [features] if isinstance(features, Tensor) else list(features)


def like(features: Features, results: list[Tensor]) -> Any:
    """Return results as the features came: a tensor for a tensor, a list for a list."""
    return results[0] if isinstance(features, Tensor) else results


def as_shapes(shapes: Shapes) -> list[Shape]:
    """Return shapes as a list of tuples; a single shape is a list of one."""
    if all(isinstance(length, int) for length in shapes):
        return [tuple(shapes)]  # type: ignore[arg-type]
    return [tuple(shape) for shape in shapes]  # type: ignore[arg-type]


def shapes_of(features: Features) -> torch.Size | list[torch.Size]:
    """Return the shape of a tensor, or the list of shapes of a list."""
    return features.shape if isinstance(features, Tensor) else [feature.shape for feature in features]


def check_mode(name: str, mode: str, known: Sequence[str] = tuple(_MODES)) -> str:
    if mode not in known:
        raise ValueError(f"{name} is {mode!r}; known: {', '.join(known)}")
    return mode


def resample(value: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """Bring ``(B, C, *spatial)`` to a grid; unchanged where it has that grid.

    Args:
        mode: ``nearest``, ``linear`` (corners not aligned) or ``area`` (the mean of the voxels that a new one covers).
    """
    if value.shape[2:] == tuple(size):
        return value
    corners = False if mode == "linear" else None
    return F.interpolate(value, size=tuple(size), mode=_MODES[mode][value.ndim], align_corners=corners)


def widen(value: Tensor) -> Tensor:
    """Return float32 of half precision; float64 stays."""
    return value if value.dtype == torch.float64 else value.float()


def grids_of(target: Features, features: list[Tensor], what: str) -> list[torch.Size]:
    """Return the grid of each target.

    Raises:
        ValueError: not one ``(B, C, *spatial)`` with as many axes for each feature; names the shapes.
    """
    targets = as_list(target)
    if [value.ndim for value in targets] != [value.ndim for value in features]:
        raise ValueError(
            f"{what} got the features {[tuple(value.shape) for value in features]} and the targets "
            f"{[tuple(value.shape) for value in targets]}; give one target of as many axes for each"
        )
    return [value.shape[2:] for value in targets]


def check_maps(own: list[Shape], other: list[Shape], what: str) -> None:
    """Refuse shapes that are not equally many pairs of ``(B, C, *spatial)`` with as many spatial axes, 1 to 3.

    Raises:
        ValueError: names the shapes.
    """
    if not own or len(own) != len(other):
        raise ValueError(f"{what} got the features {own} for the targets {other}; it needs one target for each")
    for mine, theirs in zip(own, other, strict=True):
        if len(mine) != len(theirs) or not 3 <= len(mine) <= 5:
            raise ValueError(
                f"{what} got the feature {mine} for the target {theirs}; both must be (batch, channels, *spatial) with "
                "the same 1 to 3 spatial axes; tokens need TokensToMap first"
            )


def check_voxels(shape: Shape, norm: str, what: str) -> None:
    """Refuse a map on which ``batch`` or ``instance`` norm gets one value per channel, which has no variance.

    Raises:
        ValueError: names the shape.
    """
    if math.prod(shape[2:]) > 1 or (norm == "batch" and shape[0] > 1):
        return
    remedy = "a training batch of 2 or more (say so in input_shape)" if norm == "batch" else "batch norm"
    raise ValueError(
        f"{what}: the grid of {tuple(shape)} is a single voxel, on which {norm} norm has no variance; "
        f"it takes {remedy}, a larger patch, or to leave this stage out"
    )


class LazyAdapter(nn.Module, ABC):
    """Base of adapters that are made when the shapes are known: configurations hold neither channels nor sizes.

    A subclass gives :meth:`make`. A Distiller calls :meth:`build` once, after a dry forward on its ``input_shape``.
    """

    needs = "weights"

    def __init__(self) -> None:
        super().__init__()
        self.built: tuple[list[Shape], list[Shape]] | None = None

    @abstractmethod
    def make(self, own: list[Shape], other: list[Shape]) -> None:
        """Make the layers for features of the shapes ``own`` that are to meet ``other``."""

    def build(self, student_shapes: Shapes, target_shapes: Shapes) -> None:
        """Make the layers; called again with the same shapes (but for the batch) it keeps them.

        Args:
            student_shapes: of the features to adapt, one shape or a list of them.
            target_shapes: of the features that they are to meet, likewise.

        Raises:
            ValueError: shapes that cannot be adapted, or other ones than the adapter was built for.
        """
        own, other = as_shapes(student_shapes), as_shapes(target_shapes)
        layout = [shape[1:] for shape in own], [shape[1:] for shape in other]
        if self.built is None:
            self.make(own, other)
            self.built = layout
        elif self.built != layout:
            raise ValueError(
                f"{type(self).__name__} was built for features {self.built[0]} and targets {self.built[1]} (without "
                f"the batch), now got {layout[0]} and {layout[1]}; give each term an adapter of its own"
            )

    def take(self, features: Features) -> list[Tensor]:
        """Return the features as a list, checked against what the adapter was built for.

        Raises:
            RuntimeError: it has not been built.
            ValueError: another number of features, other channels or another number of axes.
        """
        if self.built is None:
            raise RuntimeError(
                f"{type(self).__name__}: this adapter has no {self.needs} yet: give the Distiller input_shape, "
                "e.g. [1, C, *patch_size]"
            )
        found, known = as_list(features), self.built[0]
        if len(found) != len(known) or not all(map(self.fits, found, known)):
            raise ValueError(
                f"{type(self).__name__} was built for features {known} (without the batch), got "
                f"{[tuple(value.shape) for value in found]}"
            )
        return found

    def fits(self, feature: Tensor, shape: Shape) -> bool:
        """Tell whether a feature goes with a shape (without the batch) that the adapter was built for."""
        return feature.ndim == len(shape) + 1 and feature.shape[1] == shape[0]
