"""Progress bars for training and evaluation."""

from __future__ import annotations

import sys
from typing import Any

import torch.distributed as dist
from ignite.engine import Engine, Events
from tqdm import tqdm

from monai_kd.handlers.failure import on_failure
from monai_kd.handlers.scalars import raw_scalars

__all__ = ["Progress"]


class Progress:
    """Show a bar over all iterations of an engine with epoch, loss, terms and, in training, the validation Dice.

    Args:
        title: text before the bar, e.g. ``distilled``.
        validator: evaluator whose best metric is shown.
    """

    def __init__(self, title: str, validator: Engine | None = None) -> None:
        self.title = title
        self.validator = validator
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, self._close)
        on_failure(engine, self._close)

    def _open(self, engine: Engine) -> None:
        state = engine.state
        # MONAI numbers a validator's one epoch by the trainer's, so count from where the engine stands
        remaining = (state.max_epochs - state.epoch) * state.epoch_length  # type: ignore[operator]
        silent = dist.is_available() and dist.is_initialized() and dist.get_rank() != 0
        # a log file gets a line now and then, a terminal a living bar
        pace = 0.2 if sys.stderr.isatty() else 15.0
        self._bar = tqdm(total=remaining, desc=self.title, unit="it", mininterval=pace, disable=silent)

    def _advance(self, engine: Engine) -> None:
        if self._bar is None:
            return
        shown = {"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}"} if self.validator else {}
        scalars = raw_scalars(engine.state.output)  # type: ignore[arg-type]
        shown.update({name: f"{value:.3f}" for name, value in scalars.items()})
        best: Any = self.validator.state if self.validator is not None else None
        if best is not None and best.best_metric_epoch > 0:
            shown["best Dice"] = f"{best.best_metric:.4f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def _close(self, _engine: Engine, _error: BaseException | None = None) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
