"""Kullback-Leibler divergence of distributions over the positions of a map, in pieces of many positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__: list[str] = []

# numbers of a map that are worked on at once, on a CPU so that they stay in its cache, else to save memory
_CHUNK = {"cpu": 2**17}
_LARGE_CHUNK = 2**24


def position_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``temperature**2 * KL(softmax(teacher / temperature) || softmax(student / temperature))`` over space.

    A row is never worked on as a whole, since one row of a scan is larger than a cache.

    Args:
        student, teacher: maps of the same shape ``(B, C, P)`` in float32 or float64.
        temperature: > 0.

    Returns:
        ``(B, C)``. Gradient to the student only, ``temperature * (student's softmax - teacher's)``, which is the one
        tensor kept for backward.
    """
    kl: Tensor = _PositionKL.apply(student, teacher, temperature)
    return kl


class _PositionKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        totals = _log_total(student, temperature), _log_total(teacher, temperature)
        keep = ctx.needs_input_grad[0]
        kept = torch.empty_like(student, memory_format=torch.contiguous_format) if keep else None
        sums = []
        for piece in _pieces(student):
            ours = _scaled(student[..., piece], temperature, totals[0])
            theirs = _scaled(teacher[..., piece], temperature, totals[1])
            difference, part = _piece_kl(ours, theirs)
            sums.append(part)
            if kept is not None:
                torch.mul(difference, temperature, out=kept[..., piece])
        if keep:
            ctx.save_for_backward(kept)
        return torch.stack(sums).sum(dim=0).mul_(temperature**2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * gradient.unsqueeze(-1), None, None


def _pieces(value: Tensor) -> Iterator[slice]:
    rows, positions = value.shape[0] * value.shape[1], value.shape[2]
    step = max(1, _CHUNK.get(value.device.type, _LARGE_CHUNK) // max(1, rows))
    if torch.compiler.is_compiling():
        step = max(1, positions)
    for start in range(0, positions, step):
        yield slice(start, start + step)


def _log_total(value: Tensor, temperature: float) -> Tensor:
    """Return ``logsumexp(value / temperature)`` over the positions, ``(B, C, 1)``."""
    parts = []
    for piece in _pieces(value):
        largest = value[..., piece].amax(dim=2, keepdim=True).div_(temperature)
        total = _scaled(value[..., piece], temperature, largest).exp_().sum(dim=2, keepdim=True)
        parts.append(total.log_().add_(largest))
    return torch.stack(parts).logsumexp(dim=0)


def _scaled(value: Tensor, temperature: float, less: Tensor) -> Tensor:
    return torch.add(-less, value, alpha=1 / temperature)  # one pass


def _piece_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of two probabilities given by their logarithms, and the part of the divergence.

    The differences have no cancellation. Their sum, 0 over all positions, is added to the divergence: it leaves the
    value as it is, but takes away the rounding of the logarithms. Both arguments are overwritten.
    """
    ratio = teacher - student
    larger = torch.maximum(student, teacher, out=student).exp_()
    gap = torch.abs(ratio, out=teacher).neg_().expm1_().mul_(larger)  # the smaller minus the larger probability
    difference = gap.copysign_(ratio).neg_()
    probability = larger.sub_(difference.clamp_min(0))  # the teacher's; a mask would cost more than the exponentials
    return difference, ratio.mul_(probability).add_(difference).sum(dim=2)
