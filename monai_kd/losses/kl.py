"""Kullback-Leibler divergences of probabilities given as logits: exact, stable, one tensor kept for backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__: list[str] = []

# numbers of a map that are worked on at once on a CPU, so that the intermediate results stay in its cache
_CHUNK = 2**18


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``temperature**2 * KL(softmax(teacher / temperature) || softmax(student / temperature))`` per voxel.

    Args:
        student, teacher: logits of the same shape ``(B, C, *spatial)`` in float32 or float64.
        temperature: > 0.

    Returns:
        The divergence of each voxel, ``(B, *spatial)``. Gradient to the student only:
        ``temperature * (student's softmax - teacher's)``, which is the one tensor kept for backward.
    """
    kl: Tensor = _SoftmaxKL.apply(student, teacher, temperature)
    return kl


class _SoftmaxKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        def rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
            return _softmax_rows(student, teacher, temperature)

        kl, difference = over_voxels(rows, student, teacher)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(difference)
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * gradient.unsqueeze(1), None, None


def _softmax_rows(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return ``T**2 * KL`` of each voxel and its gradient to the student's logits."""
    student_log = torch.log_softmax(student if temperature == 1 else student / temperature, dim=1)
    teacher_log = torch.log_softmax(teacher if temperature == 1 else teacher / temperature, dim=1)
    probability = teacher_log.exp()
    ratio = teacher_log.sub_(student_log)
    difference = probability_difference(student_log.exp_(), probability, ratio)
    kl = ratio.mul_(probability).add_(difference).sum(dim=1).mul_(temperature**2)
    return kl, difference.mul_(temperature)


def probability_difference(student: Tensor, teacher: Tensor, ratio: Tensor) -> Tensor:
    """Return ``student - teacher`` from two probabilities and ``ratio = log(teacher / student)``, without cancellation.

    Added to ``teacher * ratio`` and summed over a distribution it leaves the divergence as it is, since both sum to 1;
    but it takes away the rounding of the logarithms, ten times over in float32. The student's tensor is overwritten.
    """
    magnitude = ratio.abs().neg_().expm1_()
    larger = torch.maximum(student, teacher, out=student)
    return magnitude.mul_(larger).copysign_(ratio).neg_()


def over_voxels(work: Callable[..., tuple[Tensor, Tensor]], *maps: Tensor) -> tuple[Tensor, Tensor]:
    """Call ``work`` on maps ``(B, C, *spatial)``, on a CPU in pieces of many voxels.

    Args:
        work: gets the maps as ``(B, C, n)`` and returns ``(B, n)`` and ``(B, C, n)``; voxels do not depend on each
            other.
        maps: the first one's channels count for the result; no gradient is recorded.

    Returns:
        ``(B, *spatial)`` and ``(B, C, *spatial)``.
    """
    batch, channels, *spatial = maps[0].shape
    flat = [value.flatten(2) for value in maps]
    voxels, step = flat[0].shape[2], max(1, _CHUNK // max(1, batch * channels))
    if maps[0].device.type != "cpu" or voxels <= 2 * step or torch.compiler.is_compiling():
        values, gradients = work(*flat)
    else:
        values, gradients = flat[0].new_empty(batch, voxels), torch.empty_like(flat[0])
        for start in range(0, voxels, step):
            piece = slice(start, start + step)
            values[:, piece], gradients[:, :, piece] = work(*(value[:, :, piece] for value in flat))
    return values.view(batch, *spatial), gradients.view(batch, channels, *spatial)


def bernoulli_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``temperature**2 * KL`` of the independent Bernoulli variables behind sigmoid logits, in their shape.

    Gradient to the student only: ``temperature * (sigmoid(student / T) - sigmoid(teacher / T))``.
    """
    kl: Tensor = _BernoulliKL.apply(student, teacher, temperature)
    return kl


class _BernoulliKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        kl, difference = bernoulli_rows(student / temperature, teacher / temperature)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(difference.mul_(temperature))
        return kl.mul_(temperature**2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * gradient, None, None


def bernoulli_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL of Bernoulli variables from their log-odds, and ``sigmoid(student) - sigmoid(teacher)``."""
    on = F.logsigmoid(teacher) - F.logsigmoid(student)
    off = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    on_gap = probability_difference(student.sigmoid(), teacher.sigmoid(), on)
    off_gap = probability_difference(torch.sigmoid(-student), torch.sigmoid(-teacher), off)
    # the smaller of the two probabilities has the exact difference
    kl = on.mul_(teacher.sigmoid()).add_(on_gap).add_(off.mul_(torch.sigmoid(-teacher))).add_(off_gap)
    return kl, torch.where(teacher < 0, on_gap, off_gap.neg_())
