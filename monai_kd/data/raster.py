"""Photographs and their masks (PNG, JPEG, TIFF, GIF, PPM): how they are read, and what is in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data import PILReader
from monai.utils import optional_import
from scipy import ndimage

__all__ = ["RASTER_ENDINGS", "ColorClasses", "as_classes", "as_color", "as_grey", "is_raster", "read_raster"]

RASTER_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".ppm", ".pgm")
_EIGHT_BIT = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "La")
_GREY = ("1", "L", "LA", "La", "I", "I;16", "F")
_COLORS = {
    "black": (0, 0, 0),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "white": (255, 255, 255),
}


def is_raster(path: str | os.PathLike[str]) -> bool:
    """Tell by its ending whether a file is one that Pillow reads here."""
    return os.fspath(path).lower().endswith(RASTER_ENDINGS)


def as_color(image: Any) -> Any:
    """Return a Pillow image with the channels red, green and blue, 0 to 255; transparency is dropped.

    For ``LoadImaged(keys="image", reader="PILReader", converter=as_color)``. MONAI by itself hands out what the file
    holds: 1, 3 or 4 channels, or the numbers of a palette. The reader must be named: by the ending MONAI finds it for
    PNG, JPEG and BMP alone.

    Raises:
        ValueError: more than 8 bits a channel; Pillow would cut everything above 255 off.
    """
    if image.mode not in _EIGHT_BIT:
        name = getattr(image, "filename", "") or "the image"
        raise ValueError(f"'{name}' has the pixel format {image.mode}; save it with 8 bits a channel, grey or RGB")
    return image.convert("RGB")


def as_grey(image: Any) -> Any:
    """Return a Pillow image with one channel: masks of 1 bit, of a palette or in color become 0 to 255.

    For ``LoadImaged(keys=["label", "fov"], reader="PILReader", converter=as_grey)``. Without it a mask with a palette
    is read as numbers of colors, which may be the wrong way round: in the field-of-view masks of CHASE_DB1 white is 0.
    A mask whose highest level is 1 holds class numbers, as MONAI Label writes them: 1 becomes 255. More than 8 bits
    stay as they are.
    """
    if image.mode not in _EIGHT_BIT:
        return image
    grey = image.convert("L")
    return grey.point([0] + 255 * [255]) if grey.getextrema()[1] == 1 else grey


def as_classes(image: Any) -> Any:
    """Return a Pillow image with one channel whose levels are class numbers, as they are.

    For ``LoadImaged(keys="label", reader="PILReader", converter=as_classes)`` and the files of
    :func:`monai_kd.data.write_slices`; :func:`as_grey` takes a highest level of 1 for white.

    Raises:
        ValueError: a mask in color or with a palette.
    """
    if image.mode not in ("1", "L", "I", "I;16"):
        raise ValueError(f"'{_name(image)}' has the pixel format {image.mode}; class numbers need one channel, grey")
    return image.convert("L") if image.mode == "1" else image


class ColorClasses:
    """Turn a mask whose classes are colors into one of class numbers, by the nearest of the known colors.

    For ``LoadImaged(keys="label", reader="PILReader", converter=ColorClasses([["black"], ["red"], ["green"]]))``.
    JPEG smears the border of two colors over some pixels: red beside black leaves colors up to 130 away from both, red
    beside green up to 180, in strips of 2 to 4 pixels.

    Args:
        colors: of each class, background first, one or several: pure ones by name (black, white, red, green, blue,
            yellow, cyan, magenta), others as three levels of 0 to 255.
        tolerance: how far a pixel may lie from the nearest color: Euclidean, in levels of 0 to 255.
        smear: pixels; what lies farther off is an error where it fills a square of this side. 1 bears no such pixel;
            of more, thinner strips go to the nearest color.

    Raises:
        ValueError: a class without color, a color that is none or stands twice, a number out of its range; on use, a
            mask without colors, or with an unknown one, which is named with its file.
    """

    def __init__(
        self, colors: Sequence[Sequence[str | Sequence[int]]], tolerance: float = 32.0, smear: int = 1
    ) -> None:
        if isinstance(colors, str) or len(colors) < 2 or not all(_is_list_of_colors(given) for given in colors):
            raise ValueError(
                f"colors is {colors!r}; it must be a list of colors for each class, the background first, as in "
                "[[black], [red], [[0, 128, 255]]]"
            )
        if not tolerance >= 0:
            raise ValueError(f"tolerance is {tolerance!r}; it must be 0 or more levels")
        if isinstance(smear, bool) or not isinstance(smear, int) or smear < 1:
            raise ValueError(f"smear is {smear!r}; it must be a whole number of pixels, 1 or more")
        known = [(_color(color), number) for number, given in enumerate(colors) for color in given]
        table = dict(known)
        if len(table) < len(known):
            raise ValueError(f"colors is {colors!r}; each color may stand once")
        self.colors = [list(given) for given in colors]
        self.tolerance, self.smear = tolerance, smear
        self._levels = np.array(list(table), dtype=np.float64)  # (colors, 3)
        self._classes = np.array(list(table.values()), dtype=np.uint8)

    def __call__(self, image: Any) -> Any:
        """Return a Pillow image with one channel, whose levels are class numbers."""
        if image.mode in _GREY and image.convert("L").getextrema()[1] > 0:
            raise ValueError(
                f"'{_name(image)}' has the pixel format {image.mode}, without colors; as_grey reads masks of black and "
                "white, as_classes those of class numbers"
            )
        pixels = np.asarray(image.convert("RGB"), dtype=np.int32)
        found, places = np.unique(pixels @ (65536, 256, 1), return_inverse=True)  # far fewer colors than pixels
        levels = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=-1)
        distances = np.linalg.norm(levels[:, None] - self._levels, axis=-1)  # (found, colors)
        self._check(image, levels, distances.min(axis=1), places.reshape(pixels.shape[:2]))
        pil_image, _ = optional_import("PIL.Image")
        return pil_image.fromarray(self._classes[distances.argmin(axis=1)][places].reshape(pixels.shape[:2]))

    def _check(self, image: Any, levels: np.ndarray, distances: np.ndarray, places: np.ndarray) -> None:
        unknown = (distances > self.tolerance)[places]
        if self.smear > 1:
            unknown = ndimage.binary_opening(unknown, np.ones((self.smear, self.smear)))
        if unknown.any():
            worst = np.bincount(places[unknown], minlength=len(levels)).argmax()
            known = "; ".join(", ".join(map(str, given)) for given in self.colors)
            raise ValueError(
                f"'{_name(image)}' has the color {tuple(map(int, levels[worst]))}, {distances[worst]:.0f} levels from "
                f"the nearest known one; {int(unknown.sum())} pixels are farther than the tolerance of "
                f"{self.tolerance:g}. Known: {known}"
            )


def _name(image: Any) -> str:
    return getattr(image, "filename", "") or "the mask"


def _is_list_of_colors(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0


def _color(given: str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(given, str) and given in _COLORS:
        return _COLORS[given]
    levels = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if len(levels) != 3 or not all(type(level) is int and 0 <= level <= 255 for level in levels):
        raise ValueError(f"{given!r} is no color; give three levels of 0 to 255, or one of {', '.join(_COLORS)}")
    return levels


def _as_stored(image: Any) -> Any:
    """Resolve palettes and drop transparency; a grey image stays one channel."""
    if image.mode in ("1", "L", "LA", "La"):
        return image.convert("L")
    return image.convert("RGB") if image.mode in _EIGHT_BIT else image


def read_raster(path: str | os.PathLike[str], is_label: bool) -> np.ndarray:
    """Read a whole file, channel first: ``(C, width, height)``, the axes as MONAI's reader has them.

    Args:
        path: the file.
        is_label: read by :func:`as_grey`; images keep 1 or 3 channels.

    Raises:
        OSError: the file is no image, or is damaged or truncated.
    """
    reader = PILReader(converter=as_grey if is_label else _as_stored)
    array, _ = reader.get_data(reader.read(os.fspath(path)))
    return np.moveaxis(array, -1, 0) if array.ndim == 3 else array[None]
