"""Several teachers as one: their mean probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["EnsembleTeacher"]


class EnsembleTeacher(nn.Module):
    """The mean of several teachers' class probabilities, given as logits.

    The logits are the logarithm of the mean probabilities, so their softmax is the mean exactly; computed stably
    (log-sum-exp of each member's log-softmax) in float32, also under autocast. The members' classes must be the same in
    the same order: wrap those that differ in :class:`~monai_kd.teachers.MapClasses`.

    Args:
        networks: the members; each maps the image ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``, K >= 2.

    Raises:
        ValueError: no members, or in the forward pass members of different shapes.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("an ensemble needs at least one teacher; got an empty list")
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        total: Tensor | None = None
        for number, network in enumerate(self.networks):
            log_probabilities = torch.log_softmax(network(image).float(), dim=1)
            if total is None:
                total = log_probabilities
            elif total.shape != log_probabilities.shape:
                raise ValueError(
                    f"ensemble member {number} gives {tuple(log_probabilities.shape)}, member 0 {tuple(total.shape)}; "
                    "all need the same classes on the same grid"
                )
            else:
                total = torch.logaddexp(total, log_probabilities)
        assert total is not None  # the constructor refuses an empty list
        return total - math.log(len(self.networks))
