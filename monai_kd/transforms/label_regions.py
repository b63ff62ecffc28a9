"""Class indices as overlapping regions, one channel each, for sigmoid outputs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_data_type, convert_to_dst_type
from torch import Tensor

__all__ = ["LabelRegionsd", "PrependBackgroundd", "RegionsLabeld"]


class LabelRegionsd(MapTransform):
    """Turn a map of class indices into one channel of 0 and 1 per region.

    A region is a set of label values; regions may overlap, e.g. the whole tumor and its core. MONAI's
    ``ConvertToMultiChannelBasedOnBratsClassesd`` does this for one fixed set of labels.

    Args:
        keys: of the labels.
        regions: name to label values, in the order of the channels: ``{"whole_tumor": [1, 2, 4], "core": [1, 4]}``.
        allow_missing_keys: see MONAI.

    Shape:
        ``(1, *spatial)`` to ``(R, *spatial)``, float32, tensor or array as it came; metadata stay.

    Raises:
        ValueError: no region, one without values, or on use a label of several channels.
    """

    def __init__(
        self, keys: KeysCollection, regions: Mapping[str, Sequence[float]], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not regions or not all(isinstance(values, Sequence) and values for values in regions.values()):
            raise ValueError(f"regions is {dict(regions)}; give at least one, each with a list of label values")
        self.regions = {name: list(values) for name, values in regions.items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            channels = self._channels(convert_data_type(found[key], Tensor)[0], key)
            found[key] = convert_to_dst_type(channels, found[key], dtype=channels.dtype)[0]
        return found

    def _channels(self, label: Tensor, key: Hashable) -> Tensor:
        if label.shape[0] != 1:
            raise ValueError(f"'{key}' has the shape {tuple(label.shape)}; regions are made of one channel of indices")
        channels = [torch.stack([label[0] == value for value in values]).any(dim=0) for values in self.regions.values()]
        return torch.stack(channels).float()


class PrependBackgroundd(MapTransform):
    """Put a channel in front that is 1 where no other channel is: scores leave out the first channel.

    Args:
        keys: of maps of 0 and 1.
        allow_missing_keys: see MONAI.

    Shape:
        ``(R, *spatial)`` to ``(1 + R, *spatial)``.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            regions = convert_data_type(found[key], Tensor)[0]
            nothing = (regions > 0).any(dim=0, keepdim=True).logical_not()
            joined = torch.cat([nothing.to(regions.dtype), regions])
            found[key] = convert_to_dst_type(joined, found[key])[0]
        return found


class RegionsLabeld(MapTransform):
    """Turn regions into one map of label values: where several hold a voxel, the last one's value counts.

    The reverse of :class:`LabelRegionsd` where each region lies in the one before, as a tumor's core in the whole.

    Args:
        keys: of maps of 0 and 1.
        values: label value of each region, in the order of the channels, from the widest to the innermost region:
            ``[2, 1, 4]`` for whole tumor, core and enhancing tumor of BraTS.
        allow_missing_keys: see MONAI.

    Shape:
        ``(R, *spatial)`` to ``(1, *spatial)``, 0 where no region is.

    Raises:
        ValueError: no value, or on use another number of channels than of values.
    """

    def __init__(self, keys: KeysCollection, values: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if not values:
            raise ValueError("values is empty; give the label value of each region, from the widest to the innermost")
        self.values = tuple(values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            label = self._label(convert_data_type(found[key], Tensor)[0], key)
            found[key] = convert_to_dst_type(label, found[key])[0]
        return found

    def _label(self, regions: Tensor, key: Hashable) -> Tensor:
        if len(regions) != len(self.values):
            raise ValueError(f"'{key}' has {len(regions)} channels; values names {len(self.values)}: {self.values}")
        label = torch.zeros_like(regions[:1])
        for region, value in zip(regions, self.values, strict=True):
            label[0][region > 0] = value
        return label
