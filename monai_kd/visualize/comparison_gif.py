"""An animated GIF that runs through a volume: image, truth and predictions side by side, errors marked."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from monai_kd.visualize.error_panels import (
    CONFUSED,
    ERROR_SHARE,
    EXTRA,
    FILL_SHARE,
    MISSED,
    checked_maps,
    class_colors,
    class_scores,
    draw_gray,
    draw_map,
    error_handles,
    foreground_window,
    is_thin,
    mean_dice,
    named_classes,
)
from monai_kd.visualize.gif_files import BAR, DPI, TRACK, check_pace, check_run, frame_of, shown_slices, write_gif
from monai_kd.visualize.meshes import viewer_package
from monai_kd.visualize.panels import PLANE_OF_AXIS, TEXT, Plane, dice_text, gray_limits
from monai_kd.visualize.volume_panels import checked_window, draw_letters, draw_scale_bar, empty_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["save_comparison_gif"]

_MOST_MAPS = 6
_NARROWEST = 100  # pixels of a panel
_MOST_NAMES = 12  # of classes in the legend
_TRUTH, _IMAGE = "truth", "image"
# inches: margins and gaps, heights of lines, widths of letters
_SIDE, _GAP, _TOP, _BELOW_HEAD, _BOTTOM = 0.08, 0.06, 0.08, 0.04, 0.06
_TITLE, _NAME, _SCORE, _PROGRESS, _LEGEND_ROW = 0.28, 0.17, 0.15, 0.26, 0.2
_NAME_LETTER, _SCORE_LETTER = 0.086, 0.064
_DIM = "#aab2bd"


@dataclass(frozen=True)
class _Volume:
    """What is drawn: gray values, maps with the truth first, and the names of classes."""

    image: NDArray[np.float64]
    maps: dict[str, NDArray[np.int64]]
    names: dict[int, str]

    @property
    def truth(self) -> NDArray[np.int64]:
        return self.maps[_TRUTH]


@dataclass(frozen=True)
class _Head:
    """Lines above a panel."""

    name: list[str]
    scores: list[str]

    @property
    def width(self) -> float:
        """Inches, about."""
        letters = [_NAME_LETTER * len(line) for line in self.name] + [_SCORE_LETTER * len(line) for line in self.scores]
        return max(letters)


@dataclass(frozen=True)
class _Stage:
    """A figure whose panels change from frame to frame: the image's, then one of each map."""

    figure: Figure
    panels: list[Axes]
    place: Any  # text that names the slice
    bar: Any  # says where in the volume the slice is
    track: tuple[float, float]  # ends of the bar, fractions of the figure's width

    def show_place(self, name: str, done: float) -> None:
        start, end = self.track
        self.place.set_text(name)
        self.bar.set_xdata([start, start + done * (end - start)])


def save_comparison_gif(
    path: str | Path,
    image: ArrayLike,
    label: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    spacing_mm: Sequence[float],
    classes: Mapping[Any, str],
    title: str = "",
    axis: str = "axial",
    fps: float = 8.0,
    size: int = 960,
    max_frames: int = 100,
    window: Sequence[float] | None = None,
    progress: bool = True,
) -> Path:
    """Write a GIF of a volume, slice by slice: image, truth and each prediction side by side, with its errors.

    The truth is filled, predictions are lines, what they missed and what they have too much is filled in colors of
    its own. Heads give the Dice of the whole volume, panels that of the slice; a class in neither map does not count.
    Shown is the part that holds truth or predictions, with a margin, at the scale of the spacing; the bar below says
    where in the whole volume the slice lies. All frames have one palette, so that gray values do not flicker.

    Args:
        path: the file; its folder is created.
        image: one channel, ``(H, W, D)``, in MONAI's axis order: x first; in RAS orientation
            (``Orientationd(axcodes="RAS")``), else the planes' names and the letters are wrong. Shown with the
            patient's right on the right.
        label: integer label map on the same grid, 0 is background.
        predictions: 1 to 6 label maps by name, drawn in this order, e.g. ``student alone``, ``distilled``.
        spacing_mm: voxel size per axis in mm.
        classes: label value (number or digits) to name; the background may be left out.
        title: line above the panels, e.g. the case and the protocol.
        axis: ``axial``, ``coronal`` or ``sagittal``.
        fps: frames a second, above 0 and at most 50; a GIF counts in hundredths of a second.
        size: longest side in pixels, 120 to 2000, and at least 100 a panel.
        max_frames: of more slices only every second, third, ... is shown.
        window: gray values of black and white, ``(-160, 240)`` for soft tissue in CT; None finds them in what is shown.
        progress: show a bar while frames are drawn.

    Raises:
        ValueError: shapes or the spacing do not fit, there are no or too many predictions, a map holds a value without
            a name, or a setting is out of its range.
        ImportError: Pillow or matplotlib is missing.
    """
    viewer_package("PIL.Image")  # before frames are drawn
    spacing = tuple(float(mm) for mm in spacing_mm)
    volume = _checked_volume(image, label, predictions, spacing, named_classes(classes))
    check_run(axis, max_frames)
    check_pace(fps, size)
    _check_room(size, len(volume.maps) + 1)
    plane, along = _shown_part(volume, PLANE_OF_AXIS.index(axis), spacing)
    limits = checked_window(window) if window is not None else _gray_limits(volume.image, plane, along)
    stage = _stage(volume, plane, size, title)
    thin = is_thin(plane.cut(volume.truth), stage.panels[0])  # once: a panel that changes its manner would flicker
    frames = []
    for index in tqdm(shown_slices(along, max_frames), desc="frames", unit="frame", disable=not progress):
        _draw_frame(stage, volume, replace(plane, index=index), limits, thin)
        frames.append(frame_of(stage.figure))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gif(path, frames, fps, _tints(volume.names, thin))
    return path


def _checked_volume(
    image: ArrayLike,
    label: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    spacing_mm: Sequence[float],
    names: dict[int, str],
) -> _Volume:
    if np.ndim(image) != 3:
        raise ValueError(f"image must be (H, W, D), a volume without a channel axis, got shape {np.shape(image)}")
    if _IMAGE in predictions:
        raise ValueError(f"a prediction cannot be named '{_IMAGE}'; that panel shows the image")
    if len(predictions) > _MOST_MAPS:
        raise ValueError(f"predictions has {len(predictions)} maps, {list(predictions)}; at most {_MOST_MAPS} fit")
    return _Volume(*checked_maps(image, label, predictions, spacing_mm, names, reference=_TRUTH), names)


def _check_room(size: int, n_panels: int) -> None:
    if size < (least := n_panels * _NARROWEST):
        raise ValueError(f"size is {size}; {n_panels} panels side by side need {least} pixels or more")


def _shown_part(volume: _Volume, axis: int, spacing_mm: Sequence[float]) -> tuple[Plane, slice]:
    """Return the plane through the slice with most truth, and the slices to run through."""
    foreground = np.any([found != 0 for found in volume.maps.values()], axis=0)
    x, y = (other for other in range(3) if other != axis)
    part = foreground_window(foreground, x), foreground_window(foreground, y)
    areas = (volume.truth != 0).sum(axis=(x, y))
    plane = Plane(PLANE_OF_AXIS[axis], axis, int(np.argmax(areas)), part, (spacing_mm[x], spacing_mm[y]))
    return plane, foreground_window(foreground, axis, margin=0.08, least=2)


def _gray_limits(image: NDArray[np.float64], plane: Plane, along: slice) -> tuple[float, float]:
    assert plane.axis is not None
    parts = list(plane.window)
    parts.insert(plane.axis, along)
    return gray_limits(image[tuple(parts)])


def _tints(names: Mapping[int, str], thin: bool) -> list[tuple[str, float]]:
    """Return what lies on gray in a frame, for its palette: the bar, errors, lines with their soft edges, fills."""
    colors = list(class_colors(names).values())
    errors = [MISSED, EXTRA, *([CONFUSED] if len(names) > 1 else [])]
    shares = ERROR_SHARE[thin], 1.0, 0.7, FILL_SHARE[thin]
    groups = [[BAR], errors, colors, colors, colors]
    return [(color, share) for group, share in zip(groups, (1.0, *shares), strict=True) for color in group]


# ---------------------------------------------------------------- drawing


def _stage(volume: _Volume, plane: Plane, size: int, title: str) -> _Stage:
    """Place panels so that a millimeter has one length everywhere; heads, legend and the bar's track stay."""
    longest = size / DPI
    room = 2 * _SIDE + len(volume.maps) * _GAP
    widest = (longest - room) / (len(volume.maps) + 1)
    heads = _heads(volume, widest)
    handles, columns = _legend_entries(volume.names, longest)
    top = _TOP + (_TITLE if title else 0.0)
    names = _NAME * max(len(head.name) for head in heads)
    above = top + names + _SCORE * max(len(head.scores) for head in heads) + _BELOW_HEAD
    below = _PROGRESS + _LEGEND_ROW * -(-len(handles) // columns) + _BOTTOM
    width_mm, height_mm = plane.size_mm
    inch_per_mm = min(widest / width_mm, max(longest - above - below, 0.2 * longest) / height_mm)
    own_width, own_height = inch_per_mm * width_mm, inch_per_mm * height_mm
    cell = min(widest, max(own_width, 1.0, *(head.width for head in heads)))  # heads of slim panels stay apart
    width, height = room + (len(volume.maps) + 1) * cell, above + own_height + below
    figure = empty_figure(width, height, DPI)
    panels = []
    for number, head in enumerate(heads):
        middle = _SIDE + number * (cell + _GAP) + cell / 2
        box = ((middle - own_width / 2) / width, below / height, own_width / width, own_height / height)
        panels.append(figure.add_axes(box))
        _draw_head(figure, head, middle, height - top, names)
    if title:
        figure.text(0.5, (height - _TOP) / height, title, color=TEXT, fontsize=10, ha="center", va="top")
    legend = {"frameon": False, "labelcolor": TEXT, "fontsize": 8, "handlelength": 1.3, "borderaxespad": 0.2}
    figure.legend(handles=handles, loc="lower center", ncols=columns, borderpad=0.1, labelspacing=0.25, **legend)
    return _Stage(figure, panels, *_progress(figure, plane, below - _PROGRESS / 2))


def _heads(volume: _Volume, widest: float) -> list[_Head]:
    """Return the head of each panel, at most so many inches wide where its words allow it."""
    heads = []
    for name in (_IMAGE, *volume.maps):
        scores = []
        if name not in (_IMAGE, _TRUTH):
            mask = volume.maps[name]
            scores = [f"Dice {dice_text(mean_dice(mask, volume.truth, volume.names))}"]
            of_classes = class_scores(mask, volume.truth, volume.names)
            line = ", ".join(of_classes)
            scores += [line] if line and _SCORE_LETTER * len(line) <= widest else of_classes
        heads.append(_Head(textwrap.wrap(name, int(widest / _NAME_LETTER)) or [""], scores))
    return heads


def _draw_head(figure: Figure, head: _Head, middle: float, top: float, names: float) -> None:
    """Write a head around ``middle``, below ``top`` (inches); scores begin below the longest name of all heads."""
    width, height = figure.get_size_inches()
    style: dict[str, Any] = {"ha": "center", "va": "baseline"}
    for number, line in enumerate(head.name, start=1):
        y = (top - _NAME * number + 0.04) / height
        figure.text(middle / width, y, line, color=TEXT, fontsize=9.5, weight="bold", **style)
    for number, line in enumerate(head.scores, start=1):
        y = (top - names - _SCORE * number + 0.02) / height
        figure.text(middle / width, y, line, color=_DIM, fontsize=8.5, **style)


def _legend_entries(names: Mapping[int, str], width: float) -> tuple[list[Any], int]:
    """Return the legend's entries and how many stand side by side."""
    entries = list(error_handles(names))
    if len(names) > _MOST_NAMES:
        entries = entries[len(names) :]
    widest = 0.5 + _SCORE_LETTER * max(len(entry.get_label()) for entry in entries)
    return entries, max(1, min(len(entries), int(width / widest)))


def _progress(figure: Figure, plane: Plane, y: float) -> tuple[Any, Any, tuple[float, float]]:
    """Draw the bar and its track, so many inches from below; return the text, the bar and the track's ends."""
    from monai.utils import optional_import

    line, _ = optional_import("matplotlib.lines", name="Line2D")
    width, height = figure.get_size_inches()
    place = figure.text(_SIDE / width, y / height, "", color=_DIM, fontsize=8, va="center")
    ends = (_SIDE + _SCORE_LETTER * len(f"{plane.name}, slice 0000")) / width, 1 - _SIDE / width
    style: dict[str, Any] = {"transform": figure.transFigure, "linewidth": 3, "solid_capstyle": "butt"}
    track, bar = (line(ends, [y / height] * 2, color=color, **style) for color in (TRACK, BAR))
    figure.add_artist(track)
    figure.add_artist(bar)
    return place, bar, ends


def _draw_frame(stage: _Stage, volume: _Volume, plane: Plane, limits: tuple[float, float], thin: bool) -> None:
    assert plane.axis is not None
    for panel in stage.panels:
        panel.clear()
    draw_gray(stage.panels[0], plane, volume.image, limits)
    draw_letters(stage.panels[0], plane, size=8)
    draw_scale_bar(stage.panels[0], plane, size=7)
    for panel, mask in zip(stage.panels[1:], volume.maps.values(), strict=True):
        draw_map(panel, plane, volume.image, mask, volume.truth, limits, volume.names, thin)
    stage.show_place(plane.title, (plane.index + 1) / volume.image.shape[plane.axis])
