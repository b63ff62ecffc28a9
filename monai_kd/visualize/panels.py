"""What pictures of a case share: a slice with its scale, colors, gray levels, fills and outlines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CLASS_COLORS", "PLANE_OF_AXIS", "Plane", "dice_score"]

CLASS_COLORS = ("#4cc9f0", "#a3e635", "#f4a6d7", "#fff3b0", "#b8a9ff", "#ffffff")
BACKGROUND, TEXT = "#101214", "#e8eaed"
PLANE_OF_AXIS = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class Plane:
    """One slice: ``index`` along ``axis`` (None for a 2-D image), cropped in the plane to ``window``."""

    name: str
    axis: int | None
    index: int
    window: tuple[slice, slice]
    spacing_mm: tuple[float, float]

    def cut(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return the slice as an image: rows from top to bottom, columns from left to right."""
        if self.axis is None:
            return volume[self.window].T
        place = (slice(None),) * self.axis + (self.index,)  # a view: np.take would copy, slowly in Fortran order
        return volume[place][self.window].T[::-1]

    @property
    def title(self) -> str:
        """E.g. ``axial, slice 17``; nothing for a 2-D image."""
        return "" if self.axis is None else f"{self.name}, slice {self.index}"

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height of the window."""
        width, height = (s * (w.stop - w.start) for s, w in zip(self.spacing_mm, self.window, strict=True))
        return width, height


def dice_score(prediction: NDArray[Any], label: NDArray[Any], value: int) -> float | None:
    """Dice of one class, 0 to 1; None where the class is in neither map."""
    predicted, true = prediction == value, label == value
    total = int(predicted.sum()) + int(true.sum())
    return 2.0 * int((predicted & true).sum()) / total if total else None


def dice_text(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def gray_limits(image: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(image, [0.5, 99.5])
    return float(low), float(high if high > low else low + 1.0)


def outline(axes: Axes, mask: NDArray[np.bool_], color: str, extent: tuple[float, float, float, float]) -> None:
    x, y, padded = _contour_grid(mask, extent)
    if mask.any():
        axes.contour(x, y, padded, levels=[0.5], colors=[color], linewidths=1.4)


def fill(
    axes: Axes, mask: NDArray[np.bool_], color: str, extent: tuple[float, float, float, float], alpha: float
) -> None:
    x, y, padded = _contour_grid(mask, extent)
    if mask.any():
        axes.contourf(x, y, padded, levels=[0.5, 1.5], colors=[color], alpha=alpha)


def _contour_grid(
    mask: NDArray[np.bool_], extent: tuple[float, float, float, float]
) -> tuple[Any, Any, NDArray[np.float64]]:
    """Voxel centers in mm and the mask, padded so that contours close at the window's border."""
    _, width, height, _ = extent
    rows, columns = mask.shape
    x = (np.arange(-1, columns + 1) + 0.5) * width / columns
    y = (np.arange(-1, rows + 1) + 0.5) * height / rows
    return x, y, np.pad(mask.astype(np.float64), 1)
