"""Several teachers weighed by how well each segments: the response distillation of MTCM-KD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from monai_kd.losses.dense import check_number, class_index, resize_index, widen
from monai_kd.losses.multi_teacher import MultiTeacherKL
from monai_kd.losses.voxelwise import VoxelLoss, Weighting

__all__ = ["PerformanceKL", "performance_weights"]

MODES = ("uniform", "linear", "softmax", "region")
_LEAST = 1.0e-6  # sum of Dice below which all teachers count alike


def performance_weights(dice: Tensor, mode: str = "linear", total: float = 1.0, tau: float = 0.1) -> Tensor:
    """Return a weight per teacher, of sum ``total``, from how well each segments.

    ``linear``: ``total * d_i / sum_j d_j`` (equation 1 of the paper), equal weights where the sum is below 1e-6.
    ``softmax`` and ``region``: ``total * softmax(d_i / tau)``, sharper. ``uniform``: ``total / M``.

    Args:
        dice: ``(M, ...)``, in 0 to 1; further axes, such as regions, are independent of each other.
        mode: see above.
        total: sum of the weights.
        tau: temperature of the softmax, > 0: at 0.1 a lead of 0.1 in Dice weighs 2.7 times as much.

    Raises:
        ValueError: an unknown mode, or ``tau`` not above 0.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; known: {', '.join(MODES)}")
    if mode == "uniform":
        return torch.full_like(dice, total / len(dice))
    if mode == "linear":
        sums = dice.sum(dim=0, keepdim=True)
        even = torch.full_like(dice, 1 / len(dice))
        return total * torch.where(sums < _LEAST, even, dice / sums.clamp_min(_LEAST))
    return total * torch.softmax(dice / check_number("tau", tau, above=0), dim=0)


class PerformanceKL(MultiTeacherKL):
    """KL divergence from a mixture of teachers whose shares follow their Dice, per voxel.

    As :class:`MultiTeacherKL`, with shares from :func:`performance_weights` of :attr:`dice`, which
    :class:`monai_kd.handlers.PerformanceWeights` keeps up to date. The sum of the published weights, ``W_tot``, is the
    weight of the term.

    - ``uniform``, ``linear``, ``softmax``: one share per teacher, from the Dice of the first region.
    - ``region``: shares of their own in each region, so that a teacher that cannot see an enhancing rim does not teach
      it. A voxel belongs to the last region that holds its label; background takes the mean over regions.

    Args:
        num_teachers: M.
        regions: name to class indices, from the widest to the innermost:
            ``{"whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]}``.
        temperature: softening factor, > 0, no unit.
        mode, tau: see :func:`performance_weights`.
        reduction, ignore_index, weighting: see :class:`VoxelLoss`; weight maps see the mixture as teacher.

    Attributes:
        dice: ``(M, R)``, of each teacher in each region, all 0 at first (so all count alike); part of the training's
            state.

    Shape:
        student_logits: ``(B, K, *spatial)``, interpolated to the teachers' grid.
        teacher_logits: list of M logits ``(B, K, *spatial)``.
        label: class indices ``(B, 1, *spatial)``; read by ``region`` (and by ``ignore_index`` and weight maps).
        available: optional ``(B, M)`` of 0 and 1, whose modality a sample has; see below.

    The shares of teachers that are not available go to the others. A sample without any teacher does not count.

    Raises:
        ValueError: a setting out of range, another number of teachers, or ``region`` without a label.

    Source: Ahmad et al. 2024, equation 1. They sum over voxels, so that the labels are drowned from the second epoch
    on, and multiply by T; here it is the mean over voxels times T^2. One divergence to the mixture stands for the sum
    of M: the gradient is the same (Hinton's cross-entropy is linear in the teacher), and one map is kept. ``softmax``,
    ``region`` and ``available`` were not there.
    """

    def __init__(
        self,
        num_teachers: int,
        regions: Mapping[str, Sequence[int]],
        temperature: float = 4.0,
        mode: str = "region",
        tau: float = 0.1,
        reduction: str = "pixelmean",
        ignore_index: int | None = 255,
        weighting: Weighting | Sequence[Weighting] | None = None,
    ) -> None:
        super().__init__(temperature, "mean", False, reduction, ignore_index, weighting)
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; known: {', '.join(MODES)}")
        if not regions or not all(regions.values()):
            raise ValueError(f"regions is {dict(regions)}; give at least one, each with its class indices")
        if isinstance(num_teachers, bool) or not isinstance(num_teachers, int) or num_teachers < 1:
            raise ValueError(f"num_teachers is {num_teachers!r}; it must be a whole number above 0")
        self.mode, self.tau = mode, check_number("tau", tau, above=0)
        self.regions = {name: tuple(classes) for name, classes in regions.items()}
        self.register_buffer("dice", torch.zeros(num_teachers, len(regions)))
        self.dice: Tensor

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | Sequence[Tensor],
        label: Tensor | None = None,
        weight: Tensor | None = None,
        available: Tensor | None = None,
    ) -> Tensor:
        teachers = [teacher_logits] if isinstance(teacher_logits, Tensor) else list(teacher_logits)
        self._check_teachers(teachers)
        if len(teachers) != len(self.dice):
            raise ValueError(f"got the logits of {len(teachers)} teachers; num_teachers is {len(self.dice)}")
        with torch.no_grad(), torch.autocast(student_logits.device.type, enabled=False):
            wide = [widen(teacher) for teacher in teachers]
            shares = self.voxel_shares(wide[0], label, available)
            mixture = self._mix(wide, [share.log() for share in shares])
            if available is not None:  # nothing to learn from where nobody is
                weight = _without_absent(weight, available, student_logits)
        return VoxelLoss.forward(self, student_logits, mixture, label, weight)

    def voxel_shares(self, like: Tensor, label: Tensor | None, available: Tensor | None = None) -> Tensor:
        """Return each teacher's share, of sum 1: ``(M, B or 1, 1, *spatial or ones)``.

        Args:
            like: logits of a teacher, ``(B, K, *spatial)``.
            label, available: see the class.
        """
        ones = [1] * (like.ndim - 2)
        weights = performance_weights(self.dice.to(like), self.mode, 1.0, self.tau)  # (M, R)
        if self.mode != "region":
            shares = weights[:, :1].reshape(-1, 1, 1, *ones)
        elif label is None:
            raise ValueError("mode 'region' needs the label: which teacher counts depends on the region of the voxel")
        else:
            index = resize_index(class_index(label, like), like.shape[2:])
            table = self._table(weights, like.shape[1])  # (M, K)
            shares = table[:, index.clamp(0, like.shape[1] - 1)].unsqueeze(2)  # (M, B, 1, *spatial)
        if available is None:
            return shares
        there = self._there(available, like).t().reshape(len(self.dice), -1, 1, *ones).to(like.dtype)
        # where nobody is, the sample does not count; its mixture must be finite all the same, or 0 times it is NaN
        there = torch.where(there.sum(dim=0, keepdim=True) > 0, there, torch.ones_like(there))
        left = shares * there
        total = left.sum(dim=0, keepdim=True)
        even = there / there.sum(dim=0, keepdim=True)  # whoever is there has no share of its own
        return torch.where(total > 0, left / torch.where(total > 0, total, 1.0), even)

    def _table(self, weights: Tensor, classes: int) -> Tensor:
        """Return each teacher's weight in voxels of each class, ``(M, classes)``."""
        table = weights.mean(dim=1, keepdim=True).repeat(1, classes)
        for column, members in enumerate(self.regions.values()):
            for member in members:
                if not 0 <= member < classes:
                    raise ValueError(f"regions name class {member}; the logits have {classes} (0 to {classes - 1})")
                table[:, member] = weights[:, column]
        return table

    def _there(self, available: Tensor, like: Tensor) -> Tensor:
        if available.shape != (like.shape[0], len(self.dice)):
            raise ValueError(
                f"available has the shape {tuple(available.shape)}; give one number per sample and teacher, "
                f"({like.shape[0]}, {len(self.dice)})"
            )
        return available > 0

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, tau={self.tau}, regions={self.regions}, {super().extra_repr()}"


def _without_absent(weight: Tensor | None, available: Tensor, like: Tensor) -> Tensor:
    anyone = (available > 0).any(dim=1).to(torch.float32).reshape(-1, 1, *[1] * (like.ndim - 2))
    everywhere = anyone.expand(-1, 1, *like.shape[2:])
    if weight is None:
        return everywhere
    given = weight if weight.ndim == like.ndim else weight.unsqueeze(1)
    return given.to(torch.float32) * anyone
