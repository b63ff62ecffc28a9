"""Axial, coronal and sagittal slices through one point: the image, the prediction and the truth, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_kd.visualize.panels import TEXT, Plane
from monai_kd.visualize.viewer_case import ViewerCase
from monai_kd.visualize.volume_panels import (
    case_planes,
    chosen_voxel,
    draw_letters,
    draw_scale_bar,
    draw_slice,
    empty_figure,
    gray_range,
    structure_handles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["save_slices", "slices_figure"]

_WIDTH = 10.5  # inches of the three panels together
_LEFT, _RIGHT, _TOP, _GAP = 0.32, 0.08, 0.68, 0.06  # inches
_LEGEND_ROW = 0.24
_CROSS = "#ff9f0a"
_IN_A_ROW = 4


def slices_figure(
    case: ViewerCase, point_mm: Sequence[float] | None = None, window: Sequence[float] | None = None
) -> Figure:
    """Draw three planes side by side, all at one scale; below the image the prediction, and below it the truth.

    Letters name the directions of the body; where the grid is oblique they name the nearest ones, and the title says by
    how much. The dotted cross in the image is the point that all planes share. The legend has the Dice of the whole
    volume.

    Args:
        case: the case.
        point_mm: RAS+ millimeters, see :func:`~monai_kd.visualize.volume_panels.chosen_voxel`.
        window: gray values of black and white, see :func:`~monai_kd.visualize.volume_panels.gray_range`.

    Raises:
        ValueError: the point lies outside the volume, or the window does not rise.
    """
    voxel = chosen_voxel(case, point_mm)
    planes = case_planes(case, voxel)
    rows = [None, *case.maps]
    figure, grid = _layout(planes, len(rows), len(case.structures))
    limits = gray_range(case, window)
    world = case.affine[:3, :3] @ voxel + case.affine[:3, 3]
    for kind, panels in zip(rows, grid, strict=True):
        for axes, plane in zip(panels, planes, strict=True):
            draw_slice(axes, plane, case, limits, filled=kind, outlined=kind)
            draw_letters(axes, plane)
            if kind is None:
                _draw_cross(axes, plane, voxel)
                assert plane.axis is not None
                place = f"{'xyz'[plane.axis]} = {world[plane.axis]:.1f} mm"
                axes.set_title(f"{plane.name}, {place}", color=TEXT, fontsize=9.5, pad=5)
        panels[0].set_ylabel(_row_name(case, kind), color=TEXT, fontsize=10)
        draw_scale_bar(panels[0], planes[0])
    _legend(figure, case)
    return figure


def save_slices(
    path: str | Path,
    case: ViewerCase,
    point_mm: Sequence[float] | None = None,
    window: Sequence[float] | None = None,
    dpi: int = 130,
) -> Path:
    """Write :func:`slices_figure` as a PNG and return the path; the folder must exist."""
    figure = slices_figure(case, point_mm, window)
    figure.savefig(path, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return Path(path)


def _layout(planes: Sequence[Plane], n_rows: int, n_structures: int) -> tuple[Figure, list[list[Axes]]]:
    """Place panels so that a millimeter has one length everywhere."""
    inch_per_mm = _WIDTH / sum(plane.size_mm[0] for plane in planes)
    row_height = inch_per_mm * max(plane.size_mm[1] for plane in planes)
    legend_rows = -(-n_structures // _IN_A_ROW)
    bottom = 0.12 + _LEGEND_ROW * legend_rows
    width = _LEFT + _WIDTH + 2 * _GAP + _RIGHT
    height = _TOP + n_rows * (row_height + _GAP) + bottom
    figure = empty_figure(width, height)
    grid = []
    for row in range(n_rows):
        panels, left = [], _LEFT
        top = height - _TOP - row * (row_height + _GAP)
        for plane in planes:
            own_width, own_height = (inch_per_mm * size for size in plane.size_mm)
            box = (left / width, (top - own_height) / height, own_width / width, own_height / height)
            panels.append(figure.add_axes(box))
            left += own_width + _GAP
        grid.append(panels)
    return figure, grid


def _draw_cross(axes: Axes, plane: Plane, voxel: tuple[int, int, int]) -> None:
    x, y = (other for other in range(3) if other != plane.axis)
    across = (voxel[x] - plane.window[0].start + 0.5) * plane.spacing_mm[0]
    down = plane.size_mm[1] - (voxel[y] - plane.window[1].start + 0.5) * plane.spacing_mm[1]
    style: Any = {"color": _CROSS, "linewidth": 0.8, "linestyle": ":"}
    axes.axvline(across, **style)
    axes.axhline(down, **style)


def _row_name(case: ViewerCase, kind: str | None) -> str:
    if kind is None:
        return "image"
    return kind if case.maps[kind].any() else f"{kind}: empty"


def _legend(figure: Figure, case: ViewerCase) -> None:
    oblique = case.oblique_degrees
    note = f"   (oblique grid: axes are {oblique:.0f}° off the letters)" if oblique >= 1 else ""
    height = figure.get_figheight()
    figure.suptitle(case.name + note, color=TEXT, fontsize=12, x=0.5, y=1 - 0.1 / height, va="top")
    handles = list(structure_handles(case))
    if handles:
        style = {"frameon": False, "labelcolor": TEXT, "fontsize": 9.5, "handlelength": 1.1}
        figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), _IN_A_ROW), **style)
