"""How many slices the volumes hold that are folded into a batch."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor

__all__ = ["SliceCount", "fold_slices", "unfold_slices"]


class SliceCount:
    """The number of slices per volume, known to a network that folds them and to the layers inside it.

    A layer of a 2-D network sees a batch of slices and cannot tell where a volume ends. Each thread has a number of its
    own, so that one network can serve several at once. A thread that set none takes the one set last: activation
    checkpointing computes a forward pass again in the thread of the backward pass. With such checkpoints inside the
    network do not pass volumes of another depth between a forward pass and its backward pass.
    """

    owned: bool = False  # by a network that sets it

    def __init__(self) -> None:
        self._own = threading.local()
        self._last: int | None = None

    @property
    def slices(self) -> int | None:
        """The number; None before the first volume."""
        number: int | None = getattr(self._own, "slices", self._last)
        return number

    @slices.setter
    def slices(self, number: int | None) -> None:
        self._own.slices = self._last = number

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # copies and pickles of a network share one among themselves


def fold_slices(volume: Tensor, depth_axis: int) -> Tensor:
    """Return ``(B, C, *spatial)`` with three spatial axes as slices ``(B * D, C, H, W)``; H and W keep their order."""
    return volume.movedim(2 + depth_axis, 1).flatten(0, 1)


def unfold_slices(slices: Tensor, count: int, depth_axis: int) -> Tensor:
    """Undo :func:`fold_slices`, as a view; also of several heads, ``(B * D, heads, K, H, W)``."""
    return slices.unflatten(0, (-1, count)).movedim(1, slices.ndim - 2 + depth_axis)
