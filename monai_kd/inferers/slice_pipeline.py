"""Slices that pass through one network at the same time, each as far as its neighbors let it go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from torch import Tensor

__all__ = ["SlicePipeline", "Steps"]

Steps = Generator[tuple[Any, Tensor], Any, Any]


class _Waiting(NamedTuple):
    """What a slice holds while it waits at an exchange: its own shares."""

    exchange: Any
    onward: Tensor
    back: Tensor
    stay: Tensor


@dataclass
class _Flight:
    """A slice on its way through the network.

    Attributes:
        number: of the slice.
        steps: the network on this slice.
        earlier: the slice before, until this one has landed; None for the first.
        step: number of the exchange at which it waits, and ``waiting`` what it holds there.
        onward: what it gave the next slice, by exchange, until that takes it.
        back: what the next slice gave it.
        result: the output of the network, once it is there.
    """

    number: int
    steps: Steps
    earlier: _Flight | None
    step: int = -1
    waiting: _Waiting | None = None
    onward: dict[int, Tensor] = field(default_factory=dict)
    back: dict[int, Tensor] = field(default_factory=dict)
    result: Tensor | None = None


class SlicePipeline:
    """Drive the slices of a volume through a network, each computed once, as they come.

    Slice i goes on from an exchange when slice i - 1 has given there what goes onward, and slice i + 1 what goes back.
    With ``halo`` exchanges at most ``halo + 1`` slices are in flight; in a causal network nothing goes back, and each
    slice passes at once. Runs without gradients.

    Args:
        stack: the network; for its ``halo``, the exchanges that each slice passes.
        start: returns the network on one slice ``(1, C, H, W)`` as a generator, which yields ``(exchange, features)``,
            is sent the features joined and returns the output ``(1, K, H, W)``.
        device: where the slices run; None is the device on which they come.

    Raises:
        TypeError: a slice or an output is no tensor.
        ValueError: a slice of another shape than the first; a slice that passes other exchanges, or another number.
    """

    def __init__(self, stack: Any, start: Callable[[Tensor], Steps], device: torch.device | str | None = None) -> None:
        self.name = type(stack).__name__
        self.halo: int = stack.halo
        self.start = start
        self.device = device
        self.in_flight: deque[_Flight] = deque()  # the earliest first
        self._latest: _Flight | None = None
        self._ended = False
        self._order: list[Any] = []  # the exchanges, as the first slice meets them
        self._shape: torch.Size | None = None

    @torch.no_grad()
    def push(self, one: Tensor) -> list[Tensor]:
        """Take the next slice; return the outputs that are ready, at most one."""
        number = 0 if self._latest is None else self._latest.number + 1
        one = self._checked(one, number)
        # a copy: the caller may read the next slice into the same memory
        steps = self.start(one.to(device=self.device or one.device, copy=True))
        self._latest = _Flight(number, steps, self._latest)
        self.in_flight.append(self._latest)
        self._go_on(self._latest, None)
        return self._settle()

    @torch.no_grad()
    def finish(self) -> list[Tensor]:
        """Let the slices in flight go on without a next one; return what is ready. Call it until none is in flight."""
        self._ended = True
        return self._settle()

    def close(self) -> None:
        """End the pass of the slices in flight."""
        while self.in_flight:
            self.in_flight.popleft().steps.close()

    def _settle(self) -> list[Tensor]:
        """Let every slice go on that can, the latest first: what it gives sets the one before it free."""
        for flight in reversed(self.in_flight):
            while flight.waiting is not None and self._is_free(flight, flight.waiting):
                self._go_on(flight, self._received(flight, flight.waiting))
        results = []
        while self.in_flight and (result := self.in_flight[0].result) is not None:
            self.in_flight.popleft().result = None  # the next slice still knows this one
            results.append(result)
        return results

    def _is_free(self, flight: _Flight, waiting: _Waiting) -> bool:
        before = flight.earlier is None or flight.step in flight.earlier.onward
        after = flight.step in flight.back or waiting.back.shape[1] == 0 or (self._ended and flight is self._latest)
        return before and after

    def _received(self, flight: _Flight, waiting: _Waiting) -> Tensor:
        """Return the features of a slice behind its exchange."""
        exchange, onward, back, stay = waiting
        onward = _end(exchange, onward) if flight.earlier is None else flight.earlier.onward.pop(flight.step)
        back = flight.back.pop(flight.step) if flight.step in flight.back else _end(exchange, back)
        joined: Tensor = exchange.join(onward, back, stay)
        return joined

    def _go_on(self, flight: _Flight, joined: Tensor | None) -> None:
        """Run a slice to its next exchange, where it gives its shares, or to its end."""
        flight.waiting = None
        try:
            exchange, features = flight.steps.send(joined)  # None starts a generator
        except StopIteration as end:
            flight.result = self._landed(flight, end.value)
            flight.earlier = None
            return
        flight.step += 1
        self._check_order(flight, exchange)
        onward, back, stay = exchange.split(features)
        # copies: a view would keep all features alive, and the network may write over them as it goes on
        flight.waiting = _Waiting(exchange, onward.clone(), back.clone(), stay)
        flight.onward[flight.step] = flight.waiting.onward
        if flight.earlier is not None and back.shape[1] > 0:
            flight.earlier.back[flight.step] = flight.waiting.back

    def _check_order(self, flight: _Flight, exchange: Any) -> None:
        if flight.step >= self.halo:
            raise ValueError(
                f"slice {flight.number} passes more exchanges than the {self.halo} that {self.name} has as its halo; "
                "each exchange may be used once in a pass"
            )
        if flight.step == len(self._order):
            self._order.append(exchange)
        elif self._order[flight.step] is not exchange:
            raise ValueError(
                f"slice {flight.number} met another exchange as number {flight.step} than the slice before it: all "
                f"slices must pass the exchanges of {self.name} in the same order"
            )

    def _landed(self, flight: _Flight, result: Any) -> Tensor:
        if flight.step + 1 != self.halo:
            raise ValueError(
                f"slice {flight.number} passed {flight.step + 1} exchanges, but {self.name} has {self.halo} as its "
                "halo; every slice must pass each of them once, and compiled or scripted parts hide theirs"
            )
        if not isinstance(result, Tensor):
            raise TypeError(f"{self.name} returned a {type(result).__name__} for a slice; streams take one tensor")
        if result.ndim != 4 or len(result) != 1:
            raise ValueError(f"{self.name} returned {tuple(result.shape)} for a slice; streams take (1, K, H, W)")
        return result

    def _checked(self, one: Any, number: int) -> Tensor:
        if not isinstance(one, Tensor):
            raise TypeError(f"slice {number} is a {type(one).__name__}; give tensors (1, C, H, W)")
        if one.ndim != 4 or len(one) != 1:
            raise ValueError(f"slice {number} is {tuple(one.shape)}; give slices (1, C, H, W)")
        if self._shape is not None and one.shape != self._shape:
            raise ValueError(f"slice {number} is {tuple(one.shape)}, but the first one is {tuple(self._shape)}")
        self._shape = one.shape
        return one.as_tensor() if isinstance(one, MetaTensor) else one


def _end(exchange: Any, share: Tensor) -> Tensor:
    """Return what a slice receives where it has no neighbor."""
    return share if exchange.ends == "replicate" else torch.zeros_like(share)
