"""Pearson correlations of class probabilities given as logits, over classes and over voxels, in two runs over a map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__: list[str] = []

# least variance of probabilities (a root mean square deviation of 1e-4): below it a correlation is one of rounding
_FLOOR = 1e-8
_EPS = 1e-8  # of the published denominators
# numbers of a map that are worked on at once, on a CPU so that they stay in its cache, else to save memory
_CHUNK = {"cpu": 2**17}
_LARGE_CHUNK = 2**24


class Settings(NamedTuple):
    """``beta`` and ``gamma`` weigh inter and intra; ``world`` is the number of processes that form one batch."""

    beta: float
    gamma: float
    temperature: float
    sigmoid: bool
    world: int


def correlation_loss(student: Tensor, teacher: Tensor, valid: Tensor | None, settings: Settings) -> Tensor:
    """Return ``temperature**2 * (beta * inter + gamma * intra)``, 0-d; see :class:`CorrelationDistillation`.

    Args:
        student, teacher: logits of the same shape ``(B, C, *spatial)`` in float32 or float64; no gradient to the
            teacher. One tensor is kept for backward.
        valid: which voxels count, bool ``(B, *spatial)``; None for all.
    """
    loss: Tensor = _Correlation.apply(student, teacher, valid, settings)
    return loss


class _Correlation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, valid: Tensor | None, settings: Settings) -> Tensor:
        work = _Runs(student, teacher, valid, settings, keep=ctx.needs_input_grad[0])
        moments = work.moments()
        if settings.world > 1:
            moments = _merge(_gather(moments, settings.world))
        loss, slopes = _correlate(moments, settings)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(work.gradient(slopes))
        return loss.mul(settings.temperature**2).to(student.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        return difference * gradient, None, None, None


class _Runs:
    """Two runs over the voxels in pieces: moments first, then the gradient, which needs them.

    Between the runs the student's probabilities are kept, where the gradient will be, and two numbers per voxel.
    """

    def __init__(self, student: Tensor, teacher: Tensor, valid: Tensor | None, settings: Settings, keep: bool) -> None:
        self.shape, self.settings = student.shape, settings
        self.student, self.teacher = student.flatten(2), teacher.flatten(2)
        self.invalid = None if valid is None else valid.logical_not().flatten(1).unsqueeze(1)
        batch, classes, voxels = self.student.shape
        self.kept = torch.empty_like(self.student, memory_format=torch.contiguous_format) if keep else None
        # over two classes inter is a step: no gradient
        self.slopes = self.student.new_empty(2, batch, voxels) if keep and settings.beta and classes > 2 else None

    def pieces(self) -> Iterator[slice]:
        batch, classes, voxels = self.student.shape
        step = max(1, _CHUNK.get(self.student.device.type, _LARGE_CHUNK) // max(1, batch * classes))
        if torch.compiler.is_compiling():
            step = max(1, voxels)
        for start in range(0, voxels, step):
            yield slice(start, start + step)

    def probabilities(self, logits: Tensor, piece: slice) -> Tensor:
        logits = logits[:, :, piece]
        if self.invalid is not None:
            logits = logits.masked_fill(self.invalid[:, :, piece], 0.0)
        if self.settings.temperature != 1:
            logits = logits / self.settings.temperature
        return logits.sigmoid() if self.settings.sigmoid else logits.softmax(dim=1)

    def moments(self) -> Tensor:
        """Return the moments of all voxels, see :func:`_merge`."""
        return _merge(torch.stack([self._piece_moments(piece) for piece in self.pieces()]))

    def _piece_moments(self, piece: slice) -> Tensor:
        student, teacher = self.probabilities(self.student, piece), self.probabilities(self.teacher, piece)
        if self.kept is not None:
            self.kept[:, :, piece] = student
        inter = self._inter(student, teacher, piece) if self.settings.beta else student.new_zeros(())
        invalid = None if self.invalid is None else self.invalid[:, :, piece]
        count = student.new_full((), student.shape[0] * student.shape[2])
        if invalid is not None:
            count -= invalid.sum()
        ours, own_mean = _centered(student, invalid, count)
        theirs, other_mean = _centered(teacher, invalid, count)
        squares = [square.sum(dim=(0, 2)) for square in (ours * ours, theirs * theirs, ours.sub_(theirs).square_())]
        rows = (count, own_mean, other_mean, *squares, inter)
        return torch.stack([_wide(row.expand(student.shape[1])) for row in rows])

    def _inter(self, student: Tensor, teacher: Tensor, piece: slice) -> Tensor:
        """Return the sum of ``1 - correlation`` over the voxels and keep the slopes of each."""
        classes = student.shape[1]
        ours, theirs = student - 1 / classes, teacher - 1 / classes
        gap = (student - teacher).square_().sum(dim=1)
        own, other = ours.square_().sum(dim=1), theirs.square_().sum(dim=1)
        floor = classes * _FLOOR
        varies = (torch.maximum(own, other) >= floor).to(own.dtype)
        loss, to_teacher, to_student = _pearson(gap, own, other, floor)
        if self.slopes is not None:
            self.slopes[0, :, piece] = to_teacher.mul_(varies)
            self.slopes[1, :, piece] = to_student.mul_(varies)
        return loss.mul_(varies).sum()

    def gradient(self, intra: Tensor) -> Tensor:
        """Return the gradient to the student's logits, in their shape.

        Args:
            intra: of each class the slopes to the teacher's and the student's probability, a constant, and a last row
                that holds the number of voxels.
        """
        assert self.kept is not None
        # with several processes their gradients are averaged, but each holds its voxels' part of a sum
        scale = self.settings.temperature * self.settings.world
        to_teacher, to_student, constant = (intra[:3] * scale).to(self.kept.dtype).unsqueeze(-1)
        voxel = (self.settings.beta * scale / intra[3, 0]).to(self.kept.dtype)
        for piece in self.pieces():
            student, teacher = self.kept[:, :, piece], self.probabilities(self.teacher, piece)
            slope = (teacher * to_teacher).add_(constant)
            if self.slopes is None:
                slope.addcmul_(student, to_student)
            else:
                per_voxel = self.slopes[:, :, None, piece] * voxel
                slope.addcmul_(teacher, per_voxel[0], value=-1).addcmul_(student, to_student + per_voxel[1])
            if self.invalid is not None:
                slope.masked_fill_(self.invalid[:, :, piece], 0.0)
            student.copy_(self._through_probability(slope, student))
        return self.kept.view(self.shape)

    def _through_probability(self, slope: Tensor, probability: Tensor) -> Tensor:
        if self.settings.sigmoid:
            return slope.mul_(probability).mul_(1 - probability)
        slope.mul_(probability)
        return slope.addcmul_(probability, slope.sum(dim=1, keepdim=True), value=-1)


def _centered(values: Tensor, invalid: Tensor | None, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return the deviations from the mean of each class over the valid voxels, 0 elsewhere, and that mean."""
    if invalid is None:
        mean = values.mean(dim=(0, 2))
        return values - mean[:, None], mean
    mean = values.masked_fill(invalid, 0.0).sum(dim=(0, 2)) / count.clamp_min(1)
    return (values - mean[:, None]).masked_fill_(invalid, 0.0), mean


def _pearson(gap: Tensor, own: Tensor, other: Tensor, floor: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``1 - correlation`` and its slopes.

    Args:
        gap, own, other: sums of squares of the difference of two centered vectors, and of each.
        floor: least value of the two latter in denominators.

    Returns:
        The loss without cancellation, since no products are subtracted from norms; and the factors of the other's
        values, with a minus, and of the own values in its gradient.
    """
    norm = (own * other).sqrt()
    spread = (gap - (own.sqrt() - other.sqrt()).square_()).clamp_min_(0).div_(2)  # norm - sum of products
    steep = (own > floor).to(own.dtype)  # factors: on a CPU they cost less than masks
    own, other = own.clamp_min(floor), other.clamp_min(floor)
    bounded = (own * other).sqrt_()
    inverse = 1 / (bounded + _EPS)
    # the published 1e-8 counts where the two differ; equal ones correlate fully, however little they vary
    loss = (bounded - norm + spread + (gap > _EPS).to(gap.dtype).mul_(_EPS)) * inverse
    return loss, inverse, (1 - loss) * inverse * bounded / own * steep


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.device.type == "mps" else value.double()  # Apple's GPUs have no float64


def _merge(parts: Tensor) -> Tensor:
    """Merge the moments of disjoint sets of voxels, exactly (Chan et al. 1979).

    Args:
        parts: ``(parts, 7, classes)``: number of voxels, mean of student and of teacher, sums of the squared
            deviations of student, of teacher and of their difference, and the sum of the inter losses.

    Returns:
        ``(7, classes)``, the same of all.
    """
    count = parts[:, 0]
    total = count.sum(dim=0)
    means = (count[:, None] * parts[:, 1:3]).sum(dim=0) / total.clamp_min(1)
    ours, theirs = (parts[:, 1:3] - means).unbind(dim=1)
    shifts = torch.stack([ours * ours, theirs * theirs, (ours - theirs) ** 2], dim=1)
    squares = (parts[:, 3:6] + count[:, None] * shifts).sum(dim=0)
    return torch.cat([total[None], means, squares, parts[:, 6].sum(dim=0, keepdim=True)])


def _gather(moments: Tensor, world: int) -> Tensor:
    """Return the moments of all processes, ``(world, 7, classes)``: a sum of tables that hold one row each."""
    table = moments.new_zeros(world, *moments.shape)
    table[dist.get_rank()] = moments
    dist.all_reduce(table)
    return table


def _correlate(moments: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return ``beta * inter + gamma * intra`` and the slopes of intra, see :meth:`_Runs.gradient`."""
    count, own_mean, other_mean, own, other, gap, inter = moments
    count = count.clamp_min(1)
    floor = count * _FLOOR
    varies = other > floor
    share = torch.where(varies, settings.gamma / varies.sum().clamp_min(1), 0.0)
    losses, to_teacher, to_student = _pearson(gap, own, other, floor)
    loss = settings.beta * inter[0] / count[0] + (share * losses).sum()
    to_teacher, to_student = -share * to_teacher, share * to_student
    constant = -(to_teacher * other_mean + to_student * own_mean)
    return loss, torch.stack([to_teacher, to_student, constant, count])
