"""One line of the distillation sum: which student tensor meets which target tensor, under which loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["Term", "plain_tensor"]


def plain_tensor(value: Tensor) -> Tensor:
    """Return the tensor without MONAI's metadata, which costs time in each operation of a loss."""
    return value.as_tensor() if hasattr(value, "as_tensor") else value


class Term(nn.Module):
    """A weighted comparison ``loss(student, target)`` of two named views of a :class:`~monai_kd.distillers.Distiller`.

    The gradient stops at the target, so a teacher never learns from the student's term, and in co-training one
    backward pass gives each network only its own gradients. The loss runs in float32 with autocast switched off.

    Args:
        loss: callable ``loss(student, target)`` that returns a tensor; a non-scalar result is averaged. If its
            signature declares ``label``, the label view is passed as ``label=``.
        student: address of the learning tensor, e.g. ``student/logits`` or ``student/bottleneck``.
        target: address of the tensor to meet, e.g. ``label``, ``teacher/logits``, ``teacher/bottleneck``.
        weight: finite factor of this term in the sum; 0 keeps the term in the log without a gradient.
        adapter: optional module applied to the student tensor first (e.g. a 1x1 convolution to the teacher's
            channels). It is trained and saved as task state, and is absent from the student's own weights.

    Raises:
        TypeError: ``loss`` is not callable, ``adapter`` is not a module, or an address is not a string.
        ValueError: ``weight`` is not a finite number.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        student: str = "student/logits",
        target: str = "label",
        weight: float = 1.0,
        adapter: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"a term's loss must be callable as loss(student, target), got {loss!r}")
        if adapter is not None and not isinstance(adapter, nn.Module):
            raise TypeError(f"a term's adapter must be a torch.nn.Module, got {adapter!r}")
        for role, address in (("student", student), ("target", target)):
            if not isinstance(address, str):
                raise TypeError(f"a term's {role} must be an address such as 'student/logits', got {address!r}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise ValueError(f"a term's weight must be a finite number such as 1.0, got {weight!r}")
        self.loss = loss
        self.student = student
        self.target = target
        self.weight = float(weight)
        self.adapter = adapter
        self.wants_label = _declares_label(loss)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every view this term reads."""
        return (self.student, self.target, "label") if self.wants_label else (self.student, self.target)

    def forward(self, views: Mapping[str, Tensor]) -> Tensor:
        """Return the unweighted 0-d loss of this term on the named views."""
        student = plain_tensor(views[self.student])
        target = plain_tensor(views[self.target]).detach()
        if self.adapter is not None:
            student = self.adapter(student)
        extra = {"label": plain_tensor(views["label"])} if self.wants_label else {}
        with torch.autocast(student.device.type, enabled=False):
            return self.loss(_float32(student), _float32(target), **extra).mean()

    def extra_repr(self) -> str:
        return f"student={self.student!r}, target={self.target!r}, weight={self.weight}"


def _float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _declares_label(loss: Callable[..., Tensor]) -> bool:
    """Tell whether a loss has an argument named ``label`` besides the two tensors it compares."""
    function = loss.forward if isinstance(loss, nn.Module) else loss
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return any(p.name == "label" for p in parameters) and "label" not in positional[:2]
