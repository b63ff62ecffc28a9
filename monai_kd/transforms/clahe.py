"""Contrast-limited adaptive histogram equalization: what is flat becomes visible, noise does not explode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["clahe"]

_LEVELS = 256


def clahe(image: np.ndarray, tiles: int | Sequence[int] = 8, clip_limit: float = 2.0) -> np.ndarray:
    """Equalize the gray levels of each tile, with a limit to the contrast, and blend neighboring tiles.

    Each tile maps a level to 255 times the part of its pixels at or below it. Before, what a histogram has above
    ``clip_limit`` times its mean count is cut and spread evenly over all levels, so that no level is stretched more
    than that. Between the centers of tiles the maps are interpolated linearly.

    Args:
        image: ``(H, W)`` gray levels 0 to 255, rounded to whole ones.
        tiles: number of tiles along height and width, one for both or two; not more than there are pixels.
        clip_limit: greatest slope of a map, > 0; 1 leaves contrast about as it is, infinity is plain equalization.

    Returns:
        ``(H, W)`` float32, 0 to 255.

    Raises:
        ValueError: levels outside of 0 to 255, tiles or limit out of their range.
    Source: Zuiderveld 1994. Differs from scikit-image: tiles divide the image exactly and the cut part is spread once.
    """
    rows, columns = (tiles, tiles) if isinstance(tiles, int) else tiles
    if not (1 <= rows <= image.shape[0] and 1 <= columns <= image.shape[1] and clip_limit > 0):
        raise ValueError(
            f"tiles is {tiles} and clip_limit {clip_limit}; give 1 tile to one per pixel of {image.shape}, and a limit "
            "above 0"
        )
    if not (image.min() >= 0 and image.max() <= 255):  # also where it is NaN
        raise ValueError(f"the image has the levels {image.min():g} to {image.max():g}; they must lie in 0 to 255")
    levels = np.rint(image).astype(np.intp)
    maps = _tile_maps(levels, rows, columns, clip_limit)
    top, below, down = _neighbors(image.shape[0], rows)
    left, right, across = _neighbors(image.shape[1], columns)
    upper, lower = (
        (1 - across) * maps[row[:, None], left, levels] + across * maps[row[:, None], right, levels]
        for row in (top, below)
    )
    return ((1 - down[:, None]) * upper + down[:, None] * lower).astype(np.float32)


def _edges(length: int, tiles: int) -> np.ndarray:
    return np.round(np.linspace(0, length, tiles + 1)).astype(np.intp)


def _tile_maps(levels: np.ndarray, rows: int, columns: int, clip_limit: float) -> np.ndarray:
    """Return what each level becomes in each tile, ``(rows, columns, 256)``."""
    row_of, column_of = (
        np.repeat(np.arange(tiles), np.diff(_edges(length, tiles)))
        for length, tiles in zip(levels.shape, (rows, columns), strict=True)
    )
    index = (row_of[:, None] * columns + column_of) * _LEVELS + levels
    counts = np.bincount(index.ravel(), minlength=rows * columns * _LEVELS).reshape(rows, columns, _LEVELS)
    pixels = counts.sum(axis=-1, keepdims=True)
    clipped = np.minimum(counts, clip_limit * pixels / _LEVELS)
    spread = (pixels - clipped.sum(axis=-1, keepdims=True)) / _LEVELS
    return 255 * np.cumsum(clipped + spread, axis=-1) / pixels


def _neighbors(length: int, tiles: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each pixel the tiles before and behind it, and how far it is on the way between their centers."""
    edges = _edges(length, tiles)
    centers = (edges[:-1] + edges[1:] - 1) / 2
    place = np.interp(np.arange(length), centers, np.arange(tiles))
    before = np.floor(place).astype(np.intp)
    return before, np.minimum(before + 1, tiles - 1), place - before
