"""Class maps: logits of one label set as logits of another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from monai_kd.networks.shapes import Features, Shapes, as_list, as_shapes, like, widen

__all__ = ["SelectClasses"]


class SelectClasses(nn.Module):
    """Logits of other classes, or of the same in another order: by channel, groups merged; without weights.

    A group becomes the log of the sum of its exponentials, so its softmax probability is the sum of its members'. A
    channel that is named nowhere is left out, and softmax shares its probability among the others: to keep it, put it
    into the group of the background. Groups have no meaning for sigmoid channels, which are not exclusive.

    As ``target_adapter`` it brings a teacher to the student's classes: ``SelectClasses([[0, 3, 4], 1, 2])`` calls the
    teacher's classes 3 and 4 background.

    Args:
        channels: one entry for each class of the result: a channel, or a list of channels to merge.

    Shape:
        ``(B, C, *spatial)`` with every named channel below C, or a list of such. Returns ``(B, len(channels),
        *spatial)``, in float32 where groups are merged.

    Raises:
        ValueError: no entries, an empty group, a channel below 0 or named twice; on building, or else on use, a channel
            that the logits do not have: names channel and shape.
    """

    def __init__(self, channels: Sequence[int | Sequence[int]]) -> None:
        super().__init__()
        entries = channels if isinstance(channels, Sequence) else []
        groups = [list(entry) if isinstance(entry, Sequence) else [entry] for entry in entries]
        flat = list(chain.from_iterable(groups))
        whole = all(isinstance(channel, int) and not isinstance(channel, bool) and channel >= 0 for channel in flat)
        if not groups or not all(groups) or not whole or len(set(flat)) != len(flat):
            raise ValueError(
                f"channels is {channels!r}; it must name each channel, from 0 on, at most once, alone or in a list to "
                "merge, e.g. [[0, 3], 1, 2]"
            )
        self.channels = groups
        self.register_buffer("index", torch.tensor(flat), persistent=False)  # follows .to(), is in no file

    def build(self, student_shapes: Shapes, target_shapes: Shapes) -> None:
        """Check that the logits have the channels; nothing is made.

        Args:
            student_shapes: of the logits to map, one shape or a list of them.
            target_shapes: not looked at: the other side may be mapped as well.

        Raises:
            ValueError: a channel is missing.
        """
        for shape in as_shapes(student_shapes):
            self._check(shape)

    def forward(self, student: Features) -> Any:
        return like(student, [self._map(logits) for logits in as_list(student)])

    def extra_repr(self) -> str:
        return f"channels={self.channels}"

    def _map(self, logits: Tensor) -> Tensor:
        self._check(logits.shape)
        sizes = [len(group) for group in self.channels]
        chosen = logits.index_select(1, self.get_buffer("index").to(logits.device))
        if max(sizes) == 1:
            return chosen
        parts = widen(chosen).split(sizes, dim=1)
        return torch.cat([part.logsumexp(1, keepdim=True) if part.shape[1] > 1 else part for part in parts], dim=1)

    def _check(self, shape: Sequence[int]) -> None:
        largest = max(chain.from_iterable(self.channels))
        if len(shape) < 3 or shape[1] <= largest:
            raise ValueError(
                f"SelectClasses reads channel {largest}, but the logits are {tuple(shape)}; they must be "
                "(batch, channels, *spatial) with that many channels"
            )
