"""What GIFs share: the checks of their settings, which slices they show, one palette for all frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from monai_kd.visualize.meshes import viewer_package
from monai_kd.visualize.panels import PLANE_OF_AXIS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BAR", "DPI", "TRACK", "check_pace", "check_run", "frame_of", "shown_slices", "write_gif"]

DPI = 100
BAR, TRACK = "#4cc9f0", "#30353c"  # of the bar that shows how far through the volume a frame is
_LEAST, _MOST = 120, 2000  # pixels
_GRAYS = 80
_SIZE = 256  # colors that a GIF's palette has


def check_run(axis: str, max_frames: int) -> None:
    """Refuse an axis that a volume does not have, and a GIF without frames.

    Raises:
        ValueError: an unknown axis, or no frame is allowed.
    """
    if axis not in PLANE_OF_AXIS:
        raise ValueError(f"axis is '{axis}'; known: axial, coronal, sagittal")
    if max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}; it must be 1 or more")


def check_pace(fps: float, size: int) -> None:
    """Refuse a pace that a GIF cannot have, and a size at which nothing is seen.

    Raises:
        ValueError: a setting is out of its range.
    """
    if not 0 < fps <= 50:
        raise ValueError(f"fps is {fps}; it must be above 0 and at most 50")
    if not _LEAST <= size <= _MOST:
        raise ValueError(f"size is {size}; a GIF's longest side is {_LEAST} to {_MOST} pixels")


def shown_slices(window: slice, max_frames: int) -> list[int]:
    """Return the slices of a window, evenly spaced and at most ``max_frames``."""
    slices = range(window.start, window.stop)
    return list(slices[:: -(-len(slices) // max_frames)])


def frame_of(figure: Figure) -> NDArray[np.uint8]:
    """Draw a figure and return its pixels, ``(H, W, 3)``."""
    figure.canvas.draw()
    pixels: NDArray[np.uint8] = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    return pixels


def write_gif(path: Path, frames: Sequence[NDArray[np.uint8]], fps: float, tints: Iterable[tuple[str, float]]) -> None:
    """Write frames as a GIF that repeats; all have one palette, so that gray values do not flicker.

    Args:
        path: the file; its folder must exist.
        frames: ``(H, W, 3)`` each.
        fps: frames a second; a GIF counts in hundredths of a second.
        tints: colors ``#rrggbb`` that lie on the gray of an image, each with its share, above 0 to 1: the opacity of a
            fill, less for the soft edge of a line, 1 for the line itself.

    Raises:
        ImportError: Pillow is missing.
    """
    image_module = viewer_package("PIL.Image")
    palette = image_module.new("P", (1, 1))
    palette.putpalette(_palette(list(dict.fromkeys(tints))).ravel().tolist())
    shown = [
        image_module.fromarray(frame).quantize(palette=palette, dither=image_module.Dither.NONE) for frame in frames
    ]
    duration = {"duration": round(100 / fps) * 10, "loop": 0}
    shown[0].save(path, format="GIF", save_all=True, append_images=shown[1:], optimize=False, **duration)


def _palette(tints: Sequence[tuple[str, float]]) -> NDArray[np.uint8]:
    """Gray values, and each color mixed with gray: an adaptive palette would tint the gray of the image."""
    grays = np.linspace(0, 255, _GRAYS)[:, None].repeat(3, axis=1)
    tints = tints[: _SIZE - _GRAYS]  # of more colors the last ones find a near one
    mixed = [tint for tint in tints if tint[1] < 1]
    parts = [grays, *[_rgb(color)[None] for color, share in tints if share == 1]]
    n_levels = (_SIZE - _GRAYS - (len(tints) - len(mixed))) // max(len(mixed), 1)
    levels = ((np.arange(n_levels) + 0.5) * 255 / n_levels)[:, None]
    parts += [share * _rgb(color) + (1 - share) * levels for color, share in mixed]
    return np.round(np.concatenate(parts)).astype(np.uint8)


def _rgb(color: str) -> NDArray[np.float64]:
    return np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)], dtype=float)
