"""One minus the cosine of two vectors, such as latents."""

from __future__ import annotations

from torch import Tensor, nn

from monai_kd.losses.class_prototypes import unit_vectors
from monai_kd.losses.dense import full_precision

__all__ = ["CosineDistance"]


class CosineDistance(nn.Module):
    """One minus the cosine of the student's and the teacher's tensors, each sample one vector; mean over the samples.

    Between 0 and 2, no unit; zero for vectors that differ by a positive factor. Computed as half the squared distance
    of the unit vectors, in float32, also inside autocast: near 0 that keeps the digits that ``1 - cos`` loses.
    A vector shorter than 1e-6 counts as zero and gets no gradient; it is 0 from another such vector, 0.5 from any
    other. The teacher receives no gradient.

    Shape:
        student, teacher: the same ``(B, ...)``, at least two axes.

    Returns:
        0-d.

    Raises:
        ValueError: shapes differ, or have one axis.

    Source: Qi et al. 2024 align latents to those of a semantic autoencoder; that this is by cosines is this project's
    reading.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape != teacher.shape or student.ndim < 2:
            raise ValueError(
                f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape (batch, ...)"
            )
        with full_precision(student, teacher) as (student, teacher):
            own, target = (unit_vectors(value.flatten(1).unsqueeze(2)) for value in (student, teacher))
            return (own - target).square().sum(dim=1).mean() / 2
