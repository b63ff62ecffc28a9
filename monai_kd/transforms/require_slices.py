"""A volume with too few slices for a patch is refused, in place of slices made up."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

__all__ = ["RequireSlicesd"]


class RequireSlicesd(MapTransform):
    """Refuse a volume that has fewer slices than a training patch: padding would make slices up.

    Made-up slices reach the real ones through an exchange between slices, and the statistics of batch normalization.

    Args:
        keys: of the images.
        patch_size: of training, voxels per axis.
        window: of inference, voxels per axis; slices lie along the axes where it is -1, and only those are checked.
        allow_missing_keys: see MONAI.

    Shape:
        ``(C, *spatial)``, unchanged.

    Raises:
        ValueError: on use, a volume with too few slices; names its file, how many it has and what would be right.
    """

    def __init__(
        self, keys: KeysCollection, patch_size: Sequence[int], window: Sequence[int], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(patch_size) != len(window):
            raise ValueError(f"patch_size is {list(patch_size)} and window {list(window)}: give as many axes in both")
        self.patch_size = tuple(patch_size)
        self.axes = tuple(axis for axis, length in enumerate(window) if length < 0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            size = data[key].shape[1:]
            for axis in self.axes:
                if size[axis] < self.patch_size[axis]:
                    name = getattr(data[key], "meta", {}).get("filename_or_obj", key)
                    fewer = [*self.patch_size[:axis], size[axis], *self.patch_size[axis + 1 :]]
                    raise ValueError(
                        f"'{name}' has {size[axis]} slices along axis {axis} at the working spacing, patch_size "
                        f"{list(self.patch_size)} takes {self.patch_size[axis]}, and none is made up: give "
                        f'--patch_size "{fewer}", or take the case out of the data (--skip_bad_cases does not see this)'
                    )
        return dict(data)
