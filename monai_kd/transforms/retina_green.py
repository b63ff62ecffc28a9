"""What a vessel network sees of a fundus photograph: the green channel, equalized, normalized in the field of view."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_data_type, convert_to_dst_type
from scipy import ndimage

from monai_kd.transforms.clahe import clahe
from monai_kd.transforms.field_of_view import field_diameter

__all__ = ["RetinaGreend", "reflect_outside"]


def reflect_outside(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Continue an image beyond a mask: each pixel outside takes the value at its mirror image behind the border.

    The mirror is the nearest pixel inside. Where the mirror image lies outside again, the nearest pixel itself counts.

    Args:
        image: ``(H, W)``.
        inside: ``(H, W)`` bool, not empty.
    """
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    mirrored = 2 * nearest - np.indices(inside.shape)
    limits = np.array(inside.shape).reshape(2, 1, 1)
    known = ((mirrored >= 0) & (mirrored < limits)).all(axis=0)
    mirrored = np.where(known, mirrored, nearest)
    mirrored = np.where(inside[tuple(mirrored)], mirrored, nearest)
    return image[tuple(mirrored)]


class RetinaGreend(MapTransform):
    """Turn a fundus photograph into one channel: green, where vessels are darkest, equalized and normalized.

    The field of view is continued beyond its rim by reflection, so that no tile of the equalization and no filter sees
    the dark surround. The mean of the field of view becomes 0 and its standard deviation 1; a constant one is all 0.

    Args:
        keys: of the image.
        fov_key: of the mask, ``(1, H, W)``; see :class:`~monai_kd.transforms.FieldOfViewd`.
        tiles, clip_limit: see :func:`~monai_kd.transforms.clahe`; tiles divide the whole image. A limit of 0 does not
            equalize.
        rim: width of the seam along the border that is replaced by reflection too, parts of the field's diameter:
            shipped masks reach into the dark.
        outside: ``zero`` sets what is outside to 0, the mean; ``reflect`` keeps the reflection.
        allow_missing_keys: see MONAI.

    Shape:
        ``(3, H, W)``, or ``(1, H, W)`` for gray images, levels 0 to 255, to ``(1, H, W)`` float32, with its metadata.

    Raises:
        ValueError: an argument out of its range; on use, another number of channels, an empty mask, one of another
            size, or levels of the green channel outside of 0 to 255, NaN among them.
        KeyError: on use, no mask.

    Source: green channel and CLAHE as in GKD (Qi et al. 2024), by the names of its published files. Differs: there the
    equalized image is cut to the central 512 pixels and divided by 255; here the field of view is continued by
    reflection before the equalization and has mean 0 and standard deviation 1 after it, and
    :class:`~monai_kd.transforms.ResizeFieldOfViewd` brings it to one diameter. Tiles, limit and rim are this project's.
    """

    def __init__(
        self,
        keys: KeysCollection,
        fov_key: str = "fov",
        tiles: int = 8,
        clip_limit: float = 2.0,
        rim: float = 0.005,
        outside: str = "zero",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if outside not in ("zero", "reflect"):
            raise ValueError(f"outside is {outside!r}; known: zero, reflect")
        if not (0 <= rim < 0.5 and clip_limit >= 0):  # also where one is NaN
            raise ValueError(f"rim is {rim} and clip_limit {clip_limit}; give 0 to 0.5, and 0 or more")
        self.fov_key = fov_key
        self.tiles = tiles
        self.clip_limit = clip_limit
        self.rim = rim
        self.outside = outside

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        if self.fov_key not in found:
            raise KeyError(f"'{self.fov_key}' is not in the case, which has {list(found)}; FieldOfViewd makes it")
        mask = convert_data_type(found[self.fov_key], torch.Tensor)[0]
        for key in self.key_iterator(found):
            image = convert_data_type(found[key], np.ndarray)[0]
            if len(image) not in (1, 3) or image.shape[1:] != tuple(mask.shape[1:]):
                raise ValueError(
                    f"'{key}' has the shape {image.shape} and '{self.fov_key}' {tuple(mask.shape)}; it must have 1 or "
                    "3 channels, and the mask's pixels"
                )
            seam = self.rim * field_diameter(mask)
            green = self._normalized(_levels(image[len(image) // 2], key), mask[0].cpu().numpy() > 0, seam)
            found[key] = convert_to_dst_type(green[None], found[key], dtype=torch.float32)[0]
        return found

    def _normalized(self, green: np.ndarray, field: np.ndarray, seam: float) -> np.ndarray:
        """``seam`` is the width of the replaced rim, pixels."""
        padded = np.pad(field, 1)  # the border of the image is a border of the field
        trusted = ndimage.distance_transform_edt(padded)[1:-1, 1:-1] > seam
        filled = reflect_outside(green.astype(np.float32), trusted if trusted.any() else field)
        if self.clip_limit:
            filled = clahe(filled, self.tiles, self.clip_limit)
        seen = filled[field]
        normalized = (filled - seen.mean()) / (seen.std() or 1.0)
        return normalized if self.outside == "reflect" else np.where(field, normalized, 0.0)


def _levels(green: np.ndarray, key: Hashable) -> np.ndarray:
    if not (green.min() >= 0 and green.max() <= 255):  # also where it is NaN
        raise ValueError(f"'{key}' has the levels {green.min():g} to {green.max():g}; they must lie in 0 to 255")
    return green
