"""Which patient and which slice a cropped slice is of, as numbers that travel with the batch."""

from __future__ import annotations

import re
import zlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

__all__ = ["SliceFactsd"]


class SliceFactsd(MapTransform):
    """Add the patient and the position of a slice, for losses that must not tell neighbors apart.

    Place it behind the crop that took the slice out of its volume, such as ``RandCropByPosNegLabeld`` with
    ``spatial_size: [-1, -1, 1]``, and before the axis is squeezed.

    Args:
        keys: of the image, one key.
        axis: of the volume, along which the slices lie.
        group: key of the patient: a number made from the text that stands there (cases of several files a patient have
            a ``group``), else from the file's name without folders and endings; the same in every process and run.
        position: key of the slice, counted from 0 in the volume that was cropped.
        allow_missing_keys: see MONAI.

    Shape:
        image ``(C, *spatial)`` with one voxel along ``axis``, unchanged; two whole numbers.

    Raises:
        ValueError: several keys; on use an image that is no single slice, or keeps no record of its crop or its file.

    Source: Biswas 2024, arXiv 2406.03173, has neighboring slices of one patient among the negatives.
    """

    def __init__(
        self,
        keys: KeysCollection,
        axis: int = -1,
        group: str = "group",
        position: str = "position",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys is {self.keys}; give the image's key alone")
        self.axis, self.group, self.position = axis, group, position

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            if image.shape[1:][self.axis] != 1:
                raise ValueError(
                    f"'{key}' is {tuple(image.shape)}: SliceFactsd takes one slice along axis {self.axis}; crop it to "
                    "one before"
                )
            result[self.group] = case_number(result.get(self.group) or _file_name(image))
            result[self.position] = _place(image, key, self.axis)
        return result


def case_number(name: str) -> int:
    """Return a number from 0 to 2**32 - 1 that is made from a name."""
    return zlib.crc32(str(name).encode())


def _file_name(image: Any) -> str:
    path = getattr(image, "meta", {}).get("filename_or_obj")
    if not path:
        raise ValueError("the image does not know its file: load it by LoadImaged, and keep its metadata")
    return re.sub(r"\.(nii\.gz|[^.]*)$", "", Path(str(path)).name, flags=re.IGNORECASE)


def _place(image: Any, key: Hashable, axis: int) -> int:
    """Return where the last crop that made the volume shorter along an axis began."""
    crops = [crop for operation in getattr(image, "applied_operations", []) if (crop := _cropped(operation))]
    if not crops:
        raise ValueError(f"'{key}' has no crop on record: place SliceFactsd behind the crop that takes the slice out")
    for crop in reversed(crops):
        before, after = crop[::2][axis], crop[1::2][axis]
        if before or after:
            return int(before)
    return 0  # the volume was a single slice


def _cropped(operation: Any) -> list[int]:
    """Return how many voxels a recorded operation cut off before and behind, axis by axis; of no crop nothing."""
    facts: Any = operation
    while isinstance(facts, Mapping):
        if "cropped" in facts:
            return list(facts["cropped"])
        facts = facts.get("extra_info")
    return []
