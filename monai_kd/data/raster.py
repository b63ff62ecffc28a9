"""Photographs and their masks (PNG, JPEG, TIFF, GIF, PPM): how they are read, and what is in them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from monai.data import PILReader

__all__ = ["RASTER_ENDINGS", "as_classes", "as_color", "as_grey", "is_raster", "read_raster"]

RASTER_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".ppm", ".pgm")
_EIGHT_BIT = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "La")


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
        name = getattr(image, "filename", "") or "the mask"
        raise ValueError(f"'{name}' has the pixel format {image.mode}; class numbers need one channel, grey")
    return image.convert("L") if image.mode == "1" else image


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
