"""The distillers compared: what their evaluation records and their time per step say, as one table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_kd.visualize.statistics import (
    Arm,
    PairedDifference,
    PairRefused,
    Record,
    _cpu_text,
    difference_on_seeds,
    group_arms,
)
from monai_kd.visualize.tables import (
    NO_RESULTS,
    NONE,
    Table,
    _data_note,
    _escape,
    _likeness,
    _mean_sd_text,
    _table_markdown,
)

__all__ = ["DISTILLERS_PROTOCOL", "Method", "Study", "distillers_table", "method_label", "study_of"]

DISTILLERS_PROTOCOL = "hippocampus_short"  # name of the records that compare distillers
ALONE = "student alone"


@dataclass(frozen=True)
class Method:
    """The records of one distiller and how they differ from the student alone on the same seeds."""

    arm: Arm
    difference: PairedDifference | None
    refused: str | None
    equal_time: PairedDifference | None = None  # from the student alone that was trained for longer

    @property
    def single(self) -> bool:
        """Whether the method was trained with one seed only."""
        return len(self.arm.records) == 1

    @property
    def verdict(self) -> str:
        """The verdict as the table shows it."""
        if self.difference is None:
            return "refused" if self.refused else NONE
        return "1 seed" if self.difference.seed_noise is None else self.difference.verdict


@dataclass(frozen=True)
class Study:
    """The student alone, the teacher, and the methods by falling mean Dice: of several seeds, then of one.

    ``longer`` is the student alone with more epochs than any method, the control of equal time, as it differs from the
    student alone.
    """

    alone: tuple[Arm, ...]
    longer: Method | None
    teachers: tuple[Arm, ...]
    several: tuple[Method, ...]
    single: tuple[Method, ...]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """All arms in the order of the table."""
        return (*self.controls, *(method.arm for method in self.methods), *self.teachers)

    @property
    def controls(self) -> tuple[Arm, ...]:
        """The student alone, also the one that was trained for longer."""
        return (*self.alone, self.longer.arm) if self.longer else self.alone

    @property
    def methods(self) -> tuple[Method, ...]:
        """All methods: of several seeds, then of one."""
        return (*self.several, *self.single)


def distillers_table(
    records: Iterable[Record], steps: str | Path | None = None, protocol: str = DISTILLERS_PROTOCOL
) -> str:
    """Return the Markdown table that compares distillers with the student alone, and its notes.

    The student alone comes first, then the methods of several seeds and those of one, each by falling mean Dice, then
    the teacher. A method is compared with the student alone on its own seeds. A student alone that was trained for
    longer than the methods is the control of equal time, which gets a column of its own.

    Args:
        records: evaluation records, see :func:`load_records`; those of other protocols are left out.
        steps: the JSON file of ``benchmarks/steps.py``; without it the columns of time are empty.
        protocol: name of the records' protocol.

    Raises:
        ValueError: ``steps`` is no such record; names the file.
    """
    times = _read_steps(steps)
    study = study_of(records, protocol)
    if not study.arms:
        return NO_RESULTS
    names = list(study.arms[0].records[0]["classes"].values())
    header = (
        *("method", "seeds", *(f"Dice {name}" for name in names), "Dice mean", "HD95 mean (mm)"),
        *("Dice minus student alone, paired", "verdict"),
        *([f"minus {method_label(study.longer.arm, study)}"] if study.longer else []),
        *("ms per step", "extra ms"),
    )
    rows = [
        _row(method_label(arm, study), arm, names, _outcome(study, NONE, "reference"), times) for arm in study.alone
    ]
    rows += [_method_row(method, study, names, times) for method in (study.longer, *study.several) if method]
    if study.single:
        rows.append(("_1 seed each:_", *[""] * (len(header) - 1)))
        rows += [_method_row(method, study, names, times) for method in study.single]
    rows += [_row(method_label(arm, study), arm, names, _outcome(study, NONE, NONE), {}) for arm in study.teachers]
    table = _table_markdown(Table(header, tuple(rows), n_text=1), bold_column=header.index("verdict"))
    return "\n\n".join([table, "\n".join(f"- {_escape(note)}" for note in _notes(study, times))])


# ---------------------------------------------------------------- what is compared


def study_of(records: Iterable[Record], protocol: str = DISTILLERS_PROTOCOL) -> Study:
    """Sort the records of a protocol into student alone, methods and teacher, and compare."""
    arms = group_arms(record for record in records if record["protocol"]["name"] == protocol)
    distilled = [arm for arm in arms if arm.method not in ("baseline", "teacher")]
    alone = [arm for arm in arms if arm.method == "baseline"]
    longer = _longer(alone, distilled)
    alone = [arm for arm in alone if arm is not longer]
    methods = [_compare(arm, alone, longer) for arm in distilled]
    methods.sort(key=lambda method: -(method.arm.summary("dice", "mean") or (0.0,))[0])
    return Study(
        alone=tuple(alone),
        longer=_compare(longer, alone, None, same_schedule=False) if longer else None,
        teachers=tuple(arm for arm in arms if arm.method == "teacher"),
        several=tuple(method for method in methods if not method.single),
        single=tuple(method for method in methods if method.single),
    )


def _longer(alone: Sequence[Arm], distilled: Sequence[Arm]) -> Arm | None:
    """Return the one student alone that was trained for more epochs than every method, beside another that was not."""
    most = max((_epochs(arm) for arm in distilled), default=math.inf)
    found = [arm for arm in alone if _epochs(arm) > most]
    return found[0] if len(found) == 1 and len(alone) > 1 else None


def _epochs(arm: Arm) -> int:
    """The epochs of the arm's trainings, 0 if no record tells."""
    return max((record["training"].get("epochs", 0) for record in arm.records if record["training"]), default=0)


def _compare(arm: Arm, alone: Sequence[Arm], longer: Arm | None, same_schedule: bool = True) -> Method:
    """Compare a method with the student alone, and with the one that was trained for longer."""
    if not alone:
        return Method(arm, None, None)
    baseline = max(alone, key=lambda other: _likeness(other, arm))
    try:
        difference = difference_on_seeds(baseline, arm, same_schedule=same_schedule)
        return Method(arm, difference, None, difference_on_seeds(longer, arm, same_schedule=False) if longer else None)
    except PairRefused as error:
        return Method(arm, None, f"{arm.method} is not compared with the {ALONE}: {error}.")


def _read_steps(path: str | Path | None) -> dict[str, Any]:
    """Return the record of the step times, checked; empty if there is none."""
    if path is None or not Path(path).is_file():
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        methods = {
            name: {key: float(entry[key]) for key in ("ms", "extra_ms", "ratio")}
            for name, entry in content["methods"].items()
        }
        device = _cpu_text(content["device"])
        known = {"rounds": int(content["rounds"]), "teacher_forward_ms": float(content["teacher_forward_ms"])}
        batch = " x ".join(str(int(length)) for length in content["batch"])
        return {**known, "methods": methods, "device": device, "batch": batch, "precision": str(content["precision"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{path}' is no record of step times: {type(error).__name__}: {error}") from error


# ---------------------------------------------------------------- rows and notes


def _outcome(study: Study, difference: str, verdict: str, equal_time: str = NONE) -> tuple[str, ...]:
    """The cells that compare, of which the last is there with a control of equal time only."""
    return (difference, verdict, equal_time) if study.longer else (difference, verdict)


def _row(
    label: str, arm: Arm, names: Sequence[str], outcome: tuple[str, ...], times: Mapping[str, Any]
) -> tuple[str, ...]:
    step = times.get("methods", {}).get(arm.method)
    missed = sum(arm.missed(name) for name in names)
    return (
        *(label, str(len(arm.records))),
        *(_mean_sd_text(arm, "dice", name, 4) for name in (*names, "mean")),
        _mean_sd_text(arm, "hd95_mm", "mean", 2) + (f" ({missed} missed)" if missed else ""),
        *outcome,
        f"{step['ms']:.0f}" if step else NONE,
        f"{step['extra_ms']:+.0f} ({step['ratio']:.2f}x)" if step and arm.method != "baseline" else NONE,
    )


def _method_row(method: Method, study: Study, names: Sequence[str], times: Mapping[str, Any]) -> tuple[str, ...]:
    found, label = method.difference, method_label(method.arm, study)
    difference = NONE if found is None else _difference_text(found)
    equal_time = NONE
    if method.equal_time is not None:
        judged = "1 seed" if method.equal_time.seed_noise is None else method.equal_time.verdict
        equal_time = f"{_difference_text(method.equal_time)}, {judged}"
    return _row(label, method.arm, names, _outcome(study, difference, method.verdict, equal_time), times)


def _difference_text(found: PairedDifference) -> str:
    return f"{found.mean:+.4f} ({found.interval[0]:+.4f} to {found.interval[1]:+.4f})"


def method_label(arm: Arm, study: Study) -> str:
    """The method; the longer student alone with its epochs, others with their schedule where there are several."""
    name = ALONE if arm.method == "baseline" else arm.method
    if study.longer and arm is study.longer.arm:
        return f"{name}, {_epochs(arm)} epochs"
    several = sum(other.method == arm.method for other in (*study.alone, *(m.arm for m in study.methods))) > 1
    return f"{name}, schedule {(arm.schedule_hash or 'unknown')[:8]}" if several else name


def _notes(study: Study, times: Mapping[str, Any]) -> Iterator[str]:
    yield _data_note(study.arms)
    if epochs := _epochs_text(study):
        yield epochs
    names = study.arms[0].records[0]["classes"].values()
    if any(arm.missed(name) for arm in study.arms for name in names):
        yield "Missed: the class is in the label and nothing was predicted, counted over all seeds, cases and classes."
    compared = [method for method in study.methods if method.difference]
    if compared:
        yield (
            "Difference: on equal cases and seeds, in brackets the 95 % bootstrap interval over cases. Gain or loss: "
            "the interval excludes 0 and the difference exceeds the seed noise, 2 * sqrt((SD_a^2 + SD_b^2) / seeds)."
        )
        yield _luck_note(compared)
    if study.longer:
        yield _longer_note(study.longer, study)
    if not study.alone:
        yield f"No {ALONE} recorded to compare with."
    yield from (method.refused for method in study.methods if method.refused)
    for arm in study.arms:
        if arm.superseded:
            yield f"{arm.method}: the newest evaluation of each seed is shown, not {', '.join(arm.superseded)}."
    yield _time_note(times)


def _epochs_text(study: Study) -> str:
    """How long students and teacher were trained, as far as their records tell."""
    found: dict[str, set[int]] = {"students": set(), "the teacher": set()}
    for arm in (*study.alone, *(method.arm for method in study.methods), *study.teachers):
        trainings = [record["training"] for record in arm.records if record["training"]]
        group = "the teacher" if arm.method == "teacher" else "students"
        found[group] |= {training["epochs"] for training in trainings if "epochs" in training}
    texts = [f"{who} {' or '.join(map(str, sorted(epochs)))}" for who, epochs in found.items() if epochs]
    return f"Epochs of training: {', '.join(texts)}." if texts else ""


def _longer_note(longer: Method, study: Study) -> str:
    """What the control of equal time is."""
    ratio = _epochs(longer.arm) / max(_epochs(method.arm) for method in study.methods)
    return (
        f"{method_label(longer.arm, study)}: {ratio:g} times the steps, the control of equal time for a method whose "
        f"step costs {ratio:g} times the student's. Where time to train is short, a method has to beat this control "
        "as well."
    )


def _luck_note(compared: Sequence[Method]) -> str:
    """How many differences of no meaning are to be expected among so many comparisons."""
    from scipy.stats import t

    judged = [method for method in compared if method.difference and method.difference.seed_noise is not None]
    # without any effect a difference passes two standard errors this often, see seed_noise
    chances = [2 * float(t.sf(2.0, 2 * len(method.arm.records) - 2)) for method in judged]
    text = f"{len(compared)} comparisons with one and the same {ALONE}, whose luck moves all of them together."
    if judged:
        text += (
            f" Of the {len(judged)} with several seeds about {sum(chances):.1f} would pass the seed noise by luck if "
            "no method had any effect, so a single gain or loss is weak evidence."
        )
    if len(judged) < len(compared):
        text += f" The {len(compared) - len(judged)} with 1 seed have no known seed noise, so they get no verdict."
    return text


def _time_note(times: Mapping[str, Any]) -> str:
    if not times:
        return "No time per step recorded."
    return (
        f"Time of one training step on {times['device']}, batch {times['batch']}, {times['precision']}: median of "
        f"{times['rounds']} rounds through all methods; the extra is taken within each round. The teacher's forward "
        f"alone takes {times['teacher_forward_ms']:.0f} ms."
    )
