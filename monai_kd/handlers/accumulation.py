"""When the optimizer makes a step: MONAI's rule of gradient accumulation."""

from __future__ import annotations

from ignite.engine import Engine
from monai.engines import SupervisedTrainer

__all__: list[str] = []


def optimizer_stepped(engine: Engine) -> bool:
    """Tell whether the optimizer makes a step in this iteration."""
    every = engine.accumulation_steps if isinstance(engine, SupervisedTrainer) else 1
    if every == 1:
        return True
    length, iteration = engine.state.epoch_length, engine.state.iteration
    within = iteration if length is None else (iteration - 1) % length + 1
    return within % every == 0 or within == length
