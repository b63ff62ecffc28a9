"""Move the running average of the student that serves as its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from monai_kd.distillers.self_distiller import SelfDistiller
from monai_kd.handlers.accumulation import optimizer_stepped

__all__ = ["EMATeacher"]


class EMATeacher:
    """Call :meth:`SelfDistiller.update` after every optimizer step, with a momentum that grows over the training.

    The momentum goes linearly from the first to the last iteration and depends on their numbers alone, so that a
    resumed training goes on with it. When a training starts at iteration 1 the average becomes a copy of the student,
    whose weights may have been loaded since the distiller was made. With gradient accumulation the iterations without
    an optimizer step move nothing. No process has to talk to another, since all hold the same student; only batch
    statistics differ between processes, unless they are synchronized (``SyncBatchNorm``).

    Args:
        distiller: the :class:`SelfDistiller` (or its DDP wrapper) whose average to move.
        momentum: 0 to 1, the share of the average that each step keeps: one number, or first and last. 0.999 averages
            over about the last 1000 steps.

    Raises:
        TypeError: ``distiller`` is not a :class:`SelfDistiller`.
        ValueError: ``momentum`` is not one or two numbers from 0 to 1; on start, the training's length is unknown.

    Ignite's ``EMAHandler`` keeps an average of its own, which no term could read.
    """

    def __init__(self, distiller: nn.Module, momentum: float | Sequence[float] = (0.99, 0.999)) -> None:
        inner = getattr(distiller, "module", distiller)
        if not isinstance(inner, SelfDistiller):
            raise TypeError(f"EMATeacher needs a SelfDistiller, got {type(distiller).__name__}")
        self.distiller = inner
        self.momentum = _first_and_last(momentum)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def momentum_at(self, iteration: int, iterations: int) -> float:
        """Return the momentum after an iteration, counted from 1, of a training with so many."""
        first, last = self.momentum
        progress = (iteration - 1) / (iterations - 1) if iterations > 1 else 0.0
        return first + (last - first) * min(progress, 1.0)

    def __call__(self, engine: Engine) -> None:
        if optimizer_stepped(engine):
            self.distiller.update(self.momentum_at(engine.state.iteration, _iterations(engine)))

    def _start(self, engine: Engine) -> None:
        _iterations(engine)  # an unknown length is found now and not after an iteration
        if engine.state.iteration == 0:
            self.distiller.update(0.0)


def _first_and_last(momentum: Any) -> tuple[float, float]:
    entries = list(momentum) if isinstance(momentum, Sequence) and not isinstance(momentum, str) else [momentum]
    numbers = [entry for entry in entries if isinstance(entry, (int, float)) and not isinstance(entry, bool)]
    if len(numbers) != len(entries) or len(entries) not in (1, 2) or not all(0 <= entry <= 1 for entry in numbers):
        raise ValueError(f"momentum is {momentum!r}; give one number from 0 to 1, or two, for first and last iteration")
    return float(numbers[0]), float(numbers[-1])


def _iterations(engine: Engine) -> int:
    state = engine.state
    if state.max_iters is not None:
        return int(state.max_iters)
    if not state.max_epochs or not state.epoch_length:
        raise ValueError("EMATeacher needs the length of the training; give the trainer an epoch_length")
    return int(state.max_epochs * state.epoch_length)
