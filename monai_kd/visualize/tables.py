"""Result tables: what the records of finished evaluations say, grouped so that only what may be compared is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from monai_kd.visualize.statistics import Arm, PairedDifference, PairRefused, Record, group_arms, paired_difference

__all__ = ["Comparison", "ResultGroup", "Table", "result_groups", "results_table"]

NO_RESULTS = "No results recorded."
NONE = "-"


# ---------------------------------------------------------------- what the tables say


@dataclass(frozen=True)
class Table:
    """A header and rows of plain text; the first ``n_text`` columns are words, the others are numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_text: int


@dataclass(frozen=True)
class Comparison:
    """A student, its teacher, its baseline, and either their paired difference or why the pair is refused."""

    student: Arm
    teacher: Arm | None
    baseline: Arm | None
    difference: PairedDifference | None
    refused: str | None

    @property
    def dice_ratio(self) -> float | None:
        """The student's mean Dice divided by the teacher's."""
        return _ratio(_dice(self.student), _dice(self.teacher))

    @property
    def parameter_ratio(self) -> float | None:
        """The student's parameters divided by the teacher's."""
        return _ratio(self.student.parameters, self.teacher.parameters if self.teacher else None)

    @property
    def speed_up(self) -> float | None:
        """How many times faster than the teacher; None unless both were timed on the same single kind of CPU."""
        return _speed_up(self.student, self.teacher)


@dataclass(frozen=True)
class ResultGroup:
    """Everything that may be compared: the records of one protocol (by its hash) and one section of its data."""

    protocol: str
    section: str
    title: str
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    results: Table
    students: Table | None
    notes: tuple[str, ...]


def result_groups(
    records: Iterable[Record],
    methods: Sequence[str] | None = None,
    bundles: Sequence[str] | None = None,
    sections: Sequence[str] | None = None,
) -> list[ResultGroup]:
    """Group records by protocol name, section and protocol hash; filters choose what is shown, None shows all.

    A hidden arm still serves as the teacher or the baseline that a shown arm is compared with.
    """
    ordered = sorted(records, key=_group_key)
    groups = []
    for key, members in groupby(ordered, key=_group_key):
        arms = group_arms(members)
        shown = [a for a in arms if _passes(a.method, methods) and _passes(a.bundle, bundles)]
        if shown and _passes(key[1], sections):
            groups.append(_result_group(arms, shown))
    return groups


def results_table(
    records: Iterable[Record],
    methods: Sequence[str] | None = None,
    bundles: Sequence[str] | None = None,
    sections: Sequence[str] | None = None,
) -> str:
    """Render the groups as markdown; filters as in :func:`result_groups`."""
    groups = result_groups(records, methods, bundles, sections)
    return "\n\n".join(_group_markdown(group) for group in groups) if groups else NO_RESULTS


def _group_key(record: Record) -> tuple[Any, ...]:
    protocol = record["protocol"]
    return protocol["name"], protocol["section"], protocol["hash"], tuple(record["classes"].values())


def _passes(value: str, allowed: Sequence[str] | None) -> bool:
    return allowed is None or value in allowed


def _result_group(arms: Sequence[Arm], shown: Sequence[Arm]) -> ResultGroup:
    protocol = arms[0].records[0]["protocol"]
    comparisons = tuple(_compare(arm, arms) for arm in shown if arm.method != "teacher")
    return ResultGroup(
        protocol=protocol["name"],
        section=protocol["section"],
        title=f"{protocol['name']}, {protocol['section']} section (protocol {protocol['hash'][:12]})",
        arms=tuple(shown),
        comparisons=comparisons,
        results=_results(shown, arms),
        students=_students(comparisons, arms) if comparisons else None,
        notes=tuple(_notes(shown, arms, comparisons)),
    )


def _compare(student: Arm, arms: Sequence[Arm]) -> Comparison:
    teacher = _teacher_of(student, arms)
    if student.method == "baseline":
        return Comparison(student, teacher, student, None, None)
    baselines = [arm for arm in arms if arm.method == "baseline" and arm.bundle == student.bundle]
    if not baselines:
        return Comparison(student, teacher, None, None, f"{student.label}: no baseline recorded to compare with.")
    baseline = max(baselines, key=lambda arm: _likeness(arm, student))
    try:
        return Comparison(student, teacher, baseline, paired_difference(baseline.records, student.records), None)
    except PairRefused as error:
        refused = f"{student.label} is not compared with {baseline.label}: {error}."
        return Comparison(student, teacher, baseline, None, refused)


def _likeness(arm: Arm, other: Arm) -> tuple[bool, ...]:
    fields = ("schedule_hash", "split_hash", "network", "parameters")
    return tuple(getattr(arm, field) == getattr(other, field) for field in fields)


def _teacher_of(student: Arm, arms: Sequence[Arm]) -> Arm | None:
    """The teacher arm whose weights the student learned from; else the only teacher arm there is."""
    teachers = [arm for arm in arms if arm.method == "teacher"]
    learned_from = _teacher_weights(student)
    matching = [arm for arm in teachers if learned_from & {r["network"]["weights_sha256"] for r in arm.records}]
    found = matching or teachers
    return found[0] if len(found) == 1 else None


def _teacher_weights(student: Arm) -> set[str]:
    """The sha256 of the weights a student learned from, as far as its records tell, of one teacher or several."""
    known = [record["teacher"] for record in student.records if record["teacher"]]
    teachers = [network for teacher in known for network in (teacher, *teacher.get("networks", {}).values())]
    return {teacher["weights_sha256"] for teacher in teachers if teacher.get("weights_sha256")}


# ---------------------------------------------------------------- rows


def _results(shown: Sequence[Arm], arms: Sequence[Arm]) -> Table:
    names = list(shown[0].records[0]["classes"].values())
    header = (
        *("method", "network (bundle)", "parameters", "seeds"),
        *(f"Dice {name}" for name in names),
        "Dice mean",
        *(f"HD95 {name} (mm)" for name in names),
        *("CPU ms per case", "speed-up", "training (min)"),
    )
    return Table(header, tuple(_result_row(arm, names, arms) for arm in shown), n_text=2)


def _result_row(arm: Arm, names: Sequence[str], arms: Sequence[Arm]) -> tuple[str, ...]:
    teacher = arm if arm.method == "teacher" else _teacher_of(arm, arms)
    return (
        _distinct_label(arm, arms),
        f"{arm.network} ({arm.bundle})",
        f"{arm.parameters:,}",
        str(len(arm.records)) + (" (unknown)" if arm.records[0]["seed"] is None else ""),
        *(_mean_sd_text(arm, "dice", name, 4) for name in names),
        _mean_sd_text(arm, "dice", "mean", 4),
        *(_mean_sd_text(arm, "hd95_mm", name, 2) + _missed_text(arm, name) for name in names),
        _optional(arm.cpu_ms, lambda ms: f"{ms:.0f}" if ms >= 10 else f"{ms:.1f}"),
        _optional(_speed_up(arm, teacher), lambda ratio: f"{ratio:.1f}x"),
        _optional(arm.training_minutes, lambda minutes: f"{minutes:.1f}"),
    )


def _students(comparisons: Sequence[Comparison], arms: Sequence[Arm]) -> Table:
    header = (
        *("student", "verdict", "Dice minus baseline, paired", "95 % interval", "seed noise", "cases", "seeds"),
        *("% of the teacher's Dice", "% of its parameters"),
    )
    return Table(header, tuple(_student_row(comparison, arms) for comparison in comparisons), n_text=2)


def _student_row(comparison: Comparison, arms: Sequence[Arm]) -> tuple[str, ...]:
    label = f"{_distinct_label(comparison.student, arms)} ({comparison.student.bundle})"
    ratios = (_percent(comparison.dice_ratio), _percent(comparison.parameter_ratio))
    found = comparison.difference
    if found is None:
        verdict = "reference" if comparison.student.method == "baseline" else "refused" if comparison.baseline else NONE
        return (label, verdict, NONE, NONE, NONE, NONE, NONE, *ratios)
    return (
        label,
        found.verdict,
        f"{found.mean:+.4f}",
        f"{found.interval[0]:+.4f} to {found.interval[1]:+.4f}",
        _optional(found.seed_noise, lambda noise: f"{noise:.4f}"),
        str(found.n_cases),
        comparison.student.seeds_text,
        *ratios,
    )


def _distinct_label(arm: Arm, arms: Sequence[Arm]) -> str:
    """The method, with its schedule and split where students of several stand in one table."""
    students = [other for other in arms if other.method != "teacher"]
    label = arm.method
    if arm in students and len({other.schedule_hash for other in students}) > 1:
        label += f", schedule {(arm.schedule_hash or 'unknown')[:8]}"
    if len({other.split_hash for other in arms}) > 1:
        label += f", split {(arm.split_hash or 'unknown')[:8]}"
    return label


def _mean_sd_text(arm: Arm, table: str, name: str, digits: int) -> str:
    found = arm.summary(table, name)
    if found is None:
        return NONE
    mean, sd = found
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def _missed_text(arm: Arm, name: str) -> str:
    missed = arm.missed(name)
    return f" ({missed} missed)" if missed else ""


def _optional(value: float | None, show: Callable[[float], str]) -> str:
    return NONE if value is None else show(value)


def _percent(ratio: float | None) -> str:
    return NONE if ratio is None else f"{100.0 * ratio:.1f} %"


def _dice(arm: Arm | None) -> float | None:
    found = arm.summary("dice", "mean") if arm else None
    return found[0] if found else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def _speed_up(arm: Arm, teacher: Arm | None) -> float | None:
    if teacher is None or len(teacher.cpus) != 1 or arm.cpus != teacher.cpus:
        return None
    return _ratio(teacher.cpu_ms, arm.cpu_ms)


# ---------------------------------------------------------------- notes


def _notes(shown: Sequence[Arm], arms: Sequence[Arm], comparisons: Sequence[Comparison]) -> Iterator[str]:
    yield _data_note(shown)
    cpus = sorted({cpu for arm in shown for cpu in arm.cpus})
    if cpus:
        yield f"CPU times on {'; '.join(cpus)}: median over records, one case at a time."
    if any(arm.missed(name) for arm in shown for name in arm.records[0]["classes"].values()):
        yield (
            "Missed: the class is in the label and nothing was predicted, counted over all seeds and cases; "
            "such a case enters with Dice 0 and the image diagonal as HD95."
        )
    if any(comparison.difference for comparison in comparisons):
        yield (
            "Verdict: gain or loss only if the bootstrap interval over cases (10,000 resamples) excludes 0 and the "
            "difference exceeds the seed noise, 2 * sqrt((SD_a^2 + SD_b^2) / seeds)."
        )
    schedules = {arm.schedule_hash for arm in arms if arm.method != "teacher"}
    if len(schedules) > 1:
        yield f"Students here were trained by {len(schedules)} schedules; rows of different schedules are not compared."
    yield from (comparison.refused for comparison in comparisons if comparison.refused)
    yield from _teacher_notes(comparisons, arms)
    for arm in shown:
        if arm.superseded:
            yield f"{arm.label}: the newest evaluation of each seed is shown, not {', '.join(arm.superseded)}."


def _data_note(arms: Sequence[Arm]) -> str:
    records = [record for arm in arms for record in arm.records]
    trained = [record["protocol"] for record in records if record["training"]]
    cases = _either(len(record["cases"]) for record in records)
    train, selection = (_either(protocol[key] for protocol in trained) for key in ("n_train", "n_validation"))
    source = f"; training on {train}, selection on {selection}" if trained else ""
    return f"{cases} cases{source}. Dice and HD95: mean over cases, then mean ± SD over seeds (no SD with one seed)."


def _either(counts: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(set(counts))))


def _teacher_notes(comparisons: Sequence[Comparison], arms: Sequence[Arm]) -> Iterator[str]:
    for comparison in comparisons:
        student, teacher = comparison.student, comparison.teacher
        if teacher is None:
            n_teachers = sum(arm.method == "teacher" for arm in arms)
            yield f"{student.label}: " + (
                f"which of the {n_teachers} teachers it learned from is not recorded, so no percent of a teacher."
                if n_teachers
                else "no teacher recorded under this protocol, so no percent of a teacher and no speed-up."
            )
            continue
        weights = {record["network"]["weights_sha256"] for record in teacher.records}
        if (learned_from := _teacher_weights(student)) and not learned_from & weights:
            other, own = (", ".join(sorted(digest[:12] for digest in found)) for found in (learned_from, weights))
            yield f"{student.label} learned from other teacher weights ({other}) than {teacher.label} has ({own})."
        if student.cpu_ms and teacher.cpu_ms and comparison.speed_up is None:
            yield f"{student.label}: no speed-up, as it was timed on another CPU than {teacher.label}."


# ---------------------------------------------------------------- markdown


def _group_markdown(group: ResultGroup) -> str:
    parts = [f"**{_escape(group.title)}**", _table_markdown(group.results)]
    if group.students:
        parts.append(_table_markdown(group.students, bold_column=1))
    parts.append("\n".join(f"- {_escape(note)}" for note in group.notes))
    return "\n\n".join(parts)


def _table_markdown(table: Table, bold_column: int | None = None) -> str:
    rule = ["---" if column < table.n_text else "---:" for column in range(len(table.header))]
    rows = [[_escape(cell) for cell in row] for row in table.rows]
    for row in rows:
        if bold_column is not None and row[bold_column] in ("gain", "loss", "within noise"):
            row[bold_column] = f"**{row[bold_column]}**"
    return "\n".join("| " + " | ".join(row) + " |" for row in [[_escape(c) for c in table.header], rule, *rows])


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
