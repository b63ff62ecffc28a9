"""Feature maps brought to a small grid, and projected to the target's width: what contrastive losses compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_kd.networks.shapes import Features, LazyAdapter, Shape, as_list, like, widen

__all__ = ["GridPool", "ProjectionHead"]

_POOL = {
    1: nn.functional.adaptive_avg_pool1d,
    2: nn.functional.adaptive_avg_pool2d,
    3: nn.functional.adaptive_avg_pool3d,
}


class GridPool(nn.Module):
    """Means of feature maps over the cells of a grid, and if asked for fewer channels; nothing is learned.

    Channels are reduced by a fixed matrix, orthogonal rows of one length that ``seed`` gives: lengths and angles hardly
    change (Johnson-Lindenstrauss), and a term's target stays where it is.

    Args:
        grid: cells along each axis, one number or one for each axis; None keeps the map as it is.
        width: most channels that come out; None keeps all.
        seed: of the matrix.

    Shape:
        ``(B, C, *spatial)`` with 1 to 3 spatial axes, or a list of such; to ``(B, min(C, width), *grid)``.

    Raises:
        ValueError: a setting out of range; a grid of other axes than the map, or with more cells than it has voxels.

    Source: fixed reductions of the teacher, in place of the published 1x1 convolutions that Biswas 2024, arXiv
    2406.03173, draws anew at every step.
    """

    def __init__(self, grid: int | Sequence[int] | None = None, width: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.grid = check_grid(grid)
        if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
            raise ValueError(f"width is {width!r}; it must be a whole number above 0, or None")
        self.width, self.seed = width, seed

    def forward(self, features: Features) -> Any:
        return like(features, [self._reduced(pool_to_grid(value, self.grid)) for value in as_list(features)])

    def extra_repr(self) -> str:
        return f"grid={self.grid}, width={self.width}, seed={self.seed}"

    def _reduced(self, value: Tensor) -> Tensor:
        channels = value.shape[1]
        if self.width is None or channels <= self.width:
            return value
        matrix = self._matrix(channels, value.device)
        with torch.autocast(value.device.type, enabled=False):
            return torch.einsum("wc,bc...->bw...", matrix.to(widen(value).dtype), widen(value))

    def _matrix(self, channels: int, device: torch.device | str = "cpu") -> Tensor:
        """Return ``(width, channels)``: the rows that the seed gives, whatever the device and the order of calls."""
        assert self.width is not None
        name = f"_rows_{channels}"
        if name not in self._buffers:
            generator = torch.Generator().manual_seed(self.seed)
            columns, upper = torch.linalg.qr(
                torch.randn(channels, self.width, generator=generator, dtype=torch.float64)
            )
            columns = columns * upper.diagonal().sign()  # which libraries choose as they like
            scale = math.sqrt(channels / self.width)  # lengths stay the same on average
            self.register_buffer(name, (scale * columns.T).float().to(device), persistent=False)
        matrix: Tensor = self._buffers[name]  # type: ignore[assignment]
        return matrix.to(device)


class ProjectionHead(LazyAdapter):
    """Means of the student's feature maps over a grid, projected to the target's channels by trained layers.

    One linear map, or two with GELU between; the same at every cell. It is trained with the student, saved with the
    training and absent from the student's own file.

    Args:
        grid: cells along each axis, as of the target's :class:`GridPool`; None projects every voxel.
        hidden: units between two linear maps; None has one map.

    Shape:
        ``(B, C, *spatial)``, or a list of such, each with a projection of its own; to ``(B, target's C, *grid)``.

    Raises:
        ValueError: a setting out of range; on building, other axes or another number of features than the target's.
        RuntimeError: on use before it was built.

    Source: Biswas 2024, arXiv 2406.03173, projects by convolutions that are drawn anew at each step and trained by
    nobody: as their weights are symmetric about 0, the expected loss of every student is at least that of chance, and
    the best one can do is to carry no image. These persist.
    """

    def __init__(self, grid: int | Sequence[int] | None = None, hidden: int | None = None) -> None:
        super().__init__()
        self.grid = check_grid(grid)
        if hidden is not None and (isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 1):
            raise ValueError(f"hidden is {hidden!r}; it must be a whole number above 0, or None")
        self.hidden = hidden
        self.maps = nn.ModuleList()

    def make(self, own: list[Shape], other: list[Shape]) -> None:
        if not own or len(own) != len(other) or any(len(a) != len(b) for a, b in zip(own, other, strict=True)):
            raise ValueError(
                f"ProjectionHead got the features {own} for the targets {other}; give one target of as many axes for "
                "each"
            )
        for mine, theirs in zip(own, other, strict=True):
            pool_to_grid(torch.zeros(1, 1, *mine[2:]), self.grid)  # fails early where the axes differ
            self.maps.append(self._layers(mine[1], theirs[1]))

    def forward(self, student: Features) -> Any:
        pooled = [pool_to_grid(value, self.grid) for value in self.take(student)]
        projected = [layer(value.movedim(1, -1)).movedim(-1, 1) for layer, value in zip(self.maps, pooled, strict=True)]
        return like(student, projected)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, hidden={self.hidden}"

    def _layers(self, before: int, after: int) -> nn.Module:
        if self.hidden is None:
            return nn.Linear(before, after)
        return nn.Sequential(nn.Linear(before, self.hidden), nn.GELU(), nn.Linear(self.hidden, after))


def check_grid(grid: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    """Return a grid as given, a sequence as a tuple.

    Raises:
        ValueError: anything but whole numbers above 0.
    """
    if grid is None:
        return None
    cells = list(grid) if isinstance(grid, Sequence) else [grid]
    if not cells or not all(_is_count(size) for size in cells):
        raise ValueError(f"grid is {grid!r}; give a whole number above 0, one for each axis, or None")
    return grid if isinstance(grid, int) else tuple(cells)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def pool_to_grid(value: Tensor, grid: int | tuple[int, ...] | None) -> Tensor:
    """Return the means of ``(B, C, *spatial)`` over the cells of a grid; None and an equal grid leave it as it is."""
    axes = value.ndim - 2
    if grid is None:
        return value
    cells = (grid,) * axes if isinstance(grid, int) else grid
    if axes not in _POOL or len(cells) != axes:
        raise ValueError(f"a map {tuple(value.shape)} does not go with the grid {grid}; give a number for each axis")
    if any(own < most for own, most in zip(value.shape[2:], cells, strict=True)):
        raise ValueError(
            f"a map {tuple(value.shape)} has fewer voxels than the grid {cells} has cells; give a coarser one"
        )
    pool: Any = _POOL[axes]
    return value if tuple(value.shape[2:]) == cells else pool(value, cells)
