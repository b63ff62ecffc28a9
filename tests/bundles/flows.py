"""Workflows taken step by step: what a run does before it trains, its first batches, its logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.engines import IterationEvents
from torch import Tensor

__all__ = ["causes", "checksum", "first_batches", "get", "ready", "validated"]


def causes(error: BaseException | None) -> str:
    """The messages of an error and of all that led to it, a line each."""
    text = []
    while error is not None:
        text.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(text)


def get(flow: ConfigWorkflow, config_id: str) -> Any:
    return flow.parser.get_parsed_content(config_id)


def ready(flow: ConfigWorkflow) -> ConfigWorkflow:
    """Do everything that ``run`` does except its last line, the training."""
    *steps, last = flow.parser.get("run")
    assert last == "$@train::trainer.run()"
    for number in range(len(steps)):
        get(flow, f"run::{number}")
    return flow


def first_batches(flow: ConfigWorkflow, number: int) -> list[dict[str, Any]]:
    """The batches that a training sees first."""
    seen: list[dict[str, Any]] = []

    def keep(engine: Engine) -> None:
        seen.append(engine.state.batch)
        if len(seen) == number:
            engine.terminate(skip_completed=True)

    trainer = get(flow, "train::trainer")
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, keep)
    trainer.run()
    return seen


def checksum(values: Iterable[Tensor]) -> float:
    """A number that every element of every tensor, and its place, has a part in."""
    total = 0.0
    for value in values:
        places = torch.arange(1, value.numel() + 1, dtype=torch.float64).sin()
        total += float((value.reshape(-1).double() * places).sum())
    return total


def validated(flow: ConfigWorkflow) -> float:
    """The checksum of the logits of a validation under the present weights."""
    seen: list[Tensor] = []

    def keep(engine: Engine) -> None:
        seen.append(engine.state.output["pred"].as_tensor().clone())

    evaluator = get(flow, "validate::evaluator")
    evaluator.add_event_handler(IterationEvents.FORWARD_COMPLETED, keep)
    evaluator.run()
    assert len(seen) == 1
    return checksum(seen)
