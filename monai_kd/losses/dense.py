"""What dense distillation losses share: precision, grids, labels and reductions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

__all__: list[str] = []

REDUCTIONS = ("pixelmean", "elementmean", "batchmean", "sum", "none")
_INTERPOLATION = {3: "linear", 4: "bilinear", 5: "trilinear"}


@contextmanager
def full_precision(student: Tensor, teacher: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both tensors in at least float32, the teacher without its graph, with autocast switched off."""
    with torch.autocast(student.device.type, enabled=False):
        yield widen(_plain(student)), widen(_plain(teacher).detach())


def _plain(value: Tensor) -> Tensor:
    return value.as_tensor() if hasattr(value, "as_tensor") else value


def widen(value: Tensor) -> Tensor:
    """Return float32 of half precision (and of whole numbers); float64 stays, so that gradients can be checked."""
    return value if value.dtype == torch.float64 else value.float()


def check_pair(student: Tensor, teacher: Tensor, what: str = "logits", channels: bool = True) -> None:
    """Refuse tensors that cannot be compared: not ``(B, C, *spatial)``, or other batches or channels.

    Raises:
        ValueError: names both shapes.
    """
    shapes = f"student {what} {tuple(student.shape)} and teacher {what} {tuple(teacher.shape)}"
    if student.ndim < 3 or student.ndim != teacher.ndim:
        raise ValueError(f"{shapes} must both be (batch, channels, *spatial) with as many spatial axes")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"{shapes} differ in the batch: both networks must see the same images")
    if channels and student.shape[1] != teacher.shape[1]:
        remedy = "map the teacher's classes to the student's" if what == "logits" else "features need an adapter"
        raise ValueError(f"{shapes} differ in their channels; {remedy}")


def resize(value: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Interpolate ``(B, C, *spatial)`` linearly (corners not aligned) to a grid; unchanged where it has that grid."""
    if value.shape[2:] == size:
        return value
    if value.ndim not in _INTERPOLATION:
        raise ValueError(f"{tuple(value.shape)} cannot be brought to the grid {tuple(size)}: 1 to 3 spatial axes can")
    return F.interpolate(value, size=size, mode=_INTERPOLATION[value.ndim], align_corners=False)


def class_index(label: Tensor, like: Tensor) -> Tensor:
    """Return the label as int64 ``(B, *spatial)``, on its own grid.

    Args:
        label: class indices, ``(B, 1, *spatial)`` or ``(B, *spatial)``.
        like: the logits that it belongs to, ``(B, C, *spatial)``.

    Raises:
        ValueError: another shape, e.g. one-hot; names it.
    """
    return check_label(label, like).long()


def check_label(label: Tensor, like: Tensor) -> Tensor:
    """Return the label as ``(B, *spatial)``, its numbers as they are; see :func:`class_index`."""
    index = label.squeeze(1) if label.ndim == like.ndim and label.shape[1] == 1 else label
    if index.ndim != like.ndim - 1 or index.shape[0] != like.shape[0]:
        raise ValueError(
            f"label {tuple(label.shape)} does not go with {tuple(like.shape)}; give class indices as "
            "(batch, 1, *spatial) or (batch, *spatial), or set ignore_index to None where no label is needed"
        )
    return index


def none_ignored(label: Tensor, ignore_index: int | None) -> bool:
    """Tell whether a label surely holds nothing to ignore.

    Only a CPU is asked: elsewhere the question costs more than it saves.
    """
    return ignore_index is None or (label.device.type == "cpu" and not bool((label == ignore_index).any()))


def foreground_index(label: Tensor, ignore_index: int | None) -> Tensor:
    """Return 1 where any channel of a multi-label map is set, the index to ignore where a channel holds it."""
    index = (label > 0).any(dim=1).long()
    if ignore_index is None:
        return index
    return torch.where((label == ignore_index).any(dim=1), ignore_index, index)


def resize_index(index: Tensor, size: torch.Size | tuple[int, ...]) -> Tensor:
    """Bring class indices ``(B, *spatial)`` to a grid by nearest neighbor, so that no class is made up."""
    if index.shape[1:] == size:
        return index
    # nearest-exact: voxel centers, as the linear interpolation of the logits
    return F.interpolate(index[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()


def given_weight(weight: Tensor, like: Tensor) -> Tensor:
    """Return a weight map that the user gave on the grid of logits, without a graph, nothing below 0.

    Args:
        weight: ``(B, 1, *spatial)`` or ``(B, *spatial)``; numbers or booleans.
        like: the logits, ``(B, C, *spatial)``.

    Returns:
        ``(B, *spatial)``.

    Raises:
        ValueError: another shape; names it.
    """
    plain = widen(_plain(weight).detach())
    whole = plain.unsqueeze(1) if plain.ndim == like.ndim - 1 else plain
    if whole.ndim != like.ndim or whole.shape[:2] != (like.shape[0], 1):
        raise ValueError(
            f"weight {tuple(weight.shape)} does not go with {tuple(like.shape)}; give one number per voxel as "
            "(batch, 1, *spatial) or (batch, *spatial)"
        )
    values = resize(whole.to(like.dtype), like.shape[2:]).squeeze(1)
    return torch.where(values > 0, values, 0.0)  # also without what is not a number


def reduce_voxels(values: Tensor, weight: Tensor | None, reduction: str, channels: int) -> Tensor:
    """Reduce a map of non-negative losses.

    Args:
        values: loss of each voxel, ``(B, *spatial)``.
        weight: weight of each voxel, >= 0, the same shape; None weighs all alike. 0 leaves a voxel out altogether.
        reduction: ``pixelmean`` (weighted mean), ``elementmean`` (that over ``channels``), ``batchmean`` (sum over
            the batch size), ``sum``, or ``none`` (the weighted map).
        channels: C of the compared tensors.

    Returns:
        0-d, or the map. Exactly 0 with a gradient where no voxel counts.
    """
    if weight is not None:
        values = torch.where(weight > 0, values * weight, 0.0)  # a NaN outside must not become one inside
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    if reduction == "batchmean":
        return total / values.shape[0]
    count = values.numel() if weight is None else weight.sum()
    if isinstance(count, Tensor):
        count = torch.where(count > 0, count, 1.0)
    mean = total / max(count, 1) if isinstance(count, int) else total / count
    return mean / channels if reduction == "elementmean" else mean


def check_reduction(reduction: str, known: tuple[str, ...] = REDUCTIONS) -> str:
    if reduction not in known:
        raise ValueError(f"reduction is {reduction!r}; known: {', '.join(known)}")
    return reduction


def check_number(name: str, value: float, above: float | None = None, least: float | None = None) -> float:
    """Return a finite number within its bounds as float.

    Raises:
        ValueError: not a finite number, not above ``above`` or below ``least``; names the setting.
    """
    bound = f" above {above:g}" if above is not None else f" of at least {least:g}" if least is not None else ""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (
        not number
        or not abs(value) < float("inf")
        or (above is not None and value <= above)
        or (least is not None and value < least)
    ):
        raise ValueError(f"{name} is {value!r}; it must be a finite number{bound}")
    return float(value)
