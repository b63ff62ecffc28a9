"""One picture of a case: image, label and predictions side by side in the slices that tell most, errors marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_kd.visualize.error_panels import (
    checked_maps,
    class_scores,
    draw_map,
    error_handles,
    foreground_window,
    is_thin,
    mean_dice,
    named_classes,
)
from monai_kd.visualize.panels import BACKGROUND, PLANE_OF_AXIS, TEXT, Plane, dice_score, dice_text, gray_limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plane", "dice_score", "overlay_figure", "save_overlay", "telling_planes"]

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
    names = named_classes(classes)
    spacing = tuple(float(size) for size in spacing_mm)
    image_array, maps = checked_maps(image, label, predictions, spacing, names)
    planes = telling_planes(maps["label"], [maps[name] for name in predictions], spacing)
    heads = [_column_head(name, mask, maps["label"], names) for name, mask in maps.items()]
    figure, axes = _grid(planes, heads, title)
    limits = gray_limits(image_array)
    for row, plane in enumerate(planes):
        for panel, mask in zip(axes[row], maps.values(), strict=True):
            thin = is_thin(plane.cut(maps["label"]), panel)
            draw_map(panel, plane, image_array, mask, maps["label"], limits, names, thin)
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
    windows = [foreground_window(foreground, axis) for axis in range(label.ndim)]
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


def _column_head(name: str, mask: NDArray[np.int64], label: NDArray[np.int64], names: Mapping[int, str]) -> str:
    """The column's name and the Dice of the whole case; each class on its own line where one line is too short."""
    if mask is label:
        return "label"
    head = f"{name}: Dice {dice_text(mean_dice(mask, label, names))}"
    scores = class_scores(mask, label, names)
    if not scores:
        return head
    line = ", ".join(scores)
    return "\n".join([head, line] if len(line) <= 34 else [head, *scores])


def _legend(figure: Figure, names: Mapping[int, str]) -> None:
    handles = list(error_handles(names))
    figure.legend(
        handles=handles, loc="lower center", ncols=min(len(handles), 8), frameon=False, labelcolor=TEXT, fontsize=8.5
    )
