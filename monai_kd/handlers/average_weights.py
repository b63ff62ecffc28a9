"""A running average of the weights, which is what a training evaluates and publishes."""

from __future__ import annotations

import copy

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from monai_kd.handlers.accumulation import optimizer_stepped

__all__ = ["AverageWeights"]


class AverageWeights:
    """Keep ``average = d * average + (1 - d) * weights`` after each optimizer step.

    At the beginning it forgets faster, by ``d = min(decay, (1 + t) / (10 + t))`` at iteration t, since random weights
    are worth nothing. When a training starts the average becomes a copy of the network, whose weights may have been
    loaded since. All follows from the iteration alone, so that a resumed training goes on as one that was not
    interrupted.

    Args:
        network: to average.
        decay: 0 (the weights themselves) to below 1; 0.999 averages over about the last 1000 steps.

    Attributes:
        average: a network in evaluation mode; give it to the evaluator, and to the objects of
            :class:`~monai_kd.handlers.ResumableTraining`.

    Raises:
        ValueError: ``decay`` is out of range.

    Ignite's ``EMAHandler`` starts from the weights at its construction, and its warm-up is linear.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise ValueError(f"decay is {decay!r}; it must be a number from 0 to below 1")
        self.network, self.decay = network, float(decay)
        self.average = copy.deepcopy(network).requires_grad_(False).eval()

    def decay_at(self, iteration: int) -> float:
        """Return the decay of an iteration, counted from 1."""
        return min(self.decay, (1 + iteration) / (10 + iteration))

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if optimizer_stepped(engine):
            self.update(self.decay_at(engine.state.iteration))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the average; buffers are copied."""
        get_ema_multi_avg_fn(decay)(list(self.average.parameters()), list(self.network.parameters()), None)
        for own, new in zip(self.average.buffers(), self.network.buffers(), strict=True):
            own.copy_(new)

    def _start(self, engine: Engine) -> None:
        if engine.state.iteration == 0:
            self.average.load_state_dict(self.network.state_dict())
