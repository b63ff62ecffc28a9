"""The round field of view of a fundus photograph: found where no mask is shipped, and brought to one size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Resize
from monai.transforms.spatial.functional import resize
from monai.utils import convert_data_type, convert_to_dst_type, ensure_tuple_rep
from scipy import ndimage
from torch import Tensor

__all__ = ["FieldOfViewd", "ResizeFieldOfViewd", "field_diameter", "field_of_view"]


def field_of_view(image: np.ndarray, fraction: float = 0.05) -> np.ndarray:
    """Find the field of view of a photograph with dark corners: threshold, largest connected part, holes filled.

    The threshold lies ``fraction`` of the way from the corners (95th percentile of the brightest of the four) up to the
    image's 95th percentile; a pixel's brightness is that of its brightest channel. Corners that are half as bright as
    the image are retina: then all of it is the field of view.

    Args:
        image: ``(C, H, W)``, not negative, in any unit.
        fraction: above 0 and below 1.

    Returns:
        ``(H, W)`` bool.

    Raises:
        ValueError: a level is negative, infinite or NaN.

    Source: this project's. GKD (Qi et al. 2024) takes the central 512 pixels of each photograph and has no masks.
    """
    if not (image.min() >= 0 and image.max() < np.inf):  # also where it is NaN
        raise ValueError(f"the image has the levels {image.min():g} to {image.max():g}; give finite ones of 0 or more")
    brightness = image.max(axis=0).astype(np.float32)
    side = max(4, min(brightness.shape) // 30)
    ends = (slice(None, side), slice(-side, None))
    dark = max(float(np.percentile(brightness[rows, columns], 95)) for rows in ends for columns in ends)
    bright = float(np.percentile(brightness, 95))
    if dark >= bright / 2:
        return np.ones(brightness.shape, dtype=bool)
    parts, count = ndimage.label(brightness > dark + fraction * (bright - dark))
    largest = 1 + np.argmax(np.bincount(parts.ravel(), minlength=count + 1)[1:])
    return ndimage.binary_fill_holes(parts == largest)


def field_diameter(mask: Tensor) -> int:
    """Return the longer side of the box round a mask ``(1, H, W)``, in pixels: a field that is cut off keeps its width.

    Raises:
        ValueError: the mask is empty.
    """
    places = (mask.as_tensor() if isinstance(mask, MetaTensor) else mask)[0].nonzero()
    if not len(places):
        raise ValueError(f"the field of view{_file(mask)} is empty")
    return int((places.amax(dim=0) - places.amin(dim=0)).max()) + 1


class FieldOfViewd(MapTransform):
    """Give each case a mask of its field of view: the shipped one, or one found in the image (STARE ships none).

    Found masks agree with the shipped ones: intersection over union at least 0.98, mean 0.99 or more, over the 28
    images of CHASE_DB1 and the 20 of DRIVE's training part.

    Args:
        keys: of the image, one key.
        fov_key: of the mask; a case that has one keeps it, as 0 and 1 whatever its two values were.
        fraction: see :func:`field_of_view`.
        whole: the whole image is the field of a case that has no mask; for images without dark surround, and volumes.
        allow_missing_keys: see MONAI.

    Shape:
        image ``(C, H, W)``, unchanged; the mask is ``(1, H, W)`` float32, with the image's metadata where it was found.

    Raises:
        ValueError: ``fraction`` out of its range; on use, a mask of another size than the image, or an empty one.
    """

    def __init__(
        self,
        keys: KeysCollection,
        fov_key: str = "fov",
        fraction: float = 0.05,
        whole: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys is {self.keys}; give one, a case has one field of view")
        if not 0 < fraction < 1:
            raise ValueError(f"fraction is {fraction}; it must be above 0 and below 1")
        self.fov_key = fov_key
        self.fraction = fraction
        self.whole = whole

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            image = found[key]
            if self.fov_key in found:
                found[self.fov_key] = self._shipped(found[self.fov_key], image, key)
            else:
                plain = convert_data_type(image, np.ndarray)[0]
                mask = np.ones(plain.shape[1:]) if self.whole else field_of_view(plain, self.fraction)
                found[self.fov_key] = convert_to_dst_type(mask[None], image, dtype=torch.float32)[0]
        return found

    def _shipped(self, mask: Any, image: Any, key: Hashable) -> Any:
        if mask.shape[1:] != image.shape[1:] or len(mask) != 1:
            raise ValueError(
                f"'{self.fov_key}'{_file(mask)} has the shape {tuple(mask.shape)}; '{key}' needs "
                f"{(1, *image.shape[1:])}"
            )
        if not mask.max() > 0:
            raise ValueError(f"'{self.fov_key}'{_file(mask)} is empty; leave the key out to find it in the image")
        return convert_to_dst_type(mask > mask.max() / 2, mask, dtype=torch.float32)[0]


class ResizeFieldOfViewd(MapTransform, InvertibleTransform):
    """Resize images so that the field of view is of one diameter: vessels are then of one width in all data sets.

    Fields of view measure 893 to 922 pixels in CHASE_DB1, 536 to 541 in DRIVE and about 650 in STARE. Height and width
    are scaled alike, up to rounding to whole pixels. ``inverse`` (``Invertd``) brings a prediction back to the pixels
    of its file, by the mode of its image.

    Thin vessels need care in a label: resize it by ``bilinear`` too, and follow with ``AsDiscreted(keys="label",
    threshold=0.5)``. Measured at a diameter of 512 on 3 cases each of CHASE_DB1, STARE and DRIVE, there and back: Dice
    0.94, 0.95 and 0.98; by torch's ``nearest``, which shifts by half a pixel, 0.86, 0.85 and 0.83; ``area`` makes
    vessels up to 17 % thicker. Score on the label as it is in the file.

    Args:
        keys: of images, labels and masks of one case.
        diameter: of the field of view afterwards, pixels.
        fov_key: of the mask that is measured, ``(1, H, W)``; resized too only if it is among the keys.
        mode: ``bilinear``, ``nearest-exact`` (masks) or another of torch's, one for all keys or one each.
        anti_aliasing: smooth images before they are made smaller; the modes ``nearest`` and ``area`` go without.
        allow_missing_keys: see MONAI.

    Shape:
        ``(C, H, W)`` to ``(C, H', W')``, float32.

    Raises:
        ValueError: a diameter below 1; on use, an empty mask, or an image of another size than it.
        KeyError: on use, no mask; :class:`FieldOfViewd` makes one.

    Source: this project's, in place of the central crop of 512 pixels in GKD (Qi et al. 2024), which cuts the field of
    view of CHASE_DB1 and leaves vessels of another width in each data set.
    """

    def __init__(
        self,
        keys: KeysCollection,
        diameter: int,
        fov_key: str = "fov",
        mode: str | Sequence[str] = "bilinear",
        anti_aliasing: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if diameter < 1:
            raise ValueError(f"diameter is {diameter}; give pixels, 1 or more")
        self.diameter = diameter
        self.fov_key = fov_key
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.anti_aliasing = anti_aliasing
        self.resizer = Resize(spatial_size=-1)  # what is traced and inverted

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        if self.fov_key not in found:
            raise KeyError(f"'{self.fov_key}' is not in the case, which has {list(found)}; FieldOfViewd makes it")
        mask = convert_data_type(found[self.fov_key], Tensor)[0]
        scale = self.diameter / field_diameter(mask)
        size = tuple(max(1, round(length * scale)) for length in mask.shape[1:])
        for key, mode in self.key_iterator(found, self.mode):
            if found[key].shape[1:] != mask.shape[1:]:
                raise ValueError(
                    f"'{key}' has {tuple(found[key].shape[1:])} pixels and '{self.fov_key}' {tuple(mask.shape[1:])}"
                )
            found[key] = self._resized(found[key], size, mode)
        return found

    def _resized(self, image: Tensor, size: tuple[int, ...], mode: str) -> Tensor:
        smooth = self.anti_aliasing and not mode.startswith("nearest") and mode != "area"
        traced = self.resizer.get_transform_info()
        return resize(image, size, mode, None, torch.float32, 2, smooth, None, False, traced)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = self.resizer.inverse(found[key])
        return found


def _file(image: Any) -> str:
    name = getattr(image, "meta", {}).get("filename_or_obj")
    return f" of '{name}'" if name else ""
