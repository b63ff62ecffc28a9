"""Schedules of terms: a weight that grows at the beginning of a training, or falls to 0 before its end."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from monai_kd.distillers import Distiller

__all__ = ["TermSchedules"]

_KEYS = ("ramp", "stop")


@dataclass(frozen=True)
class _Schedule:
    """Fractions of the training: the weight is whole from ``ramp`` to ``fall`` and 0 from ``end`` on."""

    ramp: float = 0.0
    fall: float = 1.0
    end: float = 1.0
    stops: bool = False

    def factor(self, iteration: int, total: int) -> float:
        ramp, fall, end = (round(fraction * total, 6) for fraction in (self.ramp, self.fall, self.end))
        rising = min(1.0, iteration / ramp) if ramp > 0 else 1.0
        if not self.stops or iteration <= fall:
            return rising
        return rising * max(0.0, (end - iteration) / (end - fall)) if end > fall else 0.0


class TermSchedules:
    """Multiply the weights of terms by factors that follow from the iteration, through ``term.factor``.

    With N iterations in the whole training (``max_epochs * epoch_length``), the factor at iteration i = 1, ..., N is

    - ``ramp: r``: ``min(1, i / (r * N))``, so it grows linearly and is 1 from iteration ``r * N`` on;
    - ``stop: [a, b]``: 1 up to iteration ``a * N``, then linearly down to 0 at iteration ``b * N``, 0 from there on;
    - ``stop: a``: 1 up to iteration ``a * N`` and 0 after it;
    - both: the product.

    It depends on nothing else, so that a resumed training goes on as one that was not interrupted. The raw value of a
    term is not scheduled: it stays in the log while the factor is 0.

    Args:
        distiller: the :class:`~monai_kd.distillers.Distiller` (or its DDP wrapper) whose terms are scheduled.
        schedules: a term's name to its schedule, e.g. ``{"soft": {"ramp": 0.05, "stop": [0.8, 1.0]}}``; fractions of
            all iterations in 0 to 1. Terms that are not named keep their weight. An empty schedule does nothing, also
            for a term that the distiller lacks: it takes away what another configuration file set.

    Raises:
        TypeError: ``distiller`` is no Distiller, or a schedule is no mapping.
        ValueError: an unknown term (for instance one that an overlay disabled), an unknown key, or a fraction that is
            none.
    """

    def __init__(self, distiller: nn.Module, schedules: Mapping[str, Mapping[str, Any]]) -> None:
        inner = getattr(distiller, "module", distiller)
        if not isinstance(inner, Distiller):
            raise TypeError(f"TermSchedules needs a Distiller, got {type(distiller).__name__}")
        if not isinstance(schedules, Mapping):
            raise TypeError(
                f"schedules must map terms to schedules, such as {{'soft': {{'ramp': 0.05}}}}; got {schedules!r}"
            )
        self.distiller = inner
        parsed = {name: _parse(name, schedule) for name, schedule in schedules.items()}
        self.schedules = {name: schedule for name, schedule in parsed.items() if schedule is not None}
        unknown = [name for name in self.schedules if name not in inner.terms]
        if unknown:
            raise ValueError(
                f"schedules name {unknown}, which is no term of this distiller (known: {', '.join(inner.terms)}); take "
                f'the schedule of a term that is disabled away with --schedules::{unknown[0]} "{{}}"'
            )

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        state = engine.state
        if self.schedules and not (state.max_epochs and state.epoch_length):
            raise ValueError(
                f"schedules are fractions of a training of known length; it has max_epochs {state.max_epochs} and "
                f"epoch_length {state.epoch_length}"
            )
        for name, schedule in self.schedules.items():
            term: Any = self.distiller.terms[name]
            term.factor = schedule.factor(state.iteration, state.max_epochs * state.epoch_length)  # type: ignore[operator]


def _parse(name: str, schedule: Any) -> _Schedule | None:
    if not isinstance(schedule, Mapping):
        raise TypeError(f"the schedule of term '{name}' must be a mapping such as {{'ramp': 0.05}}, got {schedule!r}")
    for key in schedule:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(_KEYS)}"
            raise ValueError(f"the schedule of term '{name}' has the unknown key '{key}'; {hint}")
    if not schedule:
        return None
    ramp = _fraction(name, "ramp", schedule.get("ramp", 0.0))
    if "stop" not in schedule:
        return _Schedule(ramp)
    stop = schedule["stop"]
    is_pair = isinstance(stop, Sequence) and not isinstance(stop, str)
    if is_pair and len(stop) != 2:
        raise ValueError(f"stop of term '{name}' is {stop!r}; give one fraction, or two: [begin, end]")
    fall, end = (_fraction(name, "stop", item) for item in (stop if is_pair else (stop, stop)))
    if fall > end:
        raise ValueError(f"stop of term '{name}' is {list(stop)}: it ends before it begins; write [{end}, {fall}]")
    return _Schedule(ramp, fall, end, stops=True)


def _fraction(name: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(
            f"{key} of term '{name}' is {value!r}; it must be a fraction of all iterations, a number from 0 to 1"
        )
    return float(value)
