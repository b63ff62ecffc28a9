"""Correlation distillation: agree with the teacher on relations, not on values."""

from __future__ import annotations

import warnings

import torch
import torch.distributed
from torch import Tensor, nn

from monai_kd.losses.correlation import Settings, correlation_loss
from monai_kd.losses.dense import check_number, check_pair, class_index, full_precision, resize, resize_index

__all__ = ["CorrelationDistillation"]


class CorrelationDistillation(nn.Module):
    """One minus the Pearson correlation of the class probabilities of student and teacher (DIST).

    ``beta * inter + gamma * intra``, times ``temperature**2``. Inter correlates, at each voxel, the probabilities over
    the classes, and is averaged over the voxels. Intra correlates, for each class, the probabilities over all voxels
    of the batch, and is averaged over the classes. Both lie between 0 and 2; zero where the student's probabilities
    are a rising linear function of the teacher's. Two probability vectors without variance correlate fully. Classes
    whose teacher probability hardly varies in the batch (standard deviation below 1e-4: absent ones) do not count in
    intra. A student's standard deviation is taken as 1e-4 at least, which bounds the gradient. Computed in float32,
    with centered moments. There is no choice of reduction: intra is one number per batch.

    Args:
        beta: weight of inter, >= 0. Over two classes a correlation is 1 or -1, a step with no gradient: inter is left
            out (warned once), unless ``gamma`` is 0.
        gamma: weight of intra, >= 0.
        temperature: softening factor, > 0, no unit.
        sigmoid: channels are independent foregrounds, also a single one: intra per channel, and no inter.
        sync: whether, in training mode, all processes of an initialized process group form one batch. The value is
            then the same on all and does not depend on their number; neither does the gradient, once it is averaged
            over the processes, as DistributedDataParallel does. All of them have to call the loss, as with
            synchronized batch normalization.
        ignore_index: voxels with this label do not count; None looks at no label.

    Shape:
        student_logits, teacher_logits: ``(B, C, *spatial)``, any number of spatial axes. A student on another grid
            (1 to 3 axes) is interpolated linearly to the teacher's.
        label: class indices ``(B, 1, *spatial)`` or ``(B, *spatial)``, or with ``sigmoid`` also ``(B, C, *spatial)``;
            brought to the teacher's grid by nearest neighbor. Optional.

    Returns:
        0-d; exactly 0, with a gradient, if no voxel counts.

    Raises:
        ValueError: shapes differ, one class without ``sigmoid``, or a setting out of range.

    Source: Huang et al., NeurIPS 2022. Its code adds 1e-8 to the denominators, by which two identical
        constant maps cost 2; here that is added only where student and teacher differ, so that equal ones cost 0. It
        also correlates over each process's share of the batch only, and counts absent classes.
    """

    def __init__(
        self,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        sigmoid: bool = False,
        sync: bool = True,
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, least=0)
        self.gamma = check_number("gamma", gamma, least=0)
        self.temperature = check_number("temperature", temperature, above=0)
        if not (self.gamma or (self.beta and not sigmoid)):
            raise ValueError(f"beta is {beta}, gamma {gamma}: nothing is left to compare; give one above 0")
        self.sigmoid = sigmoid
        self.sync = sync
        self.ignore_index = ignore_index
        self._warned = False

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, label: Tensor | None = None) -> Tensor:
        check_pair(student_logits, teacher_logits)
        self._check_classes(student_logits.shape[1])
        with full_precision(student_logits, teacher_logits) as (student, teacher):
            student = resize(student, teacher.shape[2:])
            valid = self._valid(label, teacher)
            # of two classes inter has no gradient: it would only add a step to the value
            beta = 0.0 if self.sigmoid or (student.shape[1] == 2 and self.gamma) else self.beta
            world = _world_size() if self.sync and self.training else 1
            settings = Settings(beta, self.gamma, self.temperature, self.sigmoid, world)
            return correlation_loss(student, teacher, valid, settings)

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, gamma={self.gamma}, temperature={self.temperature}, sigmoid={self.sigmoid}, "
            f"sync={self.sync}, ignore_index={self.ignore_index}"
        )

    def _check_classes(self, classes: int) -> None:
        if classes < 2 and not self.sigmoid:
            raise ValueError(
                "CorrelationDistillation got logits with 1 class channel, it needs at least 2: a softmax over one is "
                "always 1; set sigmoid=True"
            )
        if self.beta and not self._warned and (self.sigmoid or classes == 2):
            self._warned = True
            reason = (
                "sigmoid channels are compared by intra alone, so beta has no effect"
                if self.sigmoid
                else "over two classes a correlation is 1 or -1: inter has no gradient"
                + (", it is left out" if self.gamma else "")
            )
            warnings.warn(f"CorrelationDistillation: {reason}", stacklevel=3)

    def _valid(self, label: Tensor | None, like: Tensor) -> Tensor | None:
        """Return which voxels count, ``(B, *spatial)``; None for all."""
        if label is None or self.ignore_index is None:
            return None
        if self.sigmoid and label.ndim == like.ndim and label.shape[1] == like.shape[1] > 1:
            index = torch.where((label == self.ignore_index).any(dim=1), self.ignore_index, self.ignore_index + 1)
        else:
            index = class_index(label, like)
        valid = resize_index(index, like.shape[2:]) != self.ignore_index
        return None if valid.device.type == "cpu" and bool(valid.all()) else valid


def _world_size() -> int:
    group = torch.distributed
    return group.get_world_size() if group.is_available() and group.is_initialized() else 1
