"""The table of the task with wrong labels, from docs/results/zoo/noisy_labels.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_kd.visualize.measured import measured_markdown
from monai_kd.visualize.statistics import mean_and_sd
from monai_kd.visualize.tables import NONE

__all__ = ["noisy_labels_table"]

_ALONE = "baseline"
_NOTE = (
    "- Mean ± SD over seeds; gain over the student alone of the same seed. What an untrained teacher brings is "
    "regularization, not knowledge."
)
_TITLES = (
    "method",
    "seeds",
    "Dice %",
    "gain in points",
    "least gain",
    "seeds with a gain",
    "gain with an untrained teacher",
)


def noisy_labels_table(record: str | Path) -> str:
    """Return the Markdown table of what ``benchmarks/noisy_labels.py`` measured; a sentence if there is no record.

    Args:
        record: the JSON file: Dice in percent per method and seed, of the student alone (``baseline``), of the teacher.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    return measured_markdown(record, "noisy labels", _markdown)


def _markdown(content: Mapping[str, Any]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (_TITLES, ("---", *["---:"] * 6), *_rows(content))]
    wrong = content["wrong_foreground_percent"]
    note = f"- Labels of {wrong:.0f} % of the objects' pixels are wrong in training; scored on clean labels."
    return "\n".join([*lines, "", note, _NOTE])


def _rows(content: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    dice: Mapping[str, Sequence[float]] = content["dice_percent"]
    if not (alone := dice[_ALONE]):
        raise ValueError(f"'dice_percent.{_ALONE}' is empty")
    yield "student alone", str(len(alone)), _text(alone), NONE, NONE, NONE, NONE
    for method, values in dice.items():
        if method == _ALONE:
            continue
        gains = _gains(dice, method)
        won = f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
        control = _text(_gains(content["untrained_teacher_dice_percent"], method), "+")
        yield method, str(len(values)), _text(values), _text(gains, "+"), f"{min(gains):+.1f}", won, control
    yield "teacher", "1", f"{content['teacher_dice_percent']:.1f}", NONE, NONE, NONE, NONE


def _gains(dice: Mapping[str, Sequence[float]], method: str) -> list[float]:
    return [own - other for own, other in zip(dice[method], dice[_ALONE], strict=True)]


def _text(values: Sequence[float], sign: str = "") -> str:
    mean, sd = mean_and_sd(values)
    return f"{mean:{sign}.1f}" + ("" if sd is None else f" ± {sd:.1f}")
