"""Knowledge distillation from the teacher's softened predictions (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from monai_kd.losses.kl import bernoulli_kl, softmax_kl
from monai_kd.losses.standardize import check_standardizable, standardize_logits
from monai_kd.losses.voxelwise import VoxelLoss, Weighting

__all__ = ["SoftBernoulliKL", "SoftLogitKL"]


class SoftLogitKL(VoxelLoss):
    """Temperature-softened KL divergence from teacher to student, per voxel, for exclusive classes.

    Sum over classes, mean over batch and voxels, times ``temperature**2`` so that the gradient scale does not
    depend on the temperature. Zero exactly when both logits agree up to a constant per voxel. Computed in float32, also
    inside autocast. The teacher receives no gradient.

    Args:
        temperature: softening factor, > 0, no unit; 1 keeps the teacher's own confidence, 2 to 4 is usual.
        standardize: compare z-scores over the classes of each voxel instead of the logits (LSKD), so that only the
            shape of the teacher's logits counts and not their scale; needs 3 classes or more, weight 3 to 9.
        reduction, ignore_index, weighting: see :class:`VoxelLoss`.

    Shape:
        student_logits, teacher_logits: ``(B, C, *spatial)`` raw logits, C >= 2, any number of spatial axes.
        label: optional class indices ``(B, 1, *spatial)`` or ``(B, *spatial)``, for ``ignore_index`` and weights.

    Raises:
        ValueError: temperature not above 0; shapes differ in batch or classes; C is 1 (a softmax over one channel is
            constant and the loss would always be 0: use :class:`SoftBernoulliKL`).

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2; ``standardize``: Sun
    et al. 2024, "Logit Standardization in Knowledge Distillation", eq. 8. Differs from ``torch.nn.KLDivLoss`` by its
    reduction: ``mean`` there divides by C as well and ``batchmean`` grows with the number of voxels.
    """

    def __init__(
        self,
        temperature: float = 2.0,
        standardize: bool = False,
        reduction: str = "pixelmean",
        ignore_index: int | None = 255,
        weighting: Weighting | Sequence[Weighting] | None = None,
    ) -> None:
        super().__init__(temperature, reduction, ignore_index, weighting)
        self.standardize = standardize

    def check_classes(self, classes: int) -> None:
        super().check_classes(classes)
        if self.standardize:
            check_standardizable(classes)

    def voxel_loss(self, student: Tensor, teacher: Tensor, index: Tensor | None) -> Tensor:
        if self.standardize:
            student, teacher = standardize_logits(student), standardize_logits(teacher)
        return softmax_kl(student, teacher, self.temperature)


class SoftBernoulliKL(VoxelLoss):
    """Temperature-softened KL divergence from teacher to student for sigmoid outputs (one class, or overlapping ones).

    Every channel is its own foreground-against-background variable; the mean runs over batch, channels and voxels
    and is multiplied by ``temperature**2``. On one channel it equals :class:`SoftLogitKL` of the two logits
    ``[0, z]``. Zero exactly when both logits agree. Computed in float32, also inside autocast. The teacher receives
    no gradient.

    Args:
        temperature: softening factor, > 0, no unit.
        reduction, ignore_index, weighting: see :class:`VoxelLoss`; a voxel's value is the mean over its channels, so
            ``elementmean`` is refused: ``pixelmean`` is it.

    Shape:
        student_logits, teacher_logits: ``(B, C, *spatial)`` raw logits, C >= 1.
        label: optional, 0 and 1 as ``(B, C, *spatial)``, or class indices; for ``ignore_index`` and weights.

    Raises:
        ValueError: temperature not above 0, or shapes differ in batch or channels.

    Source: Hinton et al. 2015 applied to Bernoulli outputs; written with log-sigmoids, so it stays finite where
    ``log(sigmoid(z))`` underflows.
    """

    def __init__(
        self,
        temperature: float = 2.0,
        reduction: str = "pixelmean",
        ignore_index: int | None = 255,
        weighting: Weighting | Sequence[Weighting] | None = None,
    ) -> None:
        if reduction == "elementmean":
            raise ValueError("reduction is 'elementmean'; SoftBernoulliKL is a mean over channels already: 'pixelmean'")
        super().__init__(temperature, reduction, ignore_index, weighting, sigmoid=True)

    def voxel_loss(self, student: Tensor, teacher: Tensor, index: Tensor | None) -> Tensor:
        return bernoulli_kl(student, teacher, self.temperature).mean(dim=1)
