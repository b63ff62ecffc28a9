"""Attention transfer: where a network's features are strong, whatever their channels mean."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_kd.losses.dense import check_number, check_reduction, full_precision
from monai_kd.losses.levels import Features, level_pairs, pool_to_common

__all__ = ["AttentionTransfer"]

# numbers of a feature that are raised to a power at once on a CPU, so that no second feature is held
_CHUNK = 2**18


class AttentionTransfer(nn.Module):
    """Squared distance of the attention maps of student and teacher (AT).

    The attention map of a sample is the mean of ``|feature| ** p`` over the channels, brought to unit length over its
    positions. Channels may differ and need no adapter. On different grids the larger map is averaged down to the
    smaller one before its length is taken. Zero for features that differ by a positive factor. An all-zero feature has
    an all-zero map and receives no gradient. Computed in float32.

    Args:
        p: exponent, >= 1, no unit; 2 is usual, 4 looks at the strongest features only (the importance maps of EMKD).
        reduction: ``samplemean`` is the sum over positions and the mean over samples, which lies between 0 and 2 and
            does not depend on the resolution. ``elementmean`` divides by the number of positions too; ``none`` returns
            one value per sample, ``(B,)``.

    Shape:
        student, teacher: features ``(B, C, *spatial)`` with any C, 1 to 3 spatial axes (any number on equal grids); or
        lists of as many features, whose losses are added.

    Raises:
        ValueError: other batches, ranks or numbers of levels.

    Source: Zagoruyko and Komodakis 2017, eq. 2, with squared distances as in its published code. That code takes the
        mean over positions (here ``elementmean``), which fades with the resolution: 80 times smaller at 128 x 128 than
        at 14 x 14. Other code pools the features of the larger grid and not their map, which lets positive and
        negative features cancel.
    """

    compares_maps = True  # see Term

    def __init__(self, p: float = 2.0, reduction: str = "samplemean") -> None:
        super().__init__()
        self.p = check_number("p", p, least=1)
        self.reduction = check_reduction(reduction, ("samplemean", "elementmean", "none"))

    def forward(self, student: Features, teacher: Features) -> Tensor:
        pairs = level_pairs(student, teacher)
        return torch.stack([self._level(ours, theirs) for ours, theirs in pairs]).sum(dim=0)

    def extra_repr(self) -> str:
        return f"p={self.p:g}, reduction={self.reduction!r}"

    def _level(self, student: Tensor, teacher: Tensor) -> Tensor:
        with full_precision(student, teacher) as (student, teacher):
            maps = pool_to_common(_Energy.apply(student, self.p), _Energy.apply(teacher, self.p))
            distance = (_unit_length(maps[0]) - _unit_length(maps[1])).square()
        values = distance.mean(dim=1) if self.reduction == "elementmean" else distance.sum(dim=1)
        return values if self.reduction == "none" else values.mean()


def _unit_length(energy: Tensor) -> Tensor:
    """Return maps ``(B, 1, *spatial)`` as vectors ``(B, P)`` of length 1, all-zero ones as they are."""
    energy = energy.flatten(1)
    # the length does not depend on the scale; near 1 its squares neither overflow nor vanish
    largest = energy.detach().amax(dim=1, keepdim=True)
    some = largest > 0
    return F.normalize(energy / torch.where(some, largest, 1.0), dim=1, eps=1e-12) * some  # none: no gradient either


class _Energy(torch.autograd.Function):
    """Mean over the channels of ``|feature| ** p``, ``(B, 1, *spatial)``; nothing but the feature is kept."""

    @staticmethod
    def forward(ctx: Any, feature: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(feature)
        ctx.p = p
        return _channel_mean(feature.flatten(2), p).view(feature.shape[0], 1, *feature.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (feature,) = ctx.saved_tensors
        scale = gradient * (ctx.p / feature.shape[1])
        if ctx.p == 2:
            return feature * scale, None
        return feature.abs().pow_(ctx.p - 1).mul_(feature.sign()).mul_(scale), None


def _channel_mean(feature: Tensor, p: float) -> Tensor:
    """Return the mean of ``|feature| ** p`` over the channels, ``(B, C, P) -> (B, P)``."""
    batch, channels, positions = feature.shape
    step = max(1, _CHUNK // max(1, batch * channels))
    if feature.device.type != "cpu" or positions <= 2 * step or torch.compiler.is_compiling():
        return _power(feature, p).mean(dim=1)
    energy = feature.new_empty(batch, positions)
    for start in range(0, positions, step):
        energy[:, start : start + step] = _power(feature[:, :, start : start + step], p).mean(dim=1)
    return energy


def _power(feature: Tensor, p: float) -> Tensor:
    return feature.square() if p == 2 else feature.abs().pow_(p)
