"""Knowledge distillation from the teacher's softened predictions (Hinton et al. 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SoftBernoulliKL", "SoftLogitKL", "soft_bernoulli_kl", "soft_logit_kl"]


def soft_logit_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return ``temperature**2 * KL(teacher || student)`` per voxel: ``(B, K, *S)`` logits -> ``(B, *S)``, float32."""
    student_log = F.log_softmax(student_logits.float() / temperature, dim=1)  # (B, K, *S)
    teacher_log = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * (teacher_log.exp() * (teacher_log - student_log)).sum(dim=1)


def soft_bernoulli_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return ``temperature**2 * KL`` of independent Bernoulli variables per logit, same shape as the input, float32."""
    student, teacher = student_logits.float() / temperature, teacher_logits.float() / temperature
    foreground = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    background = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return temperature**2 * (foreground + background)


def _check_temperature(temperature: float) -> float:
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature!r}; it must be a finite number above 0, usually 1 to 4")
    return float(temperature)


def _check_shapes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ; "
            "both must be (batch, classes, *spatial) with the same classes on the same grid"
        )


class SoftLogitKL(nn.Module):
    """Temperature-softened KL divergence from teacher to student, per voxel, for exclusive classes.

    Sum over classes, mean over batch and voxels, times ``temperature**2`` so that the gradient scale does not
    depend on the temperature. Zero exactly when both logits agree. Computed in float32, also inside autocast.
    The teacher receives no gradient.

    Args:
        temperature: softening factor, > 0, no unit; 1 keeps the teacher's own confidence, 2 to 4 is usual.

    Shape:
        student_logits, teacher_logits: ``(B, K, *spatial)`` raw logits, K >= 2, any number of spatial axes.

    Raises:
        ValueError: temperature not above 0; shapes differ; K is 1 (a softmax over one channel is constant and
            the loss would always be 0: use :class:`SoftBernoulliKL`).

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. Differs from
    ``torch.nn.KLDivLoss`` by its reduction: ``mean`` there divides by K as well and ``batchmean`` grows with the
    number of voxels; this one depends on neither the resolution nor the batch size.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = _check_temperature(temperature)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        _check_shapes(student_logits, teacher_logits)
        if student_logits.shape[1] < 2:
            raise ValueError("SoftLogitKL got logits with 1 class channel, it needs at least 2; use SoftBernoulliKL")
        with torch.autocast(student_logits.device.type, enabled=False):
            return soft_logit_kl(student_logits, teacher_logits.detach(), self.temperature).mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class SoftBernoulliKL(nn.Module):
    """Temperature-softened KL divergence from teacher to student for sigmoid outputs (one class, or overlapping ones).

    Every channel is its own foreground-against-background variable; the mean runs over batch, channels and voxels
    and is multiplied by ``temperature**2``. On one channel it equals :class:`SoftLogitKL` of the two logits
    ``[0, z]``. Zero exactly when both logits agree. Computed in float32, also inside autocast. The teacher receives
    no gradient.

    Args:
        temperature: softening factor, > 0, no unit.

    Shape:
        student_logits, teacher_logits: ``(B, K, *spatial)`` raw logits, K >= 1.

    Raises:
        ValueError: temperature not above 0, or shapes differ.

    Source: Hinton et al. 2015 applied to Bernoulli outputs; written with log-sigmoids, so it stays finite where
    ``log(sigmoid(z))`` underflows.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = _check_temperature(temperature)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        _check_shapes(student_logits, teacher_logits)
        with torch.autocast(student_logits.device.type, enabled=False):
            return soft_bernoulli_kl(student_logits, teacher_logits.detach(), self.temperature).mean()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
