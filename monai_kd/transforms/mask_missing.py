"""Images of which some channels are missing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_data_type, convert_to_dst_type
from torch import Tensor

__all__ = ["MaskMissingd"]


class MaskMissingd(MapTransform):
    """Set the channels that a case lacks to 0, and say which it has in one form.

    A missing modality's place is filled by another file (:func:`~monai_kd.data.brats_cases` with ``optional``); this
    clears it. Place it behind what computes intensities, so that nothing makes the zeros something else.

    Args:
        keys: of images, channel first.
        available_key: of 1 for a channel that is there and 0 for one that is not, in the order of the channels; where
            the case has no such key, all channels are there.
        allow_missing_keys: see MONAI.

    Shape:
        image ``(C, *spatial)`` as it came, tensor or array, with its metadata; ``available`` becomes a ``(C,)``
        float32 tensor.

    Raises:
        ValueError: on use, ``available`` has another number of entries than the image channels, or others than 0 and 1.
    """

    def __init__(
        self, keys: KeysCollection, available_key: str = "available", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.available_key = available_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            image = convert_data_type(found[key], Tensor)[0]
            available = self._available(found, key, len(image))
            kept = available.to(image.device).reshape(-1, *[1] * (image.ndim - 1)) > 0
            # not a product: what stands in a missing place may be NaN
            masked = torch.where(kept, image, torch.zeros_like(image))
            found[key] = convert_to_dst_type(masked, found[key])[0]
            found[self.available_key] = available
        return found

    def _available(self, data: Mapping[Hashable, Any], key: Hashable, channels: int) -> Tensor:
        if self.available_key not in data:
            return torch.ones(channels)
        available = torch.as_tensor(data[self.available_key], dtype=torch.float32)
        if available.shape != (channels,):
            raise ValueError(
                f"'{self.available_key}' has the shape {tuple(available.shape)}, '{key}' {channels} channels: "
                "give one entry per channel"
            )
        if not ((available == 0) | (available == 1)).all():
            raise ValueError(f"'{self.available_key}' is {available.tolist()}; 1 is there, 0 is missing")
        return available
