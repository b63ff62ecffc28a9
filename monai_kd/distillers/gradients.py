"""How strongly each term of a Distiller pulls on the student: the norm of its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from monai_kd.distillers.distiller import Distiller
from monai_kd.distillers.term import at_least_float32, plain_tensor

__all__ = ["term_gradient_norms"]

_WRT = ("parameters", "logits")


def term_gradient_norms(
    distiller: Distiller,
    image: Tensor,
    label: Tensor | None = None,
    *,
    wrt: str = "parameters",
    weighted: bool = True,
    scale: float = 1.0,
    inferer: Callable[..., Any] | None = None,
    **cached: Tensor,
) -> dict[str, float]:
    """Return the L2 norm of the gradient of every term, from one forward pass and one backward pass a term.

    The networks run in their present modes. Everything is left as it was: no ``.grad``, no buffer (such as the running
    statistics of a batch normalization) and no state of torch's random generators changes, so a measurement in the
    middle of a training does not change the training.

    Args:
        distiller: the module to measure; of a wrapped one (DDP) the module inside.
        image, label, cached: as in :meth:`Distiller.forward`.
        wrt: ``"parameters"``: all parameters of the student that train; those of adapters and co-trained teachers do
            not count. ``"logits"``: the student's logits, which terms on features do not reach.
        weighted: False leaves out weight and factor of the term, which is defined at weight 0 too.
        scale: losses are multiplied by it before the backward pass and norms divided by it after, as a gradient scaler
            does, so that small gradients do not vanish in float16. Where that overflows, a smaller scale is taken.
        inferer: called as ``inferer(image, network, ...)`` for the forward pass, e.g. one that opens autocast; None
            calls the network itself.

    Returns:
        Term name to norm, in the order of the terms; 0 for a term that sends the student no gradient.

    Raises:
        ValueError: ``wrt`` is unknown, or nothing in the student trains.
    """
    if wrt not in _WRT:
        raise ValueError(f"wrt is {wrt!r}; known: {', '.join(_WRT)}")
    parameters = [parameter for parameter in distiller.student.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the student trains (requires_grad is False), so no term has a gradient")

    def forward(image: Tensor, label: Tensor | None = None, **cached: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        views = distiller.views(plain_tensor(image), label, **cached)
        return views["student/logits"], distiller.term_values(views)

    with torch.enable_grad(), _generators_kept(image.device), _buffers_kept(distiller):
        logits, values = (
            forward(image, label=label, **cached) if inferer is None else inferer(image, forward, label=label, **cached)
        )
        inputs: list[Tensor] = [*parameters] if wrt == "parameters" else [logits]
        norms = {name: _scaled_norm(value, inputs, scale) for name, value in values.items()}
    terms: dict[str, Any] = dict(distiller.terms.items())
    return {name: (abs(terms[name].scale) if weighted else 1.0) * norm for name, norm in norms.items()}


def _scaled_norm(value: Tensor, inputs: list[Tensor], scale: float) -> float:
    """Return the gradient's norm; a scale that overflows is lowered, as a gradient scaler does over its steps."""
    if not value.requires_grad:
        return 0.0
    while True:
        grads = torch.autograd.grad(value * scale, inputs, retain_graph=True, allow_unused=True)
        parts = [torch.linalg.vector_norm(at_least_float32(grad)) for grad in grads if grad is not None]
        if not parts:
            return 0.0
        norm = torch.linalg.vector_norm(torch.stack(parts)).item() / scale
        if math.isfinite(norm) or scale <= 1.0:
            return norm
        scale = max(1.0, scale / 16)


def _generators_kept(device: torch.device) -> Any:
    """Leave torch's generators of the CPU and of the device in use as they were."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Let a module work on copies of its buffers: updates, new assignments and new buffers are gone afterwards."""
    places = [
        (owner, name, buffer) for owner in module.modules() for name, buffer in owner.named_buffers(recurse=False)
    ]
    known = {(id(owner), name) for owner in module.modules() for name in owner._buffers}
    copies = {id(buffer): buffer.detach().clone() for _, _, buffer in places}  # one of a buffer that two modules share
    try:
        for owner, name, buffer in places:
            setattr(owner, name, copies[id(buffer)])
        yield
    finally:
        for owner, name, buffer in places:
            setattr(owner, name, buffer)
        for owner in module.modules():
            for name in [name for name in owner._buffers if (id(owner), name) not in known]:  # made meanwhile
                delattr(owner, name)
