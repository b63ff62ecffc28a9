"""Windows of a network on slices: of the trained size in plane, through all slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["slice_window"]


def slice_window(patch_size: Sequence[int], axis: Any) -> list[int]:
    """Return the patch's size with -1, all of it, along the axis of the slices.

    Args:
        patch_size: of training, voxels per axis.
        axis: of the slices; ``none`` for a network that has none, whose window is the patch.

    Raises:
        ValueError: another axis; also None, which leaves the axis to the network.
    """
    size = list(patch_size)
    if axis == "none":
        return size
    if isinstance(axis, bool) or not isinstance(axis, int) or not -len(size) <= axis < len(size):
        raise ValueError(
            f"slice_axis is {axis!r}; give the axis of the slices, 0 to {len(size) - 1}, or 'none' for a network that "
            "does not run on slices"
        )
    size[axis] = -1
    return size
