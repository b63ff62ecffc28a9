"""An animated GIF that runs through a volume slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from monai_kd.visualize.gif_files import BAR, DPI, TRACK, check_pace, check_run, frame_of, shown_slices, write_gif
from monai_kd.visualize.meshes import viewer_package
from monai_kd.visualize.panels import PLANE_OF_AXIS, TEXT, Plane
from monai_kd.visualize.viewer_case import ViewerCase
from monai_kd.visualize.volume_panels import (
    body_windows,
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
    from matplotlib.figure import Figure

__all__ = ["gif_slices", "save_gif"]

_MOST_NAMES = 12  # more would leave no room for the picture; slices.png and the page name them all
_HEAD, _PROGRESS, _LEGEND_ROW = 0.3, 0.08, 0.2  # inches
_SHARES = (0.38, 0.7, 1.0)  # of a color: filled, the soft edge of a line, the line


def save_gif(
    path: str | Path,
    case: ViewerCase,
    axis: str = "axial",
    fps: float = 10.0,
    size: int = 480,
    max_frames: int = 100,
    window: Sequence[float] | None = None,
    progress: bool = True,
) -> Path:
    """Write the slices of a volume as a GIF that repeats; the bar below shows how far through the volume it is.

    The prediction is drawn as lines and the truth is filled; without truth the prediction is both. All frames have one
    palette, so that gray values do not flicker.

    Args:
        path: the file; its folder must exist.
        case: the case.
        axis: ``axial``, ``coronal`` or ``sagittal``.
        fps: frames a second, above 0 and at most 50; a GIF counts in hundredths of a second.
        size: longest side in pixels, 120 to 2000.
        window: gray values of black and white, see :func:`~monai_kd.visualize.volume_panels.gray_range`.
        max_frames: of more slices only every second, third, ... is shown.
        progress: show a bar while frames are drawn.

    Raises:
        ValueError: a setting is out of its range.
        ImportError: Pillow or matplotlib is missing.
    """
    viewer_package("PIL.Image")  # before frames are drawn
    plane, indices = gif_slices(case, axis, max_frames)
    check_pace(fps, size)
    figure, panel = _stage(case, plane, size)
    limits = gray_range(case, window)
    frames = []
    for index in tqdm(indices, desc="frames", unit="frame", disable=not progress):
        shown = replace(plane, index=index)
        _draw_frame(panel, case, shown, limits, (index - indices[0] + 1) / (indices[-1] - indices[0] + 1))
        frames.append(frame_of(figure))
    colors = sorted({structure.color for structure in case.structures} | {BAR})
    write_gif(Path(path), frames, fps, [(color, share) for color in colors for share in _SHARES])
    return Path(path)


def gif_slices(case: ViewerCase, axis: str, max_frames: int = 100) -> tuple[Plane, list[int]]:
    """Return the plane of a GIF and the slices that it shows, evenly spaced and at most ``max_frames``.

    Raises:
        ValueError: an unknown axis, or no frame is allowed.
    """
    check_run(axis, max_frames)
    voxel = chosen_voxel(case)
    plane = next(plane for plane in case_planes(case, voxel) if plane.name == axis)
    window = body_windows(case, voxel)[PLANE_OF_AXIS.index(axis)]
    return plane, shown_slices(window, max_frames)


def _stage(case: ViewerCase, plane: Plane, size: int) -> tuple[Figure, Any]:
    """A figure with the panel and the legend; the panel's content changes from frame to frame."""
    width_mm, height_mm = plane.size_mm
    handles = list(structure_handles(case)) if len(case.structures) <= _MOST_NAMES else []
    longest = size / DPI
    columns = 1 if longest < 3.2 else 2
    below = _PROGRESS + _LEGEND_ROW * (-(-(len(handles) + ("truth" in case.maps)) // columns)) + 0.08
    inch_per_mm = min(longest / width_mm, (longest - _HEAD - below) / height_mm)
    inch_per_mm = max(inch_per_mm, 0.2 * longest / max(width_mm, height_mm))  # many names leave little room
    width, panel_height = max(inch_per_mm * width_mm, 0.75 * longest), inch_per_mm * height_mm
    height = _HEAD + panel_height + below
    figure = empty_figure(width, height, DPI)
    own = inch_per_mm * width_mm / width
    panel = figure.add_axes(((1 - own) / 2, below / height, own, panel_height / height))
    if "truth" in case.maps:
        handles.append(
            viewer_package("matplotlib.patches").Patch(facecolor="none", label="line: prediction, filled: truth")
        )
    if handles:
        style = {"frameon": False, "labelcolor": TEXT, "fontsize": 7.5, "handlelength": 1.0, "borderpad": 0.1}
        figure.legend(handles=handles, loc="lower center", ncols=columns, labelspacing=0.25, **style)
    return figure, panel


def _draw_frame(panel: Any, case: ViewerCase, plane: Plane, limits: tuple[float, float], done: float) -> None:
    assert plane.axis is not None
    panel.clear()
    truth = "truth" in case.maps
    draw_slice(panel, plane, case, limits, "truth" if truth else "prediction", "prediction")
    draw_letters(panel, plane, size=8)
    draw_scale_bar(panel, plane, size=7)
    panel.set_title(f"{case.name}   {plane.name} {plane.index}", color=TEXT, fontsize=8.5, pad=4)
    bar = {"transform": panel.transAxes, "linewidth": 2.5, "clip_on": False, "solid_capstyle": "butt"}
    panel.plot([0, 1], [-0.012, -0.012], color=TRACK, **bar)
    panel.plot([0, done], [-0.012, -0.012], color=BAR, **bar)
