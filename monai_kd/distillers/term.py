"""One line of the distillation sum: which student tensor meets which target tensor, under which loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Term", "plain_tensor"]


def plain_tensor(value: Tensor) -> Tensor:
    """Return the tensor without MONAI's metadata, which costs time in each operation of a loss."""
    return value.as_tensor() if hasattr(value, "as_tensor") else value


class Term(nn.Module):
    """A weighted comparison ``loss(student, target)`` of named views of a :class:`~monai_kd.distillers.Distiller`.

    The gradient stops at the target, so a teacher never learns from the student's term, and in co-training one
    backward pass gives each network only its own gradients. The loss runs in float32 with autocast switched off.

    Args:
        loss: callable ``loss(student, target)`` that returns a tensor; a non-scalar result is averaged. If its
            signature declares ``label``, the label view is passed as ``label=``; where the argument has a default, only
            if the batch has a label.
        student: address of the learning tensor, e.g. ``student/logits`` or ``student/bottleneck``. A list of addresses
            hands lists of tensors to adapter and loss; ``*`` stands for stages (``student/decoder_*``), with ``:0`` or
            ``:-1`` behind it for the first or last of them.
        target: address or list to meet, e.g. ``label``, ``teacher/logits``, ``[t1/logits, t2/logits]``. Where the
            target holds a ``*``, the distiller finds the stage of the nearest stride for each of the student's.
        weight: finite factor of this term in the sum; 0 keeps the term in the log without a gradient.
        adapter: optional module applied to the student's side first, as ``adapter(student)``, or
            ``adapter(student, target)`` if its forward declares ``target`` (e.g. a 1x1 convolution to the teacher's
            channels). It is trained and saved as task state, and is absent from the student's own weights. One that
            has a method ``build(student_shapes, target_shapes)`` gets its weights when the distiller is constructed.
        target_adapter: the same for the target's side, without weights (e.g. tokens to a map); its ``build`` gets the
            target's shapes first.
        weight_map: optional address of a map of weights, or mask, per voxel ``(B, 1, *spatial)``, handed to the loss as
            ``weight=``; the loss must declare that argument.
        inputs: further arguments of the loss by name, each with the address it comes from, without its graph, e.g.
            ``{"available": "available/flair"}``; the loss must declare them.

    Attributes:
        factor: multiplies ``weight``, 1.0; schedules change it during training.

    A loss with a true attribute ``compares_maps`` gets features with as many axes as the student's logits, or the term
    raises: tokens ``(B, L, C)`` would pass for a map with L channels.

    Raises:
        TypeError: ``loss`` is not callable or takes no ``weight`` for the ``weight_map`` or no argument that ``inputs``
            names, an adapter is not a module, or an address is not a string.
        ValueError: ``weight`` is not a finite number, a list of addresses is empty, or a target adapter has weights.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        student: str | Sequence[str] = "student/logits",
        target: str | Sequence[str] = "label",
        weight: float = 1.0,
        adapter: nn.Module | None = None,
        target_adapter: nn.Module | None = None,
        weight_map: str | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"a term's loss must be callable as loss(student, target), got {loss!r}")
        for role, module in (("adapter", adapter), ("target_adapter", target_adapter)):
            if module is not None and not isinstance(module, nn.Module):
                raise TypeError(f"a term's {role} must be a torch.nn.Module, got {module!r}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise ValueError(f"a term's weight must be a finite number such as 1.0, got {weight!r}")
        self.loss = loss
        self.student = _checked_address("student", student)
        self.target = _checked_address("target", target)
        self.weight = float(weight)
        self.factor = 1.0
        self.adapter = adapter
        self.target_adapter = target_adapter
        self.weight_map = _checked_weight_map(weight_map, loss)
        self.inputs = _checked_inputs(inputs, loss)
        self.wants_label = _label_default(loss) is not None
        self.needs_label = _label_default(loss) is inspect.Parameter.empty
        self._check_target_adapter()

    @property
    def scale(self) -> float:
        """What the term's value is multiplied by in the sum: weight times factor."""
        return self.weight * self.factor

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every view that this term cannot do without."""
        read = (*_as_list(self.student), *_as_list(self.target))
        if self.weight_map is not None:
            read = (*read, self.weight_map)
        read = (*read, *self.inputs.values())
        return (*read, "label") if self.needs_label and "label" not in read else read

    @property
    def unbuilt(self) -> dict[str, nn.Module]:
        """The adapters that get their weights from shapes, by role."""
        adapters = {"adapter": self.adapter, "target_adapter": self.target_adapter}
        return {role: module for role, module in adapters.items() if module is not None and hasattr(module, "build")}

    def build(self, shapes: Mapping[str, torch.Size]) -> None:
        """Give lazy adapters their weights.

        Args:
            shapes: shape of each view.
        """
        student, target = _select(shapes, self.student), _select(shapes, self.target)
        if self.target_adapter is not None:
            if "target_adapter" in self.unbuilt:
                self.target_adapter.build(target, student)  # type: ignore[operator]
                self._check_target_adapter()
            with torch.no_grad():  # the adapter meets what this one makes of the target
                adapted = _adapt(self.target_adapter, _each(torch.zeros, target), _each(torch.zeros, student))
            target = _each(lambda value: value.shape, adapted)
        if "adapter" in self.unbuilt:
            self.adapter.build(student, target)  # type: ignore[union-attr, operator]

    def forward(self, views: Mapping[str, Tensor]) -> Tensor:
        """Return the unweighted 0-d loss of this term on the named views."""
        student = _each(plain_tensor, _select(views, self.student))
        target = _each(lambda view: plain_tensor(view).detach(), _select(views, self.target))
        if self.target_adapter is not None:
            with torch.no_grad():
                target = _adapt(self.target_adapter, target, student)
        if self.adapter is not None:
            student = _adapt(self.adapter, student, target)
        self._check_maps(views, student, target)
        extra = {"label": plain_tensor(views["label"])} if self.wants_label and "label" in views else {}
        if self.weight_map is not None:
            extra["weight"] = plain_tensor(views[self.weight_map])
        extra.update({name: plain_tensor(views[address]).detach() for name, address in self.inputs.items()})
        device = (student[0] if isinstance(student, list) else student).device.type
        with torch.autocast(device, enabled=False):
            return self.loss(_each(at_least_float32, student), _each(at_least_float32, target), **extra).mean()

    def extra_repr(self) -> str:
        return f"student={self.student!r}, target={self.target!r}, weight={self.weight}"

    def _check_maps(self, views: Mapping[str, Tensor], student: Any, target: Any) -> None:
        """Refuse features with other axes than the image where the loss compares maps."""
        if not getattr(self.loss, "compares_maps", False) or "student/logits" not in views:
            return
        axes = views["student/logits"].ndim
        for side, address, value in (("student", self.student, student), ("target", self.target, target)):
            for entry, view in zip(_as_list(address), value if isinstance(value, list) else [value], strict=False):
                if view.ndim != axes:
                    raise ValueError(
                        f"{type(self.loss).__name__} compares maps with {axes} axes, and '{entry}' has the shape "
                        f"{tuple(view.shape)}; bring tokens to a map with "
                        f"{'adapter' if side == 'student' else 'target_adapter'}: monai_kd.networks.TokensToMap"
                    )

    def _check_target_adapter(self) -> None:
        if self.target_adapter is not None and any(True for _ in self.target_adapter.parameters()):
            raise ValueError(
                f"a term's target_adapter must have no weights, got {type(self.target_adapter).__name__}: no gradient "
                "reaches the target's side; adapt the student's with adapter"
            )


def _checked_address(role: str, address: str | Sequence[str]) -> str | list[str]:
    if isinstance(address, str):
        return address
    entries = list(address) if isinstance(address, Sequence) else [address]
    if not all(isinstance(entry, str) for entry in entries):
        raise TypeError(
            f"a term's {role} must be an address such as 'student/logits' or a list of them, got {address!r}"
        )
    if not entries:
        raise ValueError(f"a term's {role} is an empty list; give at least one address")
    return entries


def _checked_weight_map(address: str | None, loss: Callable[..., Tensor]) -> str | None:
    if address is None:
        return None
    if not isinstance(address, str):
        raise TypeError(f"a term's weight_map must be an address such as 'roi', got {address!r}")
    function = loss.forward if isinstance(loss, nn.Module) else loss
    if "weight" not in inspect.signature(function).parameters:
        name = type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", repr(loss))
        raise TypeError(
            f"the term has the weight_map '{address}', and its loss {name} takes no argument 'weight'; of this "
            "package SoftLogitKL, SoftBernoulliKL, DecoupledKL and MultiTeacherKL do"
        )
    return address


def _checked_inputs(inputs: Mapping[str, str] | None, loss: Callable[..., Tensor]) -> dict[str, str]:
    found = dict(inputs or {})
    function = loss.forward if isinstance(loss, nn.Module) else loss
    known = list(inspect.signature(function).parameters)
    for name, address in found.items():
        if not isinstance(address, str):
            raise TypeError(f"a term's inputs must be addresses such as 'available/flair', got {name}: {address!r}")
        if name not in known:
            raise TypeError(
                f"the term's inputs name '{name}', which {type(loss).__name__} does not take; its arguments: "
                f"{', '.join(known)}"
            )
    return found


def _as_list(address: str | list[str]) -> list[str]:
    return [address] if isinstance(address, str) else address


def _select(views: Mapping[str, Any], address: str | list[str]) -> Any:
    return views[address] if isinstance(address, str) else [views[entry] for entry in address]


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    return [function(entry) for entry in value] if isinstance(value, list) else function(value)


def _adapt(adapter: nn.Module, own: Any, other: Any) -> Any:
    wants_other = "target" in inspect.signature(adapter.forward).parameters
    return adapter(own, other) if wants_other else adapter(own)


def at_least_float32(value: Tensor) -> Tensor:
    """Return at least float32; float64 stays, so that gradients can be checked."""
    return value.float() if value.is_floating_point() and value.dtype != torch.float64 else value


def _label_default(loss: Callable[..., Tensor]) -> Any:
    """Return the default of a loss's argument ``label``; None if it has none besides the two tensors it compares."""
    function = loss.forward if isinstance(loss, nn.Module) else loss
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for parameter in parameters:
        if parameter.name == "label" and "label" not in positional[:2]:
            return parameter.default if parameter.default is parameter.empty else _OPTIONAL
    return None


_OPTIONAL = "optional"
