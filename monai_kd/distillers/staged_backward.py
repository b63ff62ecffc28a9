"""The gradients of several teachers with the activations of one top stage in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_kd.distillers.cooperative_teachers import CooperativeTeachers

__all__: list[str] = []

# a head's name and logits to its weighted loss; None where no term trains it
HeadLoss = Callable[[str, Tensor], "Tensor | None"]
_STAGE = "decoder_2"


def check_staged(teachers: CooperativeTeachers, freeze: bool) -> None:
    """Refuse teachers that cannot be run in two parts.

    Raises:
        ValueError: names them.
    """
    if freeze:
        raise ValueError("staged is for teachers that learn, and freeze is True: set one of them False")
    whole = [name for name, network in teachers.networks.items() if not _in_parts(network)]
    if whole:
        raise ValueError(
            f"staged needs teachers with the methods lower and top, as ChannelAttentionResUNet has; {whole} lack them"
        )
    others = {stage for stages in teachers.stages.values() for stage in stages.values()} - {_STAGE}
    if others:
        raise ValueError(f"staged fuses features of the stage '{_STAGE}' alone; the fusions read {sorted(others)} too")


def staged_heads(
    group: CooperativeTeachers, image: Tensor, available: Tensor | None, loss_of: HeadLoss, scale: float = 1.0
) -> tuple[dict[str, Tensor], Tensor]:
    """Run the teachers one after the other, each with its backward pass.

    The lower parts run first, with their graphs. The fusions see copies of their features, so that their gradient
    stops there. Then each teacher's last stage runs, gives its gradient, and is freed; at last the gradients that have
    met at the features go through the lower parts. On the way all gradients are ``scale`` times as large, as AMP's
    would be: those of single voxels are too small for half precision.

    Returns:
        The logits of every head, without a graph; and 0 with the gradients that were found, for the sum of losses.

    Source: exact acceleration; the sum of derivatives does not depend on the order in which they are taken.
    """
    found = _Gradients(group, scale)
    with torch.enable_grad():
        lower = {name: network.lower(image) for name, network in group.networks.items()}  # type: ignore[operator]
        halves = {name: half.detach().requires_grad_() for name, (half, _) in lower.items()}
        heads, at_half = _fused(group, halves, available, loss_of, found)
        for name, network in group.networks.items():
            half, skip = (value.detach().requires_grad_() for value in lower[name])
            logits = network.top(half, skip)  # type: ignore[operator]
            heads[name] = logits.detach()
            loss = loss_of(name, logits)
            gradients: Sequence[Tensor | None] = (None, None)
            if loss is not None:
                gradients = found.take(loss, [half, skip])
            del logits, loss
            joined = [_sum(at_half[name], gradients[0]), gradients[1]]
            found.through(lower.pop(name), joined)
    ordered = {name: heads[name] for name in group.head_names}
    return ordered, _Precomputed.apply(found.values, scale, *found.parameters)


def _fused(
    group: CooperativeTeachers,
    halves: dict[str, Tensor],
    available: Tensor | None,
    loss_of: HeadLoss,
    found: _Gradients,
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Return the fusions' logits, and the gradient of their losses at each teacher's features."""
    heads: dict[str, Tensor] = {}
    at_half: dict[str, Tensor | None] = dict.fromkeys(halves)
    for fusion in group.fusions:
        logits = group.fuse(fusion, {name: {_STAGE: half} for name, half in halves.items()}, available)
        heads[fusion] = logits.detach()
        loss = loss_of(fusion, logits)
        if loss is not None:
            for name, gradient in zip(halves, found.take(loss, list(halves.values())), strict=True):
                at_half[name] = _sum(at_half[name], gradient)
    return heads, at_half


class _Gradients:
    """The gradient of each parameter so far, times ``scale``."""

    def __init__(self, group: nn.Module, scale: float) -> None:
        self.scale = scale
        self.parameters = [parameter for parameter in group.parameters() if parameter.requires_grad]
        self._found: dict[int, Tensor] = {}

    @property
    def values(self) -> list[Tensor]:
        return [self._found.get(id(p), torch.zeros_like(p)) for p in self.parameters]

    def take(self, loss: Tensor, leaves: list[Tensor]) -> Sequence[Tensor | None]:
        """Add a loss's gradients and return those at the leaves."""
        gradients = torch.autograd.grad(loss * self.scale, [*leaves, *self.parameters], allow_unused=True)
        self._add(gradients[len(leaves) :])
        return gradients[: len(leaves)]

    def through(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Add what gradients at the outputs of a graph come to."""
        reached = [(out, grad) for out, grad in zip(outputs, gradients, strict=True) if grad is not None]
        if reached:
            ends, arriving = zip(*reached, strict=True)
            self._add(torch.autograd.grad(ends, self.parameters, arriving, allow_unused=True))

    def _add(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                known = self._found.get(id(parameter))
                self._found[id(parameter)] = gradient if known is None else known + gradient


class _Precomputed(torch.autograd.Function):
    """0, with gradients known already, ``scale`` times; they scale with whatever arrives, as AMP's loss scale."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], scale: float, *parameters: Tensor) -> Tensor:
        ctx.gradients, ctx.scale = gradients, scale
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, []
        factor = arriving / ctx.scale  # 1 under AMP
        return (None, None, *(gradient * factor.to(gradient.dtype) for gradient in gradients))


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _in_parts(network: nn.Module) -> bool:
    inner = getattr(network, "network", network)  # of RouteModalities
    return hasattr(inner, "lower") and hasattr(inner, "top")
