"""What pictures of errors share: maps that fit an image, their window, a panel with its errors, scores and a legend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_kd.visualize.panels import BACKGROUND, CLASS_COLORS, TEXT, Plane, dice_score, dice_text, fill, outline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "CONFUSED",
    "ERROR_SHARE",
    "EXTRA",
    "FILL_SHARE",
    "MISSED",
    "checked_maps",
    "class_colors",
    "class_scores",
    "draw_gray",
    "draw_map",
    "error_handles",
    "foreground_window",
    "is_thin",
    "mean_dice",
    "named_classes",
]

MISSED, EXTRA, CONFUSED = "#ff2d55", "#ff9f0a", "#bf5af2"
# opacities of errors and of what is filled, by whether structures are thin
ERROR_SHARE, FILL_SHARE = {False: 0.6, True: 0.95}, {False: 0.35, True: 0.9}


def named_classes(classes: Mapping[Any, str]) -> dict[int, str]:
    """Return label value to name without the background; values may be given as digits."""
    return {int(value): name for value, name in classes.items() if int(value) != 0}


def class_colors(names: Mapping[int, str]) -> dict[int, str]:
    """Return label value to color; colors repeat after the sixth class."""
    return {value: CLASS_COLORS[index % len(CLASS_COLORS)] for index, value in enumerate(names)}


def checked_maps(
    image: ArrayLike,
    label: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    spacing_mm: Sequence[float],
    names: Mapping[int, str],
    reference: str = "label",
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
    """Return the image and the maps to draw, the label first as ``reference``.

    Raises:
        ValueError: shapes or the spacing do not fit, there is no prediction, one has the name of the reference, or a
            map holds a value without a name.
    """
    image_array = np.asarray(image, dtype=np.float64)
    if image_array.ndim not in (2, 3):
        raise ValueError(f"image must be (H, W) or (H, W, D) without a channel axis, got shape {image_array.shape}")
    if len(spacing_mm) != image_array.ndim or min(spacing_mm) <= 0:
        raise ValueError(f"spacing_mm must be {image_array.ndim} positive sizes, got {tuple(spacing_mm)}")
    if not predictions:
        raise ValueError("predictions is empty; give at least one, e.g. {'distilled': label_map}")
    if reference in predictions:
        raise ValueError(f"a prediction cannot be named '{reference}'; that column shows the reference")
    maps = {name: np.asarray(mask).astype(np.int64) for name, mask in {reference: label, **predictions}.items()}
    for name, mask in maps.items():
        if mask.shape != image_array.shape:
            raise ValueError(f"'{name}' has shape {mask.shape}, the image has {image_array.shape}")
        unknown = sorted(set(np.unique(mask).tolist()) - {0, *names})
        if unknown:
            raise ValueError(f"'{name}' holds label {unknown[0]}, which classes does not name; known: {sorted(names)}")
    return image_array, maps


def foreground_window(foreground: NDArray[Any], axis: int, margin: float = 0.35, least: int = 4) -> slice:
    """Return the foreground's extent along an axis with a margin on both sides; the whole axis if there is none.

    Args:
        foreground: True where something is.
        axis: along which.
        margin: relative to the extent.
        least: voxels of the margin.
    """
    others = tuple(other for other in range(foreground.ndim) if other != axis)
    hit = np.flatnonzero(foreground.any(axis=others))
    size = foreground.shape[axis]
    if hit.size == 0:
        return slice(0, size)
    room = max(least, round(margin * (hit[-1] - hit[0] + 1)))
    return slice(max(0, int(hit[0]) - room), min(size, int(hit[-1]) + room + 1))


# ---------------------------------------------------------------- scores


def mean_dice(mask: NDArray[np.int64], label: NDArray[np.int64], names: Mapping[int, str]) -> float | None:
    """Return the mean Dice of the classes that are in either map; None without any."""
    scores = [score for value in names if (score := dice_score(mask, label, value)) is not None]
    return float(np.mean(scores)) if scores else None


def class_scores(mask: NDArray[np.int64], label: NDArray[np.int64], names: Mapping[int, str]) -> list[str]:
    """Return name and Dice of each class if they are 2 to 4, else nothing: a head has no room for more."""
    if not 1 < len(names) <= 4:
        return []
    return [f"{name} {dice_text(dice_score(mask, label, value))}" for value, name in names.items()]


# ---------------------------------------------------------------- drawing


def draw_gray(axes: Axes, plane: Plane, image: NDArray[np.float64], limits: tuple[float, float]) -> None:
    """Draw a slice of the image in millimeters, without ticks and frame."""
    width, height = plane.size_mm
    extent = (0.0, width, height, 0.0)
    axes.imshow(plane.cut(image), cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="bilinear", extent=extent)
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0), aspect="equal", facecolor=BACKGROUND)
    axes.spines[:].set_visible(False)


def draw_map(
    axes: Axes,
    plane: Plane,
    image: NDArray[np.float64],
    mask: NDArray[np.int64],
    label: NDArray[np.int64],
    limits: tuple[float, float],
    names: Mapping[int, str],
    thin: bool,
) -> None:
    """Draw a slice with the classes of a map: outlines, and its errors and the Dice of the slice if it is no label.

    Args:
        axes: where to draw.
        plane: the slice.
        image: gray values.
        mask: the map; the label itself (the same object) is filled and has no errors.
        label: the reference.
        limits: gray values of black and white.
        names: of the classes.
        thin: fill instead of outlining, see :func:`is_thin`.
    """
    extent = (0.0, *plane.size_mm, 0.0)
    shown, true = plane.cut(mask), plane.cut(label)
    draw_gray(axes, plane, image, limits)
    if mask is not label:
        colors = _error_colors(shown, true, ERROR_SHARE[thin])
        axes.imshow(colors, interpolation="nearest", zorder=3 if thin else 1, extent=extent)
    for value, color in class_colors(names).items():
        if thin or mask is label:
            fill(axes, (shown == value) & (true == value), color, extent, FILL_SHARE[thin])
        if not thin:
            outline(axes, shown == value, color, extent)
    if mask is not label and plane.axis is not None:
        box = {"facecolor": BACKGROUND, "alpha": 0.65, "edgecolor": "none", "pad": 1.5}
        text = "slice Dice " + dice_text(mean_dice(shown, true, names))
        axes.text(0.03, 0.03, text, transform=axes.transAxes, color=TEXT, fontsize=7.5, va="bottom", bbox=box)


def is_thin(label: NDArray[np.int64], axes: Axes, least_points: float = 4.0) -> bool:
    """Tell whether outlines would hide a structure, e.g. vessels: its mean width on paper is below 4 points."""
    inside = np.pad(label != 0, 1)
    core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    n_edge = int(inside.sum()) - int(core.sum())
    if n_edge == 0:
        return False
    points_per_voxel = 72.0 * axes.bbox.width / axes.figure.dpi / label.shape[1]
    return 2.0 * int(inside.sum()) / n_edge * points_per_voxel < least_points


def error_handles(names: Mapping[int, str]) -> Iterator[Any]:
    """Yield a legend's entries: a line per class, a patch per kind of error."""
    from monai.utils import optional_import

    line, _ = optional_import("matplotlib.lines", name="Line2D")
    patch, _ = optional_import("matplotlib.patches", name="Patch")
    for value, color in class_colors(names).items():
        yield line([], [], color=color, linewidth=2, label=names[value])
    confused = [(CONFUSED, "wrong class")] if len(names) > 1 else []
    for color, meaning in [(MISSED, "missed"), (EXTRA, "extra"), *confused]:
        yield patch(facecolor=color, alpha=0.8, label=meaning)


def _error_colors(shown: NDArray[np.int64], true: NDArray[np.int64], alpha: float) -> NDArray[np.float64]:
    """An RGBA picture, transparent where prediction and label agree."""
    from monai.utils import optional_import

    to_rgba, _ = optional_import("matplotlib.colors", name="to_rgba")
    colors = np.zeros((*shown.shape, 4))
    colors[(true != 0) & (shown == 0)] = to_rgba(MISSED, alpha)
    colors[(true == 0) & (shown != 0)] = to_rgba(EXTRA, alpha)
    colors[(true != 0) & (shown != 0) & (true != shown)] = to_rgba(CONFUSED, alpha)
    return colors
