"""Labels that a training may not see, hidden before anything reads them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

__all__ = ["HideLabeld"]


class HideLabeld(MapTransform):
    """Fill the labels of cases without the flag ``labelled``, so that no crop, loss or metric can use them.

    Place it behind the label's last change of size and before crops that look for foreground. Cases that have no flag
    are labelled, and get it.

    Args:
        keys: of the labels.
        flag: key of the flag, see :func:`monai_kd.data.labelled_part`.
        value: what fills the label, a number that losses ignore. As it is above 0, a crop that balances foreground and
            background draws from the whole image.
        allow_missing_keys: see MONAI.

    Shape:
        label ``(C, *spatial)``; the flag is a whole number, 0 or 1.
    """

    def __init__(
        self, keys: KeysCollection, flag: str = "labelled", value: int = 255, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.flag, self.value = flag, value

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        result[self.flag] = int(result.get(self.flag, 1))
        if not result[self.flag]:
            for key in self.key_iterator(result):
                result[key] = torch.full_like(result[key], self.value)
        return result
