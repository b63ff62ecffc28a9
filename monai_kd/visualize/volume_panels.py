"""One slice of a viewer's case: its plane, what is drawn on it, letters of orientation and a scale bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.utils import optional_import
from numpy.typing import NDArray

from monai_kd.visualize.panels import BACKGROUND, PLANE_OF_AXIS, TEXT, Plane, dice_text, fill, outline
from monai_kd.visualize.viewer_case import ViewerCase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "body_windows",
    "case_planes",
    "checked_window",
    "chosen_voxel",
    "draw_letters",
    "draw_scale_bar",
    "draw_slice",
    "empty_figure",
    "gray_range",
    "structure_handles",
]

# left, right, top, bottom of the planes across x, y and z; right of the patient is on the right, as in the overlays
_LETTERS = (("P", "A", "S", "I"), ("L", "R", "S", "I"), ("L", "R", "A", "P"))
_LETTER_PLACES = (
    (0.015, 0.5, "left", "center"),
    (0.985, 0.5, "right", "center"),
    (0.5, 0.985, "center", "top"),
    (0.5, 0.015, "center", "bottom"),
)
_BARS_MM = (1, 2, 5, 10, 20, 50, 100)
_AIR = 0.05  # of the gray range: what is darker at the border is cut off


def chosen_voxel(case: ViewerCase, point_mm: Sequence[float] | None = None) -> tuple[int, int, int]:
    """Return the voxel that slices pass through.

    Args:
        case: the case.
        point_mm: RAS+ millimeters; None takes along each axis the slice with most prediction and truth, or the middle
            where both are empty.

    Raises:
        ValueError: not three numbers, or the point lies outside the volume; says where that is.
    """
    if point_mm is None:
        areas = _areas(case)
        i, j, k = (int(np.argmax(area)) if area.any() else len(area) // 2 for area in areas)
        return i, j, k
    if not isinstance(point_mm, Sequence) or len(point_mm) != 3:
        raise ValueError(f"point is {point_mm}; it must be three numbers, RAS+ millimeters")
    place = np.linalg.solve(case.affine, [*map(float, point_mm), 1.0])[:3]
    i, j, k = (int(index) for index in np.round(place))
    if not all(0 <= index < size for index, size in zip((i, j, k), case.image.shape, strict=True)):
        ends = np.array(np.meshgrid(*[(0, size - 1) for size in case.image.shape])).reshape(3, -1)
        corners = case.affine[:3, :3] @ ends + case.affine[:3, 3:]
        spans = ", ".join(f"{low:g} to {high:g}" for low, high in zip(corners.min(1), corners.max(1), strict=True))
        raise ValueError(f"point {list(point_mm)} lies outside the volume, which spans {spans} mm")
    return i, j, k


def case_planes(case: ViewerCase, voxel: tuple[int, int, int]) -> list[Plane]:
    """Return the axial, coronal and sagittal plane through a voxel, without the dark border around the body."""
    windows = body_windows(case, voxel)
    planes = []
    for axis in (2, 1, 0):
        x, y = (other for other in range(3) if other != axis)
        spacing = (case.spacing_mm[x], case.spacing_mm[y])
        planes.append(Plane(PLANE_OF_AXIS[axis], axis, voxel[axis], (windows[x], windows[y]), spacing))
    return planes


def _foreground(case: ViewerCase) -> Iterator[NDArray[np.bool_]]:
    for structure in case.structures:
        for found in case.maps.values():
            yield structure.mask(found)


def _areas(case: ViewerCase) -> list[NDArray[np.int64]]:
    """Voxels of all structures per slice, along each axis."""
    areas = [np.zeros(size, dtype=np.int64) for size in case.image.shape]
    for mask in _foreground(case):
        for axis, area in enumerate(areas):
            area += mask.sum(axis=tuple({0, 1, 2} - {axis}))
    return areas


def _body(case: ViewerCase) -> NDArray[np.bool_]:
    """True where the image is brighter than air."""
    low, high = float(case.image.min()), float(np.percentile(case.image, 99.5))
    return case.image > low + _AIR * (high - low)


def gray_range(case: ViewerCase, window: Sequence[float] | None = None) -> tuple[float, float]:
    """Return the gray values of black and white.

    Args:
        case: the case.
        window: the two values, e.g. -160 and 240 for soft tissue in CT; None takes all but the brightest 0.2 % of the
            body, from air on.

    Raises:
        ValueError: not two rising numbers.
    """
    if window is not None:
        return checked_window(window)
    body = case.image[_body(case)]
    low = float(case.image.min())
    return low, float(np.percentile(body, 99.8)) if body.size else low + 1.0


def checked_window(window: Sequence[float]) -> tuple[float, float]:
    """Return the gray values of black and white that someone gave.

    Raises:
        ValueError: not two rising numbers.
    """
    if not isinstance(window, Sequence) or len(window) != 2 or not window[0] < window[1]:
        raise ValueError(f"window is {window}; it must be two rising gray values, those of black and of white")
    return float(window[0]), float(window[1])


def body_windows(case: ViewerCase, voxel: tuple[int, int, int]) -> list[slice]:
    """Return along each axis the part that holds the body, all structures and a voxel, with a little room."""
    seen = _body(case)
    windows = []
    for axis, area in enumerate(_areas(case)):
        bright = seen.any(axis=tuple({0, 1, 2} - {axis})) | (area > 0)
        bright[voxel[axis]] = True
        hit = np.flatnonzero(bright)
        room = max(2, round(0.03 * len(hit)))
        windows.append(slice(max(0, int(hit[0]) - room), min(len(area), int(hit[-1]) + room + 1)))
    return windows


def draw_slice(
    axes: Axes,
    plane: Plane,
    case: ViewerCase,
    limits: tuple[float, float],
    filled: str | None = None,
    outlined: str | None = None,
) -> None:
    """Draw a slice of the image in gray, in millimeters, and on it one map's structures filled, one's as lines.

    Args:
        axes: where to draw.
        plane: the slice.
        case: the case.
        limits: gray values of black and white.
        filled, outlined: ``prediction``, ``truth`` or None.
    """
    width, height = plane.size_mm
    extent = (0.0, width, height, 0.0)
    gray = plane.cut(case.image)
    axes.imshow(gray, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="bilinear", extent=extent)
    for structure in case.structures:
        if filled:
            fill(axes, structure.mask(plane.cut(case.maps[filled])), structure.color, extent, alpha=0.38)
        if outlined:
            outline(axes, structure.mask(plane.cut(case.maps[outlined])), structure.color, extent)
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0), aspect="equal", facecolor=BACKGROUND)
    axes.spines[:].set_visible(False)


def draw_letters(axes: Axes, plane: Plane, size: float = 9.0) -> None:
    """Write where right (R), left, front (A), back (P), up (S) and down (I) are at the borders of a slice."""
    assert plane.axis is not None
    style: Any = {"transform": axes.transAxes, "color": TEXT, "fontsize": size, "weight": "bold"}
    for letter, (x, y, ha, va) in zip(_LETTERS[plane.axis], _LETTER_PLACES, strict=True):
        axes.text(x, y, letter, ha=ha, va=va, path_effects=_dark_edge(), **style)


def draw_scale_bar(axes: Axes, plane: Plane, size: float = 8.0) -> int:
    """Draw a bar of a round length, at most a quarter of the width, at the lower left; return its millimeters."""
    width, height = plane.size_mm
    length = max((mm for mm in _BARS_MM if mm <= width / 4), default=_BARS_MM[0])
    left, bottom = 0.03 * width, height - 0.03 * width
    style: Any = {"color": TEXT, "path_effects": _dark_edge()}
    axes.plot([left, left + length], [bottom, bottom], linewidth=2, solid_capstyle="butt", **style)
    axes.annotate(f"{length} mm", (left, bottom), (0, 3), textcoords="offset points", fontsize=size, **style)
    return length


def _dark_edge() -> list[Any]:
    """Around light marks, or bright tissue would swallow them."""
    stroke, _ = optional_import("matplotlib.patheffects", name="withStroke")
    return [stroke(linewidth=2.5, foreground=BACKGROUND)]


def structure_handles(case: ViewerCase) -> Iterator[Any]:
    """Yield a legend's entry per structure: its color, its name and, with truth, its Dice in the whole volume."""
    patch, _ = optional_import("matplotlib.patches", name="Patch")
    for structure in case.structures:
        score = f"  Dice {dice_text(case.dice(structure))}" if "truth" in case.maps else ""
        yield patch(facecolor=structure.color, label=structure.name + score)


def empty_figure(width: float, height: float, dpi: float = 100) -> Figure:
    """Return a dark figure of a size in inches that has its own canvas: pyplot's state is not touched.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure_class, found = optional_import("matplotlib.figure", name="Figure")
    canvas, _ = optional_import("matplotlib.backends.backend_agg", name="FigureCanvasAgg")
    if not found:
        raise ImportError("the viewer needs matplotlib: pip install 'monai_kd[viewer]'")
    figure: Figure = figure_class(figsize=(width, height), dpi=dpi, facecolor=BACKGROUND)
    canvas(figure)
    return figure
