"""Networks compared on the same data and recipe: what their evaluation records say, as one table per set of data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from monai_kd.visualize.distillers import _difference_text
from monai_kd.visualize.statistics import Arm, PairRefused, Record, difference_on_seeds, group_arms
from monai_kd.visualize.tables import (
    NO_RESULTS,
    NONE,
    Table,
    _data_note,
    _escape,
    _mean_sd_text,
    _optional,
    _percent,
    _table_markdown,
)

__all__ = ["by_protocol", "networks_table"]


def networks_table(records: Iterable[Record], bundle: str, controls: Sequence[str] = ("baseline",)) -> str:
    """Return Markdown that compares the networks of a bundle with its controls: a table per protocol, with notes.

    The controls come first, then the other networks by falling mean Dice. A network is compared with a control on its
    own seeds, case by case; recipe, scoring and cases must be equal, network and schedule hash need not.

    Args:
        records: evaluation records, see :func:`load_records`; those of other bundles are left out.
        bundle: name of the bundle.
        controls: the methods that the others are compared with, in this order; parameters are shown as a share of the
            last one's.
    """
    protocols = by_protocol(records, bundle, controls)
    return "\n\n".join(_protocol_markdown(name, arms, controls) for name, arms in protocols.items()) or NO_RESULTS


def by_protocol(records: Iterable[Record], bundle: str, controls: Sequence[str]) -> dict[str, list[Arm]]:
    """Return the networks of a bundle in the order of their table, by protocol; the one of most records comes first.

    Only what was scored alike stands together: the title names the section where it is not the test cases, and the
    scoring where a protocol has several.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record["bundle"]["name"] == bundle:
            protocol = record["protocol"]
            key = (protocol["name"], protocol["section"], protocol.get("scoring_hash") or "unknown")
            groups.setdefault(key, []).append(record)
    found = {}
    for key in sorted(groups, key=lambda key: (-len(groups[key]), *key)):
        several = sum(other[:2] == key[:2] for other in groups) > 1
        arms = sorted(group_arms(groups[key]), key=lambda arm: _order(arm, controls))
        found[_title(*key, several)] = arms
    return found


def _title(name: str, section: str, scoring: str, several: bool) -> str:
    parts = [
        name,
        *([] if section == "test" else [f"{section} section"]),
        *([f"scoring {scoring[:8]}"] if several else []),
    ]
    return ", ".join(parts)


def _protocol_markdown(name: str, arms: Sequence[Arm], controls: Sequence[str]) -> str:
    known = [arm for control in controls for arm in arms if arm.method == control]
    classes = list(arms[0].records[0]["classes"].values())
    header = (
        *("network", "parameters", f"of {known[-1].method}" if known else "share", "seeds"),
        *(f"Dice {title}" for title in classes),
        *("Dice mean", "HD95 mean (mm)", "CPU ms per case"),
        *(cell for control in known for cell in (f"minus {control.method}, paired", "verdict")),
    )
    refused: list[str] = []
    rows = tuple(_row(arm, classes, known, refused) for arm in arms)
    notes = [*_notes(arms, known), *refused]
    return "\n\n".join(
        [f"**{name}**", _table_markdown(Table(header, rows, n_text=1)), "\n".join(f"- {_escape(n)}" for n in notes)]
    )


def _order(arm: Arm, controls: Sequence[str]) -> tuple[int, float, str]:
    rank = controls.index(arm.method) if arm.method in controls else len(controls)
    return rank, -(arm.summary("dice", "mean") or (0.0,))[0], arm.method


def _row(arm: Arm, classes: Sequence[str], controls: Sequence[Arm], refused: list[str]) -> tuple[str, ...]:
    compared: list[str] = []
    for control in controls:
        compared += _comparison(arm, control, refused)
    missed = sum(arm.missed(name) for name in classes)
    return (
        *(arm.method, f"{arm.parameters:,}"),
        *(_percent(arm.parameters / controls[-1].parameters) if controls else NONE, str(len(arm.records))),
        *(_mean_sd_text(arm, "dice", name, 4) for name in (*classes, "mean")),
        _mean_sd_text(arm, "hd95_mm", "mean", 2) + (f" ({missed} missed)" if missed else ""),
        _optional(arm.cpu_ms, lambda ms: f"{ms:.0f}" if ms >= 10 else f"{ms:.1f}"),
        *compared,
    )


def _comparison(arm: Arm, control: Arm, refused: list[str]) -> tuple[str, str]:
    """The two cells that compare a network with a control; why they may not be compared is added to ``refused``."""
    if arm is control:
        return NONE, "reference"
    try:
        found = difference_on_seeds(control, arm, same_network=False)
    except PairRefused as error:
        refused.append(f"{arm.method} is not compared with {control.method}: {error}.")
        return NONE, "refused"
    verdict = "1 seed" if found.seed_noise is None else found.verdict
    return _difference_text(found), verdict


def _notes(arms: Sequence[Arm], controls: Sequence[Arm]) -> Iterator[str]:
    yield _data_note(arms)
    records = [record for arm in arms for record in arm.records]
    epochs = {record["training"]["epochs"] for record in records if record["training"]}
    recipes = {record.get("recipe_hash") for record in records}
    if len(epochs) == len(recipes) == 1:
        yield f"Epochs of training: {epochs.pop()} of the same data, patches, loss and optimizer."
    elif len(recipes) > 1:
        yield f"These networks were trained by {len(recipes)} recipes; only those of one are compared."
    cpus = sorted({cpu for arm in arms for cpu in arm.cpus})
    if cpus:
        yield f"CPU times on {'; '.join(cpus)}, float32: median over cases and records, one case at a time."
    if any(arm.missed(name) for arm in arms for name in arm.records[0]["classes"].values()):
        yield (
            "Missed: the class is in the label and nothing was predicted, counted over all seeds, cases and classes; "
            "such a case enters with Dice 0 and the image diagonal as HD95."
        )
    if controls:
        yield (
            "Difference: on equal cases and seeds, in brackets the 95 % bootstrap interval over cases. Gain or loss: "
            "the interval excludes 0 and the difference exceeds the seed noise, 2 * sqrt((SD_a^2 + SD_b^2) / seeds)."
        )
    for arm in arms:
        if arm.superseded:
            yield f"{arm.method}: the newest evaluation of each seed is shown, not {', '.join(arm.superseded)}."
