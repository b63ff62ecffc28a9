"""One picture of a case: image, label and predictions side by side in the slices that tell most, errors marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_kd.visualize.panels import (
    BACKGROUND,
    CLASS_COLORS,
    PLANE_OF_AXIS,
    TEXT,
    Plane,
    dice_score,
    dice_text,
    fill,
    gray_limits,
    outline,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plane", "dice_score", "overlay_figure", "save_overlay", "telling_planes"]

MISSED, EXTRA, CONFUSED = "#ff2d55", "#ff9f0a", "#bf5af2"
_SHORTEST_SIDE = 8  # voxels; a plane with a shorter side (2 to 7 slices) shows nothing


def overlay_figure(
    image: ArrayLike,
    label: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    spacing_mm: Sequence[float],
    classes: Mapping[Any, str],
    title: str = "",
) -> Figure:
    """Draw a row per plane and a column for the label and each prediction; errors are filled, contours are outlines.

    Every panel has the scale of the spacing. Column heads give the Dice of the whole case, panels that of the slice.

    Args:
        image: one channel, ``(H, W)`` or ``(H, W, D)``, in MONAI's axis order: x first; a volume in RAS orientation
            (``Orientationd(axcodes="RAS")``), else the planes' names are wrong. Shown with the patient's right on
            the right.
        label: integer label map on the same grid, 0 is background.
        predictions: name to label map, drawn in this order, e.g. ``baseline``, ``distilled``, ``teacher``.
        spacing_mm: voxel size per axis in mm.
        classes: label value (number or digits) to name; the background may be left out.
        title: line above the figure, e.g. the case and the protocol.

    Raises:
        ValueError: shapes or the spacing do not fit, there is no prediction, or a map holds a value without a name.
    """
    names = {int(value): name for value, name in classes.items() if int(value) != 0}
    spacing = tuple(float(size) for size in spacing_mm)
    image_array, maps = _checked(image, label, predictions, spacing, names)
    planes = telling_planes(maps["label"], [maps[name] for name in predictions], spacing)
    heads = [_column_head(name, mask, maps["label"], names) for name, mask in maps.items()]
    figure, axes = _grid(planes, heads, title)
    limits = gray_limits(image_array)
    for row, plane in enumerate(planes):
        for panel, mask in zip(axes[row], maps.values(), strict=True):
            _draw_panel(panel, plane, image_array, mask, maps["label"], limits, names)
        axes[row][0].set_ylabel(plane.title, color=TEXT, fontsize=9)
    for panel, head in zip(axes[0], heads, strict=True):
        panel.set_title(head, color=TEXT, fontsize=9, pad=5)
    _legend(figure, names)
    return figure


def save_overlay(
    path: str | Path,
    image: ArrayLike,
    label: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    spacing_mm: Sequence[float],
    classes: Mapping[Any, str],
    title: str = "",
    dpi: int = 150,
) -> Path:
    """Write :func:`overlay_figure` as a PNG, creating its folder, and return the path."""
    figure = overlay_figure(image, label, predictions, spacing_mm, classes, title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return path


def telling_planes(
    label: NDArray[Any], predictions: Sequence[NDArray[Any]], spacing_mm: Sequence[float]
) -> list[Plane]:
    """Choose one slice per plane: the one with most label area plus most disagreement, each relative to its largest.

    The window is the foreground of label and predictions with a margin. Planes whose shorter side has fewer than
    8 voxels are left out (a stack of 5 slices is shown in its own plane only).
    """
    foreground = np.any([mask != 0 for mask in (label, *predictions)], axis=0)
    wrong = np.sum([mask != label for mask in predictions], axis=0)
    windows = [_window(foreground, axis) for axis in range(label.ndim)]
    if label.ndim == 2:
        return [Plane("image", None, 0, (windows[0], windows[1]), (spacing_mm[0], spacing_mm[1]))]
    planes = []
    for axis in (2, 1, 0):
        x, y = (other for other in range(3) if other != axis)
        if min(label.shape[x], label.shape[y]) < _SHORTEST_SIDE and axis != 2:
            continue
        score = _relative((label != 0).sum(axis=(x, y))) + _relative(wrong.sum(axis=(x, y)))
        window, spacing = (windows[x], windows[y]), (spacing_mm[x], spacing_mm[y])
        planes.append(Plane(PLANE_OF_AXIS[axis], axis, int(np.argmax(score)), window, spacing))
    return planes


def _relative(areas: NDArray[Any]) -> NDArray[np.float64]:
    return areas / max(float(areas.max()), 1.0)


def _window(foreground: NDArray[Any], axis: int, margin: float = 0.35, least: int = 4) -> slice:
    """The foreground's extent along an axis with a margin on both sides; the whole axis if there is no foreground."""
    others = tuple(other for other in range(foreground.ndim) if other != axis)
    hit = np.flatnonzero(foreground.any(axis=others))
    size = foreground.shape[axis]
    if hit.size == 0:
        return slice(0, size)
    room = max(least, round(margin * (hit[-1] - hit[0] + 1)))
    return slice(max(0, int(hit[0]) - room), min(size, int(hit[-1]) + room + 1))


def _checked(
    image: ArrayLike,
    label: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    spacing_mm: Sequence[float],
    names: Mapping[int, str],
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
    """Return the image and the maps to draw, ``label`` first, or say what does not fit."""
    image_array = np.asarray(image, dtype=np.float64)
    if image_array.ndim not in (2, 3):
        raise ValueError(f"image must be (H, W) or (H, W, D) without a channel axis, got shape {image_array.shape}")
    if len(spacing_mm) != image_array.ndim or min(spacing_mm) <= 0:
        raise ValueError(f"spacing_mm must be {image_array.ndim} positive sizes, got {tuple(spacing_mm)}")
    if not predictions:
        raise ValueError("predictions is empty; give at least one, e.g. {'distilled': label_map}")
    if "label" in predictions:
        raise ValueError("a prediction cannot be named 'label'; that column shows the reference")
    maps = {name: np.asarray(mask).astype(np.int64) for name, mask in {"label": label, **predictions}.items()}
    for name, mask in maps.items():
        if mask.shape != image_array.shape:
            raise ValueError(f"'{name}' has shape {mask.shape}, the image has {image_array.shape}")
        unknown = sorted(set(np.unique(mask).tolist()) - {0, *names})
        if unknown:
            raise ValueError(f"'{name}' holds label {unknown[0]}, which classes does not name; known: {sorted(names)}")
    return image_array, maps


# ---------------------------------------------------------------- drawing


def _grid(planes: Sequence[Plane], heads: Sequence[str], title: str) -> tuple[Figure, list[list[Axes]]]:
    """A figure whose rows have the heights that their planes need at one common panel width."""
    from monai.utils import optional_import

    figure_class, _ = optional_import("matplotlib.figure", name="Figure")
    canvas, _ = optional_import("matplotlib.backends.backend_agg", name="FigureCanvasAgg")
    n_columns = len(heads)
    panel = 2.5 if planes[0].axis is not None else 3.4  # inches wide
    heights = [panel * min(max(plane.size_mm[1] / plane.size_mm[0], 0.5), 1.6) for plane in planes]
    top = 0.15 + 0.15 * max(head.count("\n") + 1 for head in heads) + (0.3 if title else 0.0)
    bottom = 0.42
    width, height = panel * n_columns + 0.4, sum(heights) + top + bottom + 0.08 * len(planes)
    figure = figure_class(figsize=(width, height), facecolor=BACKGROUND)
    canvas(figure)
    grid = figure.add_gridspec(
        *(len(planes), n_columns),
        **{"height_ratios": heights, "wspace": 0.03, "hspace": 0.04},
        **{"left": 0.32 / width, "right": 1 - 0.08 / width, "top": 1 - top / height, "bottom": bottom / height},
    )
    if title:
        figure.suptitle(title, color=TEXT, fontsize=11, x=0.5, y=1 - 0.1 / height, va="top")
    axes = [[figure.add_subplot(grid[r, c]) for c in range(n_columns)] for r in range(len(planes))]
    return figure, axes


def _draw_panel(
    axes: Axes,
    plane: Plane,
    image: NDArray[np.float64],
    mask: NDArray[np.int64],
    label: NDArray[np.int64],
    limits: tuple[float, float],
    names: Mapping[int, str],
) -> None:
    width, height = plane.size_mm
    extent = (0.0, width, height, 0.0)
    shown, true = plane.cut(mask), plane.cut(label)
    thin = _is_thin(true, axes)
    axes.imshow(plane.cut(image), cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="bilinear", extent=extent)
    if mask is not label:
        colors = _error_colors(shown, true, alpha=0.95 if thin else 0.6)
        axes.imshow(colors, interpolation="nearest", zorder=3 if thin else 1, extent=extent)
    for index, value in enumerate(names):
        color = CLASS_COLORS[index % len(CLASS_COLORS)]
        if thin or mask is label:
            fill(axes, (shown == value) & (true == value), color, extent, alpha=0.9 if thin else 0.35)
        if not thin:
            outline(axes, shown == value, color, extent)
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0), aspect="equal", facecolor=BACKGROUND)
    axes.spines[:].set_visible(False)
    if mask is not label and plane.axis is not None:
        box = {"facecolor": BACKGROUND, "alpha": 0.65, "edgecolor": "none", "pad": 1.5}
        text = "slice Dice " + dice_text(_mean_dice(shown, true, names))
        axes.text(0.03, 0.03, text, transform=axes.transAxes, color=TEXT, fontsize=7.5, va="bottom", bbox=box)


def _is_thin(label: NDArray[np.int64], axes: Axes, least_points: float = 4.0) -> bool:
    """Tell whether outlines would hide a structure, e.g. vessels: its mean width on paper is below 4 points."""
    inside = np.pad(label != 0, 1)
    core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    n_edge = int(inside.sum()) - int(core.sum())
    if n_edge == 0:
        return False
    points_per_voxel = 72.0 * axes.bbox.width / axes.figure.dpi / label.shape[1]
    return 2.0 * int(inside.sum()) / n_edge * points_per_voxel < least_points


def _error_colors(shown: NDArray[np.int64], true: NDArray[np.int64], alpha: float) -> NDArray[np.float64]:
    """An RGBA picture, transparent where prediction and label agree."""
    from monai.utils import optional_import

    to_rgba, _ = optional_import("matplotlib.colors", name="to_rgba")
    colors = np.zeros((*shown.shape, 4))
    colors[(true != 0) & (shown == 0)] = to_rgba(MISSED, alpha)
    colors[(true == 0) & (shown != 0)] = to_rgba(EXTRA, alpha)
    colors[(true != 0) & (shown != 0) & (true != shown)] = to_rgba(CONFUSED, alpha)
    return colors


def _column_head(name: str, mask: NDArray[np.int64], label: NDArray[np.int64], names: Mapping[int, str]) -> str:
    """The column's name and the Dice of the whole case; each class on its own line where one line is too short."""
    if mask is label:
        return "label"
    head = f"{name}: Dice {dice_text(_mean_dice(mask, label, names))}"
    scores = [f"{class_name} {dice_text(dice_score(mask, label, value))}" for value, class_name in names.items()]
    if not 1 < len(scores) <= 4:
        return head
    line = ", ".join(scores)
    return "\n".join([head, line] if len(line) <= 34 else [head, *scores])


def _mean_dice(mask: NDArray[np.int64], label: NDArray[np.int64], names: Mapping[int, str]) -> float | None:
    scores = [score for value in names if (score := dice_score(mask, label, value)) is not None]
    return float(np.mean(scores)) if scores else None


def _legend(figure: Figure, names: Mapping[int, str]) -> None:
    handles = list(_legend_handles(names))
    figure.legend(
        handles=handles, loc="lower center", ncols=min(len(handles), 8), frameon=False, labelcolor=TEXT, fontsize=8.5
    )


def _legend_handles(names: Mapping[int, str]) -> Iterator[Any]:
    from monai.utils import optional_import

    line, _ = optional_import("matplotlib.lines", name="Line2D")
    patch, _ = optional_import("matplotlib.patches", name="Patch")
    for index, name in enumerate(names.values()):
        yield line([], [], color=CLASS_COLORS[index % len(CLASS_COLORS)], linewidth=2, label=name)
    confused = [(CONFUSED, "wrong class")] if len(names) > 1 else []
    for color, meaning in [(MISSED, "missed"), (EXTRA, "extra"), *confused]:
        yield patch(facecolor=color, alpha=0.8, label=meaning)
