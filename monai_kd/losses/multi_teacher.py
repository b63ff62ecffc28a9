"""Distillation from the mixture of several teachers' softened predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_kd.losses.dense import check_number, widen
from monai_kd.losses.kl import bernoulli_kl, softmax_kl
from monai_kd.losses.voxelwise import VoxelLoss, Weighting
from monai_kd.losses.weighting import confidence

__all__ = ["MultiTeacherKL"]

Weights = str | Sequence[float] | Sequence[Sequence[float]]


class MultiTeacherKL(VoxelLoss):
    """KL divergence to the student from a mixture of several teachers' softened probabilities, per voxel.

    The mixture is ``q = sum_k a_k softmax(teacher_k / temperature)``; the rest is as in :class:`SoftLogitKL`: sum over
    classes, mean over voxels, times ``temperature**2``. One teacher gives exactly that loss.

    Args:
        temperature: softening factor, > 0, no unit.
        weights: shares ``a_k`` of the teachers, brought to sum 1. ``mean``: equal ones; a list of numbers, one per
            teacher; a list of lists, for each teacher one number per class (e.g. its validation Dice), and ``q`` sums
            to 1 again; ``confidence``: for each voxel in proportion to one minus the normalized entropy of the
            teacher's own prediction (at temperature 1), equal ones where no teacher is sure of anything.
        sigmoid: channels are independent foregrounds: mixtures of Bernoulli variables, mean over channels.
        reduction, ignore_index, weighting: see :class:`VoxelLoss`; weight maps see the mixture as teacher, in logits.
            ``elementmean`` is refused with ``sigmoid``: ``pixelmean`` is it.

    Shape:
        student_logits: ``(B, C, *spatial)``, C >= 2 (1 with ``sigmoid``), interpolated to the teachers' grid.
        teacher_logits: list of logits, all of one shape ``(B, C, *spatial)``.
        label: optional class indices ``(B, 1, *spatial)`` or ``(B, *spatial)``, for ``ignore_index`` and weight maps.

    Raises:
        ValueError: a setting out of range, weights that do not fit the teachers or classes, or shapes that differ; says
            which teacher's.

    Source: You et al. 2017, "Learning from Multiple Teacher Networks" (the mean); shares by entropy follow Kwon et al.
    2020, "Adaptive Knowledge Distillation Based on Entropy". With shares that are alike for all classes the gradient is
    that of ``sum_k a_k KL(teacher_k || student)``, but the loss is 0 at its optimum and only one tensor is kept for
    backward, however many teachers there are.
    """

    def __init__(
        self,
        temperature: float = 2.0,
        weights: Weights = "mean",
        sigmoid: bool = False,
        reduction: str = "pixelmean",
        ignore_index: int | None = 255,
        weighting: Weighting | Sequence[Weighting] | None = None,
    ) -> None:
        if sigmoid and reduction == "elementmean":
            raise ValueError("reduction is 'elementmean'; with sigmoid the loss is a mean over channels already")
        super().__init__(temperature, reduction, ignore_index, weighting, sigmoid)
        if isinstance(weights, str) and weights not in ("mean", "confidence"):
            raise ValueError(f"weights is {weights!r}; known: mean, confidence, numbers per teacher, or per class")
        self.weights = weights
        shares = None if isinstance(weights, str) else _shares(weights)
        self.register_buffer("shares", shares, persistent=False)  # (teachers, classes or 1)
        self.shares: Tensor | None

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | Sequence[Tensor],
        label: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        teachers = [teacher_logits] if isinstance(teacher_logits, Tensor) else list(teacher_logits)
        self._check_teachers(teachers)
        with torch.no_grad(), torch.autocast(student_logits.device.type, enabled=False):
            mixture = self._mixture([widen(teacher) for teacher in teachers])
        return super().forward(student_logits, mixture, label, weight)

    def voxel_loss(self, student: Tensor, teacher: Tensor, index: Tensor | None) -> Tensor:
        if self.sigmoid:
            return bernoulli_kl(student, teacher, self.temperature).mean(dim=1)
        return softmax_kl(student, teacher, self.temperature)

    def extra_repr(self) -> str:
        return f"weights={self.weights!r}, sigmoid={self.sigmoid}, {super().extra_repr()}"

    def _check_teachers(self, teachers: Sequence[Tensor]) -> None:
        if not teachers:
            raise ValueError("MultiTeacherKL got no teacher; give a list of logits")
        for number, teacher in enumerate(teachers[1:], start=2):
            if teacher.shape != teachers[0].shape:
                raise ValueError(
                    f"logits of teacher {number} {tuple(teacher.shape)} and of teacher 1 {tuple(teachers[0].shape)} "
                    "differ; all teachers need one grid and the same classes"
                )
        if self.shares is None:
            return
        if len(self.shares) != len(teachers):
            raise ValueError(f"weights are for {len(self.shares)} teachers, got {len(teachers)}")
        if self.shares.shape[1] not in (1, teachers[0].shape[1]):
            raise ValueError(f"weights are for {self.shares.shape[1]} classes, logits have {teachers[0].shape[1]}")

    def _mixture(self, teachers: Sequence[Tensor]) -> Tensor:
        """Return logits whose softmax (or sigmoid) at the temperature is the mixture."""
        return self._mix(teachers, self._log_shares(teachers))

    def _mix(self, teachers: Sequence[Tensor], logs: Sequence[Tensor]) -> Tensor:
        """Return the mixture for the logarithms of the shares, one for each teacher."""
        if len(teachers) == 1:
            return teachers[0]  # as it is, to the last bit
        scaled = [teacher / self.temperature for teacher in teachers]
        if self.sigmoid:
            on = _log_sum(log + F.logsigmoid(value) for log, value in zip(logs, scaled, strict=True))
            off = _log_sum(log + F.logsigmoid(-value) for log, value in zip(logs, scaled, strict=True))
            return (on - off) * self.temperature
        return self.temperature * _log_sum(
            log + torch.log_softmax(value, dim=1) for log, value in zip(logs, scaled, strict=True)
        )

    def _log_shares(self, teachers: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the logarithm of each teacher's share, in a shape that goes with its logits."""
        first = teachers[0]
        if self.weights == "mean":
            return list(first.new_full((len(teachers),), 1 / len(teachers)).log())
        if self.shares is not None:
            shape = (len(teachers), 1, -1, *[1] * (first.ndim - 2))
            return list(self.shares.to(first).log().view(shape))
        sure = torch.stack([confidence(teacher, not self.sigmoid) for teacher in teachers]).unsqueeze(2)
        total = sure.sum(dim=0, keepdim=True)
        shares = torch.where(total > 0, sure / torch.where(total > 0, total, 1.0), 1 / len(teachers))
        return list(shares.log())


def _log_sum(logs: Iterable[Tensor]) -> Tensor:
    """Return the logarithm of the sum of exponentials, one summand at a time: there is never a stack of all maps."""
    return reduce(torch.logaddexp, logs)


def _shares(weights: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    """Return ``(teachers, classes or 1)`` with sum 1 over the teachers.

    Raises:
        ValueError: not numbers of at least 0, rows of other lengths, or nobody has a share of a class.
    """
    rows = [list(row) if isinstance(row, Sequence) and not isinstance(row, str) else [row] for row in weights]
    if not rows or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError(f"weights is {weights!r}; give one number per teacher, or for each one number per class")
    numbers = [[check_number("weights", value, least=0) for value in row] for row in rows]
    shares = torch.tensor(numbers, dtype=torch.float64)
    total = shares.sum(dim=0, keepdim=True)
    if not (total > 0).all():
        raise ValueError(f"weights is {weights!r}; some teacher needs a weight above 0, for every class")
    return (shares / total).float()  # Apple's GPUs have no float64
