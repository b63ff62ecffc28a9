"""Weight maps for voxelwise losses: where the teacher's knowledge counts more, less or not at all.

Each is called ``weighting(teacher_logits, index, exclusive)`` and returns ``(B, *spatial)`` weights >= 0; ``index``
holds class indices ``(B, *spatial)``, -1 where the label is ignored, or is None; ``exclusive`` tells softmax classes
from sigmoid channels. A loss takes one or several as its ``weighting`` and divides its mean by the sum of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kd.losses.dense import check_number

__all__ = ["BoundaryWeighting", "ClassBalance", "ForegroundWeighting", "TeacherErrorGate"]

_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def teacher_index(teacher: Tensor, exclusive: bool) -> Tensor:
    """Return the teacher's own segmentation: the largest logit, or for sigmoid channels 1 where any is above 0."""
    return teacher.argmax(dim=1) if exclusive else (teacher > 0).any(dim=1).long()


class ForegroundWeighting(nn.Module):
    """1 on foreground, a smaller weight on background, since most voxels of a scan are easy background.

    Foreground is what the label or the teacher calls so, grown by ``dilation`` voxels.

    Args:
        background_weight: of all other voxels, 0 to 1; 0 leaves them out.
        dilation: voxels by which the foreground grows along each axis (a box), >= 0.
    """

    def __init__(self, background_weight: float = 0.1, dilation: int = 2) -> None:
        super().__init__()
        self.background_weight = check_number("background_weight", background_weight, least=0)
        self.dilation = int(check_number("dilation", dilation, least=0))
        if background_weight > 1 or dilation != self.dilation:
            raise ValueError(f"background_weight is {background_weight} (0 to 1), dilation {dilation} (whole voxels)")

    def forward(self, teacher: Tensor, index: Tensor | None, exclusive: bool) -> Tensor:
        foreground = teacher_index(teacher, exclusive) > 0
        if index is not None:
            foreground = foreground | (index > 0)
        grown = foreground.to(teacher.dtype).unsqueeze(1)
        if self.dilation:
            grown = _POOL[grown.ndim - 2](grown, 2 * self.dilation + 1, stride=1, padding=self.dilation)
        return torch.where(grown.squeeze(1) > 0, 1.0, self.background_weight).to(teacher.dtype)


class BoundaryWeighting(nn.Module):
    """``1 + strength * exp(-distance / width)``: more weight where classes meet, which is where students err.

    The distance is Euclidean, exact up to three times ``width`` and cut there, to the nearest voxel that has a face
    neighbor of another class.

    Args:
        strength: extra weight on the boundary, >= 0.
        width: decay of the weight, > 0, in the unit of ``spacing``.
        spacing: of the voxels along each axis, e.g. ``spacing_mm``; None counts voxels.
        of: whose boundary, ``label`` or ``teacher``.

    Source: the boundary weighting of BPKD (Liu et al., WACV 2024) with a smooth decay in place of its fixed band.
    """

    def __init__(
        self, strength: float = 4.0, width: float = 2.0, spacing: Sequence[float] | None = None, of: str = "label"
    ) -> None:
        super().__init__()
        self.strength = check_number("strength", strength, least=0)
        self.width = check_number("width", width, above=0)
        self.spacing = None if spacing is None else [check_number("spacing", value, above=0) for value in spacing]
        if of not in ("label", "teacher"):
            raise ValueError(f"of is {of!r}; known: label, teacher")
        self.of = of

    def forward(self, teacher: Tensor, index: Tensor | None, exclusive: bool) -> Tensor:
        classes = teacher_index(teacher, exclusive) if self.of == "teacher" else index
        if classes is None:
            raise ValueError("BoundaryWeighting(of='label') got no label; give one, or of='teacher'")
        spacing = self.spacing or [1.0] * (classes.ndim - 1)
        if len(spacing) != classes.ndim - 1:
            raise ValueError(f"spacing has {len(spacing)} numbers, the label {classes.ndim - 1} spatial axes")
        reach = 3 * self.width
        squared = _squared_distance(_boundary(classes), spacing, reach, teacher.dtype)
        return 1 + self.strength * torch.exp(-squared.sqrt() / self.width)


def _boundary(classes: Tensor) -> Tensor:
    """Return where a voxel has a face neighbor of another class, on both sides of the face."""
    edge = torch.zeros_like(classes, dtype=torch.bool)
    for axis in range(1, classes.ndim):
        length = classes.shape[axis] - 1
        here, there = classes.narrow(axis, 0, length), classes.narrow(axis, 1, length)
        differs = (here != there) & (here >= 0) & (there >= 0)  # the edge of an ignored region is no boundary
        edge.narrow(axis, 0, length).logical_or_(differs)
        edge.narrow(axis, 1, length).logical_or_(differs)
    return edge


def _squared_distance(mask: Tensor, spacing: Sequence[float], reach: float, dtype: torch.dtype) -> Tensor:
    """Return squared Euclidean distances to a mask, cut at ``reach``: one pass per axis, exact (Felzenszwalb 2012)."""
    far = torch.full((), reach**2, dtype=dtype, device=mask.device)
    squared = torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), far)
    for axis, step in enumerate(spacing, start=1):
        before, length = squared, squared.shape[axis]
        squared = before.clone()
        for shift in range(1, min(length, math.ceil(reach / step) + 1)):
            cost = (shift * step) ** 2
            here, there = squared.narrow(axis, 0, length - shift), squared.narrow(axis, shift, length - shift)
            torch.minimum(here, before.narrow(axis, shift, length - shift) + cost, out=here)
            torch.minimum(there, before.narrow(axis, 0, length - shift) + cost, out=there)
    return squared


class ClassBalance(nn.Module):
    """Weigh each voxel by one over the size of its labeled class, so that every class present counts alike.

    The weighted mean is then the mean over present classes of the mean within each.
    """

    def forward(self, teacher: Tensor, index: Tensor | None, exclusive: bool) -> Tensor:
        if index is None:
            raise ValueError("ClassBalance got no label; it weighs voxels by the size of their labeled class")
        _, inverse, counts = index.unique(return_inverse=True, return_counts=True)
        return counts.to(teacher.dtype).reciprocal()[inverse]


class TeacherErrorGate(nn.Module):
    """Trust the teacher where it is right, or as far as it is sure.

    Args:
        by: ``label``: 1 where the teacher's segmentation agrees with the label, else 0 (with sigmoid channels: whether
            both see any foreground). ``confidence``: one minus the
            entropy of its probabilities over its maximum, 0 to 1; needs no label.
    """

    def __init__(self, by: str = "label") -> None:
        super().__init__()
        if by not in ("label", "confidence"):
            raise ValueError(f"by is {by!r}; known: label, confidence")
        self.by = by

    def forward(self, teacher: Tensor, index: Tensor | None, exclusive: bool) -> Tensor:
        if self.by == "confidence":
            return confidence(teacher, exclusive)
        if index is None:
            raise ValueError("TeacherErrorGate(by='label') got no label; give one, or by='confidence'")
        known = index if exclusive else torch.where(index < 0, index, (index > 0).long())
        return (teacher_index(teacher, exclusive) == known).to(teacher.dtype)


def confidence(logits: Tensor, exclusive: bool = True) -> Tensor:
    """Return one minus the normalized entropy of each voxel, ``(B, *spatial)``, 0 (uniform) to 1 (certain)."""
    if exclusive:
        log = torch.log_softmax(logits, dim=1)
        return (1 + (log.exp() * log).sum(dim=1) / math.log(logits.shape[1])).clamp(0, 1)
    entropy = F.softplus(logits) - logits * logits.sigmoid()
    return (1 - entropy.mean(dim=1) / math.log(2)).clamp(0, 1)
