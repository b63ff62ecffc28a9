"""Adapters one after the other."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain as chained
from typing import Any

import torch
from torch import nn

from monai_kd.networks.shapes import Features, Shapes, as_shapes, shapes_of

__all__ = ["AdapterChain"]


class AdapterChain(nn.Module):
    """Adapters applied in order, each built for the shapes that the one before gives.

    Any module that takes the features, or features and ``target``, can be a link. The shapes between are found by one
    forward pass on zeros, in evaluation mode, that leaves batch statistics and random numbers alone.

    Args:
        links: adapters in the order in which they are applied.
        adapters: the same as a list, for configurations; give one of the two.

    Shape:
        student, target: what the first link takes; returns what the last one gives.

    Raises:
        TypeError: a link is not a module.
        ValueError: no links, or both forms; on building, shapes that a link cannot take: names link and shapes.
    """

    def __init__(self, *links: nn.Module, adapters: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        if bool(links) == bool(adapters):
            raise ValueError(
                f"AdapterChain got {len(links)} links and {len(adapters)} adapters; give at least one, in one form"
            )
        for position, link in enumerate((*links, *adapters)):
            if not isinstance(link, nn.Module):
                raise TypeError(f"link {position} of AdapterChain must be a torch.nn.Module, got {link!r}")
        self.links = nn.ModuleList((*links, *adapters))

    def build(self, student_shapes: Shapes, target_shapes: Shapes) -> None:
        """Build each link for what the one before gives; built again with the same shapes they keep their weights.

        Args:
            student_shapes: of the features to adapt, one shape or a list of them.
            target_shapes: of the features that they are to meet, likewise.

        Raises:
            ValueError: a link cannot take its shapes, or was built for others; names link and shapes.
        """
        own, other = _zeros(student_shapes, self), _zeros(target_shapes, self)
        for position, link in enumerate(self.links):
            name, got = f"link {position} of AdapterChain, {type(link).__name__},", shapes_of(own)
            try:
                if hasattr(link, "build"):
                    link.build(got, target_shapes)  # type: ignore[operator]
                with torch.no_grad(), _evaluation(link):
                    own = _apply(link, own, other)
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"{name} cannot take {_text(got)} for {_text(target_shapes)}: {error}") from error

    def forward(self, student: Features, target: Features) -> Any:
        for link in self.links:
            student = _apply(link, student, target)
        return student


def _apply(link: nn.Module, student: Features, target: Features) -> Any:
    wants_target = "target" in inspect.signature(link.forward).parameters
    return link(student, target) if wants_target else link(student)


def _zeros(shapes: Shapes, module: nn.Module) -> Any:
    """Return zeros of a shape, or a list of them, on the device of a module."""
    device = next((value.device for value in chained(module.parameters(), module.buffers())), None)
    tensors = [torch.zeros(shape, device=device) for shape in as_shapes(shapes)]
    return tensors[0] if all(isinstance(length, int) for length in shapes) else tensors


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Hold a module in evaluation mode; afterwards each of its parts has the mode it had."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _text(shapes: Any) -> str:
    return ", ".join(str(shape) for shape in as_shapes(shapes))
