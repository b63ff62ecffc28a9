"""Is a difference between two trainings more than luck? Means over seeds, paired differences, one verdict rule.

Everything here reads evaluation records (the ``run.json`` of a finished evaluation, see
:func:`monai_kd.visualize.records.load_records`) and numpy; nothing draws.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Arm",
    "PairRefused",
    "PairedDifference",
    "Record",
    "bootstrap_interval",
    "difference_on_seeds",
    "group_arms",
    "judge",
    "mean_and_sd",
    "paired_difference",
    "seed_noise",
]

Record = Mapping[str, Any]

ONE_SEED = "1 seed: no seed noise known"

# What two arms must share before their difference means "the same student, with and without distillation".
_SHARED = {
    "protocol hash": ("protocol", "hash"),
    "section": ("protocol", "section"),
    "split_hash": ("protocol", "split_hash"),
    "schedule_hash": ("schedule_hash",),
    "network": ("network", "target"),
    "parameters": ("network", "parameters"),
    "classes": ("classes",),
}
# What two networks must share before their difference means "another network on the same task".
_SHARED_BY_NETWORKS = {
    "scoring hash": ("protocol", "scoring_hash"),
    "section": ("protocol", "section"),
    "split_hash": ("protocol", "split_hash"),
    "recipe_hash": ("recipe_hash",),
    "classes": ("classes",),
}


class PairRefused(ValueError):
    """Two groups of records that must not be compared; the message says why and which runs."""


@dataclass(frozen=True)
class PairedDifference:
    """The difference b - a in mean Dice over the same cases and seeds; a is the control, b the treatment.

    Attributes:
        mean: mean over cases of the per-case differences, which is also the difference of the two seed means.
        interval: bootstrap interval of ``mean`` over cases.
        confidence: coverage of ``interval``, e.g. 0.95.
        a_dice, b_dice: Dice per case, mean over classes and seeds, 0 to 1.
        seeds: the seeds that both arms share, ascending; ``(None,)`` if the seed is unknown.
        sd_a, sd_b: SD (n - 1) over seeds of each arm's mean Dice, None with one seed.
        seed_noise: see :func:`seed_noise`, None with one seed.
        verdict: see :func:`judge`.
    """

    mean: float
    interval: tuple[float, float]
    confidence: float
    a_dice: dict[str, float]
    b_dice: dict[str, float]
    seeds: tuple[int | None, ...]
    sd_a: float | None
    sd_b: float | None
    seed_noise: float | None
    verdict: str

    @property
    def n_cases(self) -> int:
        """How many cases were compared."""
        return len(self.a_dice)

    @property
    def differences(self) -> dict[str, float]:
        """The difference b - a per case, averaged over seeds."""
        return {case: self.b_dice[case] - self.a_dice[case] for case in self.a_dice}


def bootstrap_interval(
    differences: Sequence[float] | NDArray[np.float64],
    confidence: float = 0.95,
    resamples: int = 10000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean: cases are redrawn with replacement, the same way for the same seed.

    Args:
        differences: one finite number per case, at least 2.
        confidence: coverage of the interval, between 0 and 1.
        resamples: how often the cases are redrawn.
        seed: seed of the redrawing (not of a training).

    Raises:
        ValueError: fewer than 2 differences, one that is not finite, or a setting out of range.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"an interval needs a flat list of at least 2 differences, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"differences must be finite, got {values[~np.isfinite(values)][0]}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, e.g. 0.95, got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    generator = np.random.default_rng(seed)
    means = values[generator.integers(0, values.size, (resamples, values.size))].mean(axis=1)
    low, high = np.quantile(means, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def seed_noise(sd_a: float, sd_b: float, n_seeds: int) -> float:
    """Twice the standard error of a difference of two means: ``2 * sqrt((sd_a**2 + sd_b**2) / n_seeds)``.

    Why this one: two standard errors is the usual bar, and it counts how few seeds there are. Without any real effect
    a difference of either sign passes it in 18 % (2 seeds), 12 % (3), 8 % (5) of the comparisons (Student's t with
    ``2 * n_seeds - 2`` degrees of freedom, 2 standard errors). The pooled SD ``sqrt((sd_a**2 + sd_b**2) / 2)``, the
    other candidate, would be passed in 42 %, 29 % and 15 %, and does not fall as seeds are added. The arms count as
    independent although they share seeds: an equal initialization does not keep two trainings together.
    """
    return 2.0 * float(np.sqrt((sd_a**2 + sd_b**2) / n_seeds))


def judge(mean: float, interval: tuple[float, float], noise: float | None) -> str:
    """The one verdict rule: "gain", "loss", "within noise", or "1 seed: no seed noise known".

    A gain needs both: the interval over cases lies above 0, **and** the difference is larger than the seed noise.
    A loss is the mirror image. Anything else is within noise. Without a known seed noise there is no verdict.
    """
    if noise is None:
        return ONE_SEED
    if interval[0] > 0.0 and mean > noise:
        return "gain"
    if interval[1] < 0.0 and -mean > noise:
        return "loss"
    return "within noise"


def paired_difference(
    a_records: Iterable[Record],
    b_records: Iterable[Record],
    confidence: float = 0.95,
    resamples: int = 10000,
    same_schedule: bool = True,
    same_network: bool = True,
) -> PairedDifference:
    """Compare two arms case by case: control ``a`` (baseline) and treatment ``b`` (distilled), one record a seed.

    A case's Dice is the mean over its classes. A class that every record leaves unscored (absent from the label and
    from all predictions) is left out; if only some records leave it empty, those count 1 and the false positives
    of the others count as recorded, so that both arms are averaged over the same classes.

    Args:
        a_records, b_records: evaluation records.
        confidence, resamples: see :func:`bootstrap_interval`.
        same_schedule: False compares trainings of different length, such as two of equal time; nothing else may differ.
        same_network: False compares networks that were trained by one recipe; each may go through a volume in its own
            way (``recipe_hash`` and ``protocol.scoring_hash`` must be equal in place of schedule and protocol).

    Raises:
        PairRefused: the arms differ in protocol, section, split_hash, schedule_hash, network, classes, seeds or cases,
            the schedule is unknown, a seed occurs twice in an arm, or fewer than 2 cases are scored.
        ValueError: both ``same_schedule`` and ``same_network`` are False: nothing would be comparable.
    """
    a, b = _by_seed(a_records, "a"), _by_seed(b_records, "b")
    _refuse_unlike([*a, *b], _what_to_share(same_schedule, same_network))
    seeds = tuple(record["seed"] for record in a)
    if seeds != tuple(record["seed"] for record in b):
        raise PairRefused(f"seeds differ: {_seeds_text(a)} in a, {_seeds_text(b)} in b")
    cases, dice = _case_dice([*a, *b])
    if len(cases) < 2:
        raise PairRefused(f"a paired difference needs at least 2 scored cases, got {len(cases)}")
    a_dice, b_dice = dice[: len(a)], dice[len(a) :]
    (_, sd_a), (_, sd_b) = mean_and_sd(a_dice.mean(axis=1)), mean_and_sd(b_dice.mean(axis=1))
    noise = None if sd_a is None or sd_b is None else seed_noise(sd_a, sd_b, len(seeds))
    differences = b_dice.mean(axis=0) - a_dice.mean(axis=0)
    mean = float(differences.mean())
    interval = bootstrap_interval(differences, confidence, resamples)
    return PairedDifference(
        mean=mean,
        interval=interval,
        confidence=confidence,
        a_dice=dict(zip(cases, a_dice.mean(axis=0).tolist(), strict=True)),
        b_dice=dict(zip(cases, b_dice.mean(axis=0).tolist(), strict=True)),
        seeds=seeds,
        sd_a=sd_a,
        sd_b=sd_b,
        seed_noise=noise,
        verdict=judge(mean, interval, noise),
    )


def mean_and_sd(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float | None]:
    """Mean and sample SD (n - 1) of at least one value; the SD of one value is None."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None


def _by_seed(records: Iterable[Record], side: str) -> list[Record]:
    ordered = sorted(records, key=_seed_order)
    if not ordered:
        raise PairRefused(f"no records in {side}")
    for first, second in pairwise(ordered):
        if first["seed"] == second["seed"]:
            raise PairRefused(f"seed {first['seed']} occurs twice in {side}: {first['run_id']}, {second['run_id']}")
    return ordered


def _seed_order(record: Record) -> tuple[bool, int]:
    """Ascending, unknown seeds first."""
    return record["seed"] is not None, record["seed"] or 0


def _seeds_text(records: Iterable[Record]) -> str:
    return ", ".join("unknown" if record["seed"] is None else str(record["seed"]) for record in records)


def _what_to_share(same_schedule: bool, same_network: bool) -> Mapping[str, tuple[str, ...]]:
    if not same_network and not same_schedule:
        raise ValueError("networks are compared on the same schedule: give only one of same_schedule, same_network")
    if not same_network:
        return _SHARED_BY_NETWORKS
    return {name: path for name, path in _SHARED.items() if same_schedule or name != "schedule_hash"}


def _refuse_unlike(records: Sequence[Record], shared: Mapping[str, tuple[str, ...]]) -> None:
    first = records[0]
    known = "recipe_hash" if "recipe_hash" in shared else "schedule_hash"
    for record in records:
        if record.get(known) is None:
            raise PairRefused(f"{known} is unknown in {record['run_id']}")
    for record in records:
        for name, path in shared.items():
            expected, got = _lookup(first, path), _lookup(record, path)
            if expected != got:
                raise PairRefused(
                    f"{name} differs: {_short(expected)} in {first['run_id']}, {_short(got)} in {record['run_id']}"
                )


def _lookup(record: Record, path: Iterable[str]) -> Any:
    value: Any = record
    for key in path:
        value = value[key]
    return value


def _short(value: Any) -> str:
    """A hash by its first 12 digits, anything else as it is."""
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{13,}", text) else text


def _case_dice(records: Sequence[Record]) -> tuple[list[str], NDArray[np.float64]]:
    """Return the scored cases, ascending, and their mean Dice over classes as ``(records, cases)``."""
    names = list(records[0]["classes"].values())
    tables = [{entry["case"]: entry["dice"] for entry in record["cases"]} for record in records]
    for record, table in zip(records, tables, strict=True):
        _refuse_other_cases(records[0]["run_id"], tables[0].keys(), record["run_id"], table.keys())
    cases = sorted(tables[0])
    dice = np.array([[[table[case][name] for name in names] for case in cases] for table in tables], dtype=np.float64)
    present: NDArray[np.bool_] = np.any(~np.isnan(dice), axis=0)  # (cases, classes): scored by at least one record
    scored: NDArray[np.bool_] = np.any(present, axis=1)
    total = (np.where(np.isnan(dice), 1.0, dice) * present)[:, scored].sum(axis=2)  # (records, scored cases)
    return [case for case, keep in zip(cases, scored, strict=True) if keep], total / present[scored].sum(axis=1)


def _refuse_other_cases(first_id: str, first: Iterable[str], other_id: str, other: Iterable[str]) -> None:
    missing, extra = sorted(set(first) - set(other)), sorted(set(other) - set(first))
    if missing or extra:
        parts = [
            f"only in {run_id}: {_listed(names)}" for run_id, names in ((first_id, missing), (other_id, extra)) if names
        ]
        raise PairRefused("cases differ; " + "; ".join(parts))


def _listed(names: Sequence[str], most: int = 10) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


@dataclass(frozen=True)
class Arm:
    """The records of one method with one network and one schedule: one record per seed, ascending.

    ``superseded`` names older evaluations of a seed that was evaluated again; they count nowhere.
    """

    method: str
    bundle: str
    network: str
    parameters: int
    schedule_hash: str | None
    split_hash: str | None
    records: tuple[Record, ...]
    superseded: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """E.g. ``distilled (student)``."""
        return f"{self.method} ({self.bundle})"

    @property
    def seeds_text(self) -> str:
        """The seeds as text, e.g. ``0, 1, 2``."""
        return _seeds_text(self.records)

    def summary(self, *path: str) -> tuple[float, float | None] | None:
        """Mean and SD over seeds of one entry of the summaries, e.g. ``("dice", "mean")``; None if never scored."""
        values = [value for record in self.records if (value := _lookup(record["summary"], path)) is not None]
        return mean_and_sd(values) if values else None

    def missed(self, name: str) -> int:
        """How often a class that is in the label was missed altogether, over all seeds and cases."""
        return sum(int(record["summary"]["missed"][name]) for record in self.records)

    @property
    def cpu_ms(self) -> float | None:
        """Milliseconds per case on the CPU, median over records; None if no record was timed on a CPU."""
        times = [1000.0 * record["time"]["inference_s_per_case"] for record in self._on_cpu()]
        return float(np.median(times)) if times else None

    @property
    def cpus(self) -> tuple[str, ...]:
        """The CPUs behind ``cpu_ms``, e.g. ``("AMD EPYC, 2 threads",)``."""
        return tuple(sorted({_cpu_text(record["device"]) for record in self._on_cpu()}))

    @property
    def training_minutes(self) -> float | None:
        """Minutes of training, mean over the records that carry their training."""
        times = [record["training"]["time"]["total_s"] / 60.0 for record in self.records if record["training"]]
        return float(np.mean(times)) if times else None

    def _on_cpu(self) -> list[Record]:
        return [record for record in self.records if record["device"]["type"] == "cpu"]


def group_arms(records: Iterable[Record]) -> list[Arm]:
    """Sort the records of one protocol into arms: teacher, baseline, distilled, then the other methods by name.

    Of several evaluations of one seed the newest counts (by its start); the others are named in
    ``superseded``, so that an evaluation that was repeated does not pass for another seed.
    """
    found: dict[tuple[Any, ...], dict[int | None, list[Record]]] = {}
    for record in records:
        found.setdefault(_arm_key(record), {}).setdefault(record["seed"], []).append(record)
    arms = []
    for key, seeds in found.items():
        newest_first = [sorted(same, key=_age, reverse=True) for same in seeds.values()]
        kept = tuple(sorted((same[0] for same in newest_first), key=_seed_order))
        superseded = tuple(sorted(record["run_id"] for same in newest_first for record in same[1:]))
        arms.append(Arm(*(*key, kept, superseded)))
    return sorted(arms, key=_arm_order)


def _arm_key(record: Record) -> tuple[Any, ...]:
    network = record["network"]
    return (
        record["method"],
        record["bundle"]["name"],
        network["target"],
        network["parameters"],
        record["schedule_hash"],
        record["protocol"].get("split_hash"),  # absent where the training is unknown
    )


def _arm_order(arm: Arm) -> tuple[Any, ...]:
    known = ("teacher", "baseline", "distilled")
    rank = known.index(arm.method) if arm.method in known else len(known)
    hashes = arm.schedule_hash or "", arm.split_hash or ""
    return arm.bundle if rank else "", rank, arm.method, arm.network, -arm.parameters, *hashes


def _age(record: Record) -> tuple[str, str]:
    """The digits of the start if it is recorded, else of the time that ends the run id: later sorts higher."""
    stamp = re.search(r"\d{8}-\d{6}$", record["run_id"])
    started = record.get("started") or (stamp.group() if stamp else "")
    return re.sub(r"\D", "", started)[:14], record["run_id"]


def _cpu_text(device: Mapping[str, Any]) -> str:
    return f"{device['name']}, {device['threads']} thread{'' if device['threads'] == 1 else 's'}"


def difference_on_seeds(
    control: Arm, arm: Arm, same_schedule: bool = True, same_network: bool = True
) -> PairedDifference:
    """Compare an arm with a control, of whose seeds only the arm's own count; see :func:`paired_difference`.

    Raises:
        PairRefused: the control lacks a seed, or the two must not be compared.
    """
    seeds = {record["seed"] for record in arm.records}
    same = [record for record in control.records if record["seed"] in seeds]
    if len(same) < len(seeds):
        raise PairRefused(f"seeds differ: {control.seeds_text} in {control.method}, {arm.seeds_text} in {arm.method}")
    return paired_difference(same, arm.records, same_schedule=same_schedule, same_network=same_network)
