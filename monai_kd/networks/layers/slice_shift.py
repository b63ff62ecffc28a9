"""Move groups of channels between neighboring slices, with gradients that are right also where memory is reused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["ENDS", "shift_slices", "stack_slices"]

ENDS = ("zero", "replicate", "circular")


def stack_slices(values: Tensor, slices: int | None) -> Tensor:
    """Return a view ``(B, D, C, H, W)``.

    Args:
        values: folded ``(B * D, C, H, W)``, or a volume ``(B, C, D, H, W)``.
        slices: D of folded values; None for a volume.
    """
    return values.movedim(2, 1) if slices is None else values.unflatten(0, (-1, slices))


def shift_slices(
    values: Tensor,
    slices: int | None,
    shares: tuple[int, int],
    ends: str = "zero",
    rest: Tensor | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """Send the first channels to the next slice and the ones after them to the previous slice.

    Slice i of the result holds ``[values_{i-1}[:f], values_{i+1}[f:f+b], values_i[f+b:], rest_i]`` with
    ``shares = (f, b)``. At the two ends, where there is no neighbor, stand 0 (``zero``), the slice's own channels
    (``replicate``) or those of the other end (``circular``). Volumes of a batch never meet.

    Args:
        values: ``(B * D, C, H, W)`` with ``slices`` given, or ``(B, C, D, H, W)``.
        slices: D, or None.
        shares: channels that move on and back.
        ends: ``zero``, ``replicate`` or ``circular``.
        rest: more channels of the same layout, which stay where they are.
        into: tensor of the result's shape that may be written to, without gradients only; its last channels are
            ``rest`` already.

    Returns:
        The shifted values, in the layout of ``values``, in their memory where there is no ``rest``: the tensor that is
        given may not be used afterwards. Nobody's backward pass may need it, as that of a convolution, which keeps its
        input and weight, does not.
    """
    if _is_traced():
        return _shifted_by_concatenation(values, slices, shares, ends, rest)
    if into is not None:
        _write(stack_slices(into, slices), stack_slices(values, slices), shares, ends)
        return into
    if rest is None:
        moved: Tensor = _ShiftInPlace.apply(values, slices, shares, ends)
        return moved
    joined: Tensor = _ShiftAndJoin.apply(values, rest, slices, shares, ends)
    return joined


def _is_traced() -> bool:
    """Tell whether a compiler or exporter looks on, which knows tensor operations but not our autograd functions."""
    return bool(torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing())


def _shifted_by_concatenation(
    values: Tensor, slices: int | None, shares: tuple[int, int], ends: str, rest: Tensor | None
) -> Tensor:
    axis = 2 if slices is None else 1
    channel = 1 if slices is None else 2
    stack = values if slices is None else values.unflatten(0, (-1, slices))
    onward, back = (stack.narrow(channel, start, size) for start, size in ((0, shares[0]), (shares[0], shares[1])))
    stay = stack.narrow(channel, sum(shares), stack.shape[channel] - sum(shares))
    length = stack.shape[axis]
    first, last = _end_slices(onward, back, axis, ends)
    parts = [  # no size of length - 1, on which an exporter would make a rule
        torch.cat([first, onward], dim=axis).narrow(axis, 0, length),
        torch.cat([back, last], dim=axis).narrow(axis, 1, length),
        stay,
    ]
    if rest is not None:
        parts.append(rest if slices is None else rest.unflatten(0, (-1, slices)))
    joined = torch.cat(parts, dim=channel)
    return joined if slices is None else joined.flatten(0, 1)


def _end_slices(onward: Tensor, back: Tensor, axis: int, ends: str) -> tuple[Tensor, Tensor]:
    """Return what stands in the first slice of the one and in the last of the other."""
    starts, stops = onward.narrow(axis, 0, 1), back.narrow(axis, back.shape[axis] - 1, 1)
    if ends == "replicate":
        return starts, stops
    if ends == "circular":
        return onward.narrow(axis, onward.shape[axis] - 1, 1), back.narrow(axis, 0, 1)
    return torch.zeros_like(starts), torch.zeros_like(stops)


class _ShiftInPlace(torch.autograd.Function):
    """The shift of a tensor in its own memory: half of the channels of a distillation convolution stay untouched."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, slices: int | None, shares: tuple[int, int], ends: str) -> Tensor:
        ctx.settings = slices, shares, ends
        ctx.mark_dirty(values)
        stack = stack_slices(values, slices)
        for group, step in _groups(stack, shares):
            _move(group, step, ends)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        slices, shares, ends = ctx.settings
        returned = torch.empty_like(gradient)
        _write_back(stack_slices(returned, slices), stack_slices(gradient, slices), shares, ends)
        return returned, None, None, None


class _ShiftAndJoin(torch.autograd.Function):
    """The shifted values and the rest in one new tensor, each channel written once."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, rest: Tensor, slices: int | None, shares: tuple[int, int], ends: str
    ) -> Tensor:
        ctx.settings = slices, shares, ends
        ctx.channels = values.shape[1]
        shape = (values.shape[0], values.shape[1] + rest.shape[1], *values.shape[2:])
        joined = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=_memory_format(values))
        _write(stack_slices(joined, slices), stack_slices(values, slices), shares, ends)
        joined[:, values.shape[1] :] = rest
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        slices, shares, ends = ctx.settings
        returned = torch.empty(
            (gradient.shape[0], ctx.channels, *gradient.shape[2:]),
            dtype=gradient.dtype,
            device=gradient.device,
            memory_format=_memory_format(gradient),
        )
        mine = stack_slices(gradient[:, : ctx.channels], slices)
        _write_back(stack_slices(returned, slices), mine, shares, ends)
        return returned, gradient[:, ctx.channels :], None, None, None


def _memory_format(values: Tensor) -> torch.memory_format:
    last = torch.channels_last if values.ndim == 4 else torch.channels_last_3d
    return last if values.is_contiguous(memory_format=last) else torch.contiguous_format


def _groups(stack: Tensor, shares: tuple[int, int]) -> Iterator[tuple[Tensor, int]]:
    onward, back = shares
    yield stack[:, :, :onward], 1
    yield stack[:, :, onward : onward + back], -1


def _move(group: Tensor, step: int, ends: str) -> None:
    """Move ``(B, D, c, H, W)`` by one slice in its own memory; ``step`` 1 is onward."""
    length = group.shape[1]
    order = range(length - 1, 0, -1) if step == 1 else range(length - 1)
    first = 0 if step == 1 else length - 1  # the slice that no neighbor fills
    wrapped = group[:, length - 1 - first].clone() if ends == "circular" else None
    for index in order:
        group[:, index].copy_(group[:, index - step])
    if wrapped is not None:
        group[:, first] = wrapped
    elif ends == "zero":
        group[:, first].zero_()


def _write(target: Tensor, source: Tensor, shares: tuple[int, int], ends: str) -> None:
    """Write shifted channels from one stack ``(B, D, c, H, W)`` into the first ones of another."""
    channels = source.shape[2]
    for (ours, step), (theirs, _) in zip(_groups(target, shares), _groups(source, shares), strict=True):
        if step == 1:
            ours[:, 1:] = theirs[:, :-1]
            edge, own, other = ours[:, 0], theirs[:, 0], theirs[:, -1]
        else:
            ours[:, :-1] = theirs[:, 1:]
            edge, own, other = ours[:, -1], theirs[:, -1], theirs[:, 0]
        if ends == "zero":
            edge.zero_()
        else:
            edge.copy_(own if ends == "replicate" else other)
    target[:, :, sum(shares) : channels] = source[:, :, sum(shares) :]


def _write_back(target: Tensor, source: Tensor, shares: tuple[int, int], ends: str) -> None:
    """Apply the transpose of :func:`_write` on the channels that it moves."""
    for (ours, step), (theirs, _) in zip(_groups(target, shares), _groups(source, shares), strict=True):
        if step == 1:
            ours[:, :-1] = theirs[:, 1:]
            ours[:, -1].zero_()
            edge, own, other = theirs[:, 0], ours[:, 0], ours[:, -1]
        else:
            ours[:, 1:] = theirs[:, :-1]
            ours[:, 0].zero_()
            edge, own, other = theirs[:, -1], ours[:, -1], ours[:, 0]
        if ends != "zero":
            (own if ends == "replicate" else other).add_(edge)
    target[:, :, sum(shares) :] = source[:, :, sum(shares) :]
