"""Stop any network of slices at its exchanges: one thread for each slice in flight, of which one at a time runs."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["SliceThreads"]

_INSTALLING = threading.Lock()


class SliceThreads:
    """Give any ``SliceStack`` the :meth:`slice_steps` of a network that was written as a generator.

    A network that is no generator can wait in the middle of its forward pass only in a thread of its own. On entry the
    ``forward`` of each exchange is replaced on the instance; inside a slice's thread it hands the features over and
    blocks until it is given what to go on with. A baton passes between caller and thread, so that one of them computes
    at any time. Threads are used again for later slices; on exit all have ended and the network is as it was. Passes of
    the network outside these threads are not touched.

    Grad mode, inference mode, autocast and the CUDA stream of the caller hold in the thread as they were when the slice
    started. An exception in the network is raised in the caller.

    Args:
        stack: a network of slices with ``depth_axis`` and ``exchanges``; called with volumes of one slice.

    Raises:
        RuntimeError: on entry, if the network is in use by another one.
    """

    def __init__(self, stack: Any) -> None:
        self.stack = stack
        self._hands: list[_HandOver] = []
        self._idle: list[_SliceThread] = []

    def __enter__(self) -> SliceThreads:
        exchanges = self.stack.exchanges
        with _INSTALLING:
            if any(isinstance(vars(exchange).get("forward"), _HandOver) for exchange in exchanges):
                raise RuntimeError(
                    f"this {type(self.stack).__name__} is in use by another stream of slices; let that one "
                    "end, or close it first"
                )
            self._hands = [_HandOver(exchange) for exchange in exchanges]
        return self

    def __exit__(self, *_: object) -> None:
        while self._idle:
            self._idle.pop().stop()
        while self._hands:
            self._hands.pop().restore()

    def slice_steps(self, one: Tensor) -> Generator[tuple[Any, Tensor], Tensor, Any]:
        """Run the network on one slice ``(1, C, H, W)``.

        Yields each exchange with the features it splits, takes what it joins, and returns the output ``(1, K, H, W)``.
        """
        thread = self._idle.pop() if self._idle else _SliceThread(self._run)
        message: Any = None
        try:
            message = thread.give((_modes(one.device), one))
            while isinstance(message, _Request):
                message = thread.give((yield message.exchange, message.features))
            if isinstance(message, _Failure):
                raise message.error
            self._idle.append(thread)
            return message
        finally:
            del message  # an error must not keep this frame, which is in its traceback, alive
            if thread not in self._idle:
                thread.stop()

    def _run(self, one: Tensor) -> Any:
        axis = 2 + self.stack.depth_axis
        result = self.stack(one.unsqueeze(axis))
        return result.squeeze(axis) if isinstance(result, Tensor) and result.ndim == 5 else result


class _Request(NamedTuple):
    exchange: Any
    features: Tensor


class _Failure(NamedTuple):
    error: BaseException


class _Stopped(BaseException):
    """Ends the pass of a slice that nobody waits for; no ``except Exception`` of a network holds it up."""


class _HandOver:
    """Stands in for the ``forward`` of an exchange while slices run in threads."""

    def __init__(self, exchange: Any) -> None:
        self.exchange = exchange
        self.before = vars(exchange).get("forward")  # of the instance, if anybody set one
        self.original = exchange.forward
        exchange.forward = self

    def __call__(self, features: Tensor) -> Tensor:
        thread = threading.current_thread()
        if isinstance(thread, _SliceThread):
            return thread.ask(self.exchange, features)
        result: Tensor = self.original(features)
        return result

    def restore(self) -> None:
        if self.before is None:
            del self.exchange.forward
        else:
            self.exchange.forward = self.before


class _SliceThread(threading.Thread):
    """Runs slices one after the other; stands still unless it was given something."""

    def __init__(self, run: Callable[[Tensor], Any]) -> None:
        super().__init__(name="monai_kd slice", daemon=True)
        self._pass = run
        self._given: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopping = False
        self.start()

    def give(self, value: Any) -> Any:
        """Let the thread go on with a value; return what it asks for next, its result or its failure."""
        self._given.put(value)
        del value
        return self._answers.get()

    def ask(self, exchange: Any, features: Tensor) -> Tensor:
        """In the thread: hand the features over and wait for what the exchange returns."""
        joined: Tensor | None = None
        if not self._stopping:  # else the network went on after it was stopped
            self._answers.put(_Request(exchange, features))
            joined = self._given.get()
        if joined is None:
            raise _Stopped
        return joined

    def stop(self) -> None:
        """End the thread; a pass that is under way ends at its next exchange."""
        self._stopping = True
        self._given.put(None)
        self.join()

    def run(self) -> None:
        while not self._stopping:
            task = self._given.get()
            if self._stopping:
                return
            answer = self._outcome(*task)
            del task
            self._answers.put(answer)
            del answer  # the thread waits for its next slice and must not keep this one's

    def _outcome(self, modes: list[Any], one: Tensor) -> Any:
        try:
            with contextlib.ExitStack() as entered:
                for mode in modes:
                    entered.enter_context(mode)
                return self._pass(one)
        except BaseException as error:
            return _Failure(error)


def _modes(device: torch.device) -> list[Any]:
    """Return what torch keeps for each thread, as context managers to enter in another one."""
    modes: list[Any] = [torch.inference_mode(torch.is_inference_mode_enabled())]
    modes.append(torch.enable_grad() if torch.is_grad_enabled() else torch.no_grad())
    for kind in sorted({"cpu", device.type}):
        if torch.is_autocast_enabled(kind):
            modes.append(torch.autocast(kind, dtype=torch.get_autocast_dtype(kind)))
    if device.type == "cuda":
        modes.append(torch.cuda.stream(torch.cuda.current_stream(device)))
    return modes
