"""Methods trained on one domain, such as a camera, and scored on several: their records, a row per method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai_kd.visualize.statistics import Arm, Record, group_arms, mean_and_sd

__all__ = ["DomainRow", "domain_rows", "of_bundle", "pixel_values", "rows_of", "targets_of"]


@dataclass(frozen=True)
class DomainRow:
    """A method with one network and one schedule, as it was scored on each domain.

    Attributes:
        label: the method; also its network, schedule or split where rows of one method differ in that.
        scored: its records by the protocol's name, in the order of the domains; a domain that it was not scored on is
            absent. The Dice of a case is that of its pixels.
    """

    label: str
    scored: Mapping[str, Arm]

    @property
    def arm(self) -> Arm:
        """The records on the first of its domains: method, network and schedule are those of all."""
        return next(iter(self.scored.values()))

    @property
    def records(self) -> list[Record]:
        """The records on all domains."""
        return [record for arm in self.scored.values() for record in arm.records]

    def dice(self, protocol: str) -> list[float]:
        """The mean Dice over images of each seed on one domain, without seeds that have none."""
        return pixel_values(self.scored[protocol], "mean", "dice") if protocol in self.scored else []

    def target_dice(self, targets: Iterable[str]) -> list[float]:
        """The mean over targets of the mean Dice of each seed; seeds without a Dice on every target are left out."""
        by_target = [
            {record["seed"]: record["summary"]["pixels"]["mean"]["dice"] for record in self.scored[name].records}
            if name in self.scored
            else {}
            for name in targets
        ]
        seeds = [seed for seed in by_target[0] if all(found.get(seed) is not None for found in by_target)]
        return [sum(found[seed] for found in by_target) / len(by_target) for seed in seeds]


def domain_rows(
    records: Iterable[Record], bundle: str, domains: Mapping[str, str], controls: Sequence[str] = ("baseline",)
) -> list[DomainRow]:
    """Return the methods of a bundle in the order of :func:`domains_table`.

    Raises:
        ValueError: see :func:`domains_table`.
    """
    return rows_of(of_bundle(records, bundle, domains), domains, controls)


def rows_of(known: Sequence[Record], domains: Mapping[str, str], controls: Sequence[str]) -> list[DomainRow]:
    """Return the rows of the records that :func:`of_bundle` found, see :func:`domain_rows`."""
    found: dict[tuple[Any, ...], dict[str, Arm]] = {}
    for protocol in domains:
        for arm in group_arms(_of_one_section([r for r in known if r["protocol"]["name"] == protocol])):
            found.setdefault((arm.method, *_made_by(arm)), {})[protocol] = arm
    arms = [next(iter(scored.values())) for scored in found.values()]
    rows = [DomainRow(_label(arm, arms), scored) for arm, scored in zip(arms, found.values(), strict=True)]
    references = {_made_by(arm) for arm in arms if arm.method in controls}
    return sorted(rows, key=lambda row: _order(row, controls, references, targets_of(domains)))


def of_bundle(records: Iterable[Record], bundle: str, domains: Mapping[str, str]) -> list[Record]:
    """Return the records of a bundle on the domains, checked; the Dice of their cases becomes that of pixels."""
    if len(domains) < 2:
        raise ValueError(f"domains are the source and at least one target, got {', '.join(domains) or 'none'}")
    return [_by_pixels(r) for r in records if r["bundle"]["name"] == bundle and r["protocol"]["name"] in domains]


def _by_pixels(record: Record) -> Record:
    where = f"{record['run_id']} ({record['protocol']['name']})"
    if "pixels" not in record["summary"] or not all("pixels" in case for case in record["cases"]):
        raise ValueError(f"{where} has no pixel scores; evaluate with monai_kd.handlers.PixelScores behind CaseScores")
    if len(record["classes"]) != 1:
        raise ValueError(f"{where} has the classes {', '.join(record['classes'].values())}; pixel scores are of one")
    (name,) = record["classes"].values()
    return {**record, "cases": [{**case, "dice": {name: case["pixels"]["dice"]}} for case in record["cases"]]}


def _of_one_section(records: Sequence[Record]) -> list[Record]:
    sections = Counter(record["protocol"]["section"] for record in records)
    shown = min(sections, key=lambda section: (-sections[section], section), default="")
    return [record for record in records if record["protocol"]["section"] == shown]


def _made_by(arm: Arm) -> tuple[Any, ...]:
    return arm.network, arm.parameters, arm.schedule_hash, arm.split_hash


def _label(arm: Arm, arms: Sequence[Arm]) -> str:
    same = [other for other in arms if other.method == arm.method]
    parts = [arm.method, *([arm.network] if len({other.network for other in same}) > 1 else [])]
    for title, field in (("schedule", "schedule_hash"), ("split", "split_hash")):
        if len({getattr(other, field) for other in same}) > 1:
            parts.append(f"{title} {(getattr(arm, field) or 'unknown')[:8]}")
    return ", ".join(parts)


def _order(
    row: DomainRow, controls: Sequence[str], references: set[tuple[Any, ...]], targets: Sequence[str]
) -> tuple[int, float, str]:
    if row.arm.method in controls:
        return 0, controls.index(row.arm.method), row.label
    if references and _made_by(row.arm) not in references:
        return 1, -row.arm.parameters, row.label
    dice = row.target_dice(targets)
    return 2, -mean_and_sd(dice)[0] if dice else 0.0, row.label


def targets_of(domains: Mapping[str, str]) -> list[str]:
    """Return the protocols of all domains but the first, which is the source."""
    return list(domains)[1:]


def pixel_values(arm: Arm, kind: str, metric: str) -> list[float]:
    """One number of each seed that has it; a record may be without clDice."""
    values = (record["summary"]["pixels"][kind].get(metric) for record in arm.records)
    return [value for value in values if value is not None]
