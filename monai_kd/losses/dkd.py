"""Decoupled knowledge distillation: target and non-target classes apart (Zhao et al. 2022)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from monai_kd.losses.dense import check_number, resize, resize_index
from monai_kd.losses.kl import bernoulli_kl, bernoulli_rows, over_voxels, probability_difference
from monai_kd.losses.standardize import check_standardizable, standardize_logits
from monai_kd.losses.voxelwise import VoxelLoss, Weighting

__all__ = ["DecoupledKL"]


class DecoupledKL(VoxelLoss):
    """KL divergence from teacher to student, split at the labeled class, per voxel.

    ``temperature**2 * (alpha * TCKD + beta * NCKD)``: TCKD compares how likely the labeled class is against all
    others, NCKD how the others share the rest. Plain distillation weighs NCKD by one minus the teacher's
    probability of the labeled class, so a confident teacher passes on nothing about the others; here ``beta`` says.
    With ``alpha = 1`` and that factor in place of ``beta`` it is :class:`SoftLogitKL`.

    Args:
        alpha: weight of the target class part, >= 0.
        beta: weight of the non-target part, >= 0. It has no effect on 2 classes (warned once) or with ``sigmoid``.
        temperature: softening factor, > 0, no unit.
        standardize: z-scores over the classes first, as in :class:`SoftLogitKL`.
        sigmoid: independent channels: ``alpha`` times :class:`SoftBernoulliKL` (warned once), since the one class
            besides the target leaves nothing to share.
        reduction, ignore_index, weighting: see :class:`VoxelLoss`.

    Shape:
        student_logits, teacher_logits: ``(B, C, *spatial)``, C >= 2 (1 with ``sigmoid``).
        label: class indices ``(B, 1, *spatial)`` or ``(B, *spatial)``; both logits are interpolated to its grid.

    Raises:
        ValueError: a setting out of range, shapes that do not fit, or a label outside the classes.

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation", eq. 7. The published code masks the target by adding
    -1000 and takes the logarithm of a summed softmax, which is NaN for confident logits; here both parts come from
    log-sum-exp. mmrazor's ``mean`` is a sum over voxels; this is their mean.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 2.0,
        temperature: float = 4.0,
        standardize: bool = False,
        sigmoid: bool = False,
        reduction: str = "pixelmean",
        ignore_index: int | None = 255,
        weighting: Weighting | Sequence[Weighting] | None = None,
    ) -> None:
        super().__init__(temperature, reduction, ignore_index, weighting, sigmoid)
        self.alpha = check_number("alpha", alpha, least=0)
        self.beta = check_number("beta", beta, least=0)
        self.standardize = standardize
        self._warned = False

    def forward(  # type: ignore[override]
        self, student_logits: Tensor, teacher_logits: Tensor, label: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        return super().forward(student_logits, teacher_logits, label, weight)

    @property
    def needs_classes(self) -> bool:
        return not self.sigmoid

    def check_classes(self, classes: int) -> None:
        super().check_classes(classes)
        if self.standardize:
            check_standardizable(classes)
        if (classes == 2 or self.sigmoid) and self.beta and not self._warned:
            self._warned = True
            warnings.warn(
                "DecoupledKL: with one class besides the target NCKD is always 0, so beta has no effect and the loss "
                "is alpha times plain distillation",
                stacklevel=3,
            )

    def common_grid(
        self, student: Tensor, teacher: Tensor, index: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if index is None:  # sigmoid without an index to ignore
            return super().common_grid(student, teacher, index)
        size = index.shape[1:]
        return resize(student, size), resize(teacher, size), resize_index(index, size)

    def voxel_loss(self, student: Tensor, teacher: Tensor, index: Tensor | None) -> Tensor:
        if self.sigmoid:
            return self.alpha * bernoulli_kl(student, teacher, self.temperature).mean(dim=1)
        assert index is not None  # the label is a required argument
        if self.standardize:
            student, teacher = standardize_logits(student), standardize_logits(teacher)
        target = self._target(index, student.shape[1])
        loss: Tensor = _DecoupledKL.apply(student, teacher, target, self.temperature, self.alpha, self.beta)
        return loss

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, {super().extra_repr()}"

    def _target(self, index: Tensor, classes: int) -> Tensor:
        """Return the labeled class ``(B, 1, *spatial)``; voxels to ignore, whose value does not count, get class 0."""
        if self.ignore_index is not None:
            index = torch.where(index == self.ignore_index, 0, index)
        if index.device.type == "cpu" and not ((index >= 0) & (index < classes)).all():  # CUDA asserts by itself
            found = index.unique().tolist()
            raise ValueError(
                f"label holds the classes {found}; the logits have {classes}, so 0 to {classes - 1} can be"
            )
        return index.unsqueeze(1)


class _DecoupledKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, target: Tensor, temperature: float, alpha: float, beta: float
    ) -> Tensor:
        def rows(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            tckd, nckd, odds_gap, share_gap, shares = _decoupled_rows(
                student / temperature, teacher / temperature, target
            )
            # d/dz of z_y - logsumexp(others) is 1 at the target and minus the share elsewhere
            odds_gap = odds_gap.mul_(alpha * temperature)
            gradient = share_gap.mul_(beta * temperature).sub_(shares.mul_(odds_gap)).scatter_(1, target, odds_gap)
            return (alpha * tckd + beta * nckd).mul_(temperature**2).squeeze(1), gradient

        loss, difference = over_voxels(rows, student, teacher, target)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(difference)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        return difference * gradient.unsqueeze(1), None, None, None, None, None


def _decoupled_rows(student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return TCKD and NCKD ``(B, 1, n)``, the differences of target odds and of the others' shares, and those shares.

    TCKD is the Bernoulli KL of the log-odds ``z_y - logsumexp(others)``; NCKD the softmax KL of the others.
    """
    student_odds, student_log = _split(student, target)
    teacher_odds, teacher_log = _split(teacher, target)
    tckd, odds_gap = bernoulli_rows(student_odds, teacher_odds)
    probability = teacher_log.exp()  # 0 at the target
    ratio = teacher_log.sub_(student_log).scatter_(1, target, 0.0)  # -inf minus -inf at the target: no share, no loss
    shares = student_log.exp_()
    share_gap = probability_difference(shares.clone(), probability, ratio)
    nckd = ratio.mul_(probability).add_(share_gap).sum(1, keepdim=True)
    return tckd, nckd, odds_gap, share_gap, shares


def _split(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-odds of the target class ``(B, 1, n)`` and the log-softmax of the others, -inf at the target."""
    at_target = logits.gather(1, target)
    others = logits.scatter(1, target, -torch.inf)
    total = others.logsumexp(dim=1, keepdim=True)
    return at_target - total, others.sub_(total)
