"""What losses on features of several levels share: pairs of maps and a common grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from monai_kd.losses.dense import check_pair

__all__: list[str] = []

Features = Tensor | Sequence[Tensor]

_POOL: dict[int, Callable[..., Tensor]] = {
    3: F.adaptive_avg_pool1d,
    4: F.adaptive_avg_pool2d,
    5: F.adaptive_avg_pool3d,
}


def level_pairs(student: Features, teacher: Features, channels: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Pair the levels of two networks; a single tensor is a list of one.

    Args:
        student, teacher: features ``(B, C, *spatial)``, one or as many on each side.
        channels: whether the channels of a pair must agree.

    Raises:
        ValueError: no level, more levels on one side, or a pair that cannot be compared; names what was got.
    """
    students = [student] if isinstance(student, Tensor) else list(student)
    teachers = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    if not students or len(students) != len(teachers):
        raise ValueError(
            f"got {len(students)} student features and {len(teachers)} of the teacher; give as many, at least one"
        )
    pairs = list(zip(students, teachers, strict=True))
    for ours, theirs in pairs:
        check_pair(ours, theirs, what="features", channels=channels)
    return pairs


def pool_to_common(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average both maps ``(B, C, *spatial)`` down to the smaller size along each axis; unchanged on equal grids."""
    size = [min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return _pool(student, size), _pool(teacher, size)


def _pool(value: Tensor, size: list[int]) -> Tensor:
    if list(value.shape[2:]) == size:
        return value
    if value.ndim not in _POOL:
        raise ValueError(f"{tuple(value.shape)} cannot be pooled to the grid {tuple(size)}: 1 to 3 spatial axes can")
    return _POOL[value.ndim](value, size)
