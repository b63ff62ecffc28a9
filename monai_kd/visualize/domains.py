"""Methods trained on one domain, such as a camera, and scored on several: what their records say, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from monai_kd.visualize.distillers import _difference_text
from monai_kd.visualize.domain_rows import DomainRow, of_bundle, pixel_values, rows_of, targets_of
from monai_kd.visualize.statistics import Arm, PairedDifference, PairRefused, Record, difference_on_seeds, mean_and_sd
from monai_kd.visualize.tables import NO_RESULTS, NONE, Table, _either, _escape, _table_markdown

__all__ = ["domains_table"]

_MEANS = {
    **{"dice": "Dice", "iou": "IoU", "sensitivity": "sensitivity", "specificity": "specificity"},
    **{"auc": "AUC", "cldice": "clDice"},
}
_POOLED = {"dice": "pooled Dice", "auc": "pooled AUC"}


def domains_table(
    records: Iterable[Record],
    bundle: str,
    domains: Mapping[str, str],
    controls: Sequence[str] = ("baseline",),
    *,
    shifts: bool = False,
) -> str:
    """Return Markdown that compares methods on the domain that they were trained on and on others.

    The first table has a row per method and the Dice of each domain; methods are compared with each control on the
    images of all targets together, on their own seeds. Then follow the pixel scores of each domain, and notes.

    The controls come first, as they are given. Then come methods of another network or schedule than every control,
    such as a teacher, by falling parameters: nothing is compared with them. The others follow by falling mean Dice over
    the targets. Of each domain only the section of most records counts.

    A comparison is refused, with the reason in the notes, where :func:`paired_difference` refuses it on one target,
    where a target or a seed is absent, and where a seed has other weights on another domain. The Dice is that of
    :class:`monai_kd.handlers.PixelScores`, not the record's own, which counts what lies outside of the field of view.

    Args:
        records: evaluation records, see :func:`load_records`; those of other bundles and protocols are left out.
        bundle: name of the bundle.
        domains: the title of each protocol by its name, the source first, then at least one target.
        controls: the methods that the others are compared with, in this order.
        shifts: the domains are the same images, as they are and changed: the tables of pixel scores are left out, and
            methods are compared by the mean over the changes of each image.

    Raises:
        ValueError: no target, or a record without pixel scores or with other than one class.
    """
    known = of_bundle(records, bundle, domains)
    rows = rows_of(known, domains, controls)
    if not rows:
        return NO_RESULTS
    references = [row for control in controls for row in rows if row.arm.method == control]
    refused = _Refused()
    parts = [_table_markdown(_main_table(rows, domains, references, refused, shifts))]
    for protocol, title in domains.items():
        if not shifts and any(protocol in row.scored for row in rows):
            parts += [f"**{_escape(title)}**", _table_markdown(_scores_table(rows, protocol))]
    notes = [*_notes(rows, domains, references, shifts), *_left_out(known, rows, domains), *refused.notes()]
    return "\n\n".join([*parts, "\n".join(f"- {_escape(note)}" for note in notes)])


# ---------------------------------------------------------------- tables


def _main_table(
    rows: Sequence[DomainRow],
    domains: Mapping[str, str],
    references: Sequence[DomainRow],
    refused: _Refused,
    shifts: bool,
) -> Table:
    """The Dice of each domain and the comparisons; why some may not be made is added to ``refused``."""
    header = (
        *(
            "method",
            "parameters",
            "seeds",
            *(f"Dice {title}" for title in domains.values()),
            f"Dice, mean of {_of(shifts)}",
        ),
        *(cell for control in references for cell in (f"minus {control.label}, {_of(shifts)}, paired", "verdict")),
    )
    cells = []
    for row in rows:
        compared: list[str] = []
        for control in references:
            compared += _comparison(row, control, domains, refused, shifts)
        dice = [*(row.dice(protocol) for protocol in domains), row.target_dice(targets_of(domains))]
        seeds = _either(len(arm.records) for arm in row.scored.values())
        cells.append((row.label, f"{row.arm.parameters:,}", seeds, *map(_mean_sd, dice), *compared))
    return Table(header, tuple(cells), n_text=1)


def _scores_table(rows: Sequence[DomainRow], protocol: str) -> Table:
    """The pixel scores of one domain, of the methods that were scored on it."""
    header = ("method", "seeds", *_MEANS.values(), *_POOLED.values())
    cells = []
    for row in rows:
        if arm := row.scored.get(protocol):
            means = (_mean_sd(pixel_values(arm, "mean", metric)) for metric in _MEANS)
            pooled = (_mean_sd(pixel_values(arm, "pooled", metric)) for metric in _POOLED)
            cells.append((row.label, str(len(arm.records)), *means, *pooled))
    return Table(header, tuple(cells), n_text=1)


def _mean_sd(values: Sequence[float]) -> str:
    if not values:
        return NONE
    mean, sd = mean_and_sd(values)
    return f"{mean:.4f}" + ("" if sd is None else f" ± {sd:.4f}")


# ---------------------------------------------------------------- comparisons


class _Refused:
    """Which methods were not compared with a control and why; those of one reason share a note."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[list[str], str]] = {}

    def add(self, row: DomainRow, control: DomainRow, error: PairRefused) -> None:
        reason = str(error)
        for record in row.records:  # the same reason names other runs in each row; that of the first row is shown
            reason = reason.replace(record["run_id"], "")
        self._found.setdefault((control.label, reason), ([], str(error)))[0].append(row.label)

    def notes(self) -> Iterator[str]:
        for (control, _), (labels, text) in self._found.items():
            yield f"{_comma(labels)} {'is' if len(labels) == 1 else 'are'} not compared with {control}: {text}."


def _of(shifts: bool) -> str:
    return "shifts" if shifts else "targets"


def _comparison(
    row: DomainRow, control: DomainRow, domains: Mapping[str, str], refused: _Refused, shifts: bool
) -> tuple[str, str]:
    if row is control:
        return NONE, "reference"
    try:
        found = _difference_on_targets(control, row, domains, shifts)
    except PairRefused as error:
        refused.add(row, control, error)
        return NONE, "refused"
    return _difference_text(found), "1 seed" if found.seed_noise is None else found.verdict


def _difference_on_targets(
    control: DomainRow, row: DomainRow, domains: Mapping[str, str], shifts: bool
) -> PairedDifference:
    """Compare on the images of all targets together, after every target by itself allows it."""
    targets = targets_of(domains)
    for one in (control, row):
        if missing := [domains[name] for name in targets if name not in one.scored]:
            raise PairRefused(f"{one.label} was not scored on {', '.join(missing)}")
        if other := _other_weights(one, domains):
            raise PairRefused(other)
    seeds = {domains[name]: row.scored[name].seeds_text for name in targets}
    if len(set(seeds.values())) > 1:
        found = "; ".join(f"{text} on {title}" for title, text in seeds.items())
        raise PairRefused(f"seeds of {row.label} differ: {found}")
    for name in targets:
        try:
            difference_on_seeds(control.scored[name], row.scored[name])
        except PairRefused as error:
            raise PairRefused(f"on {domains[name]}, {error}") from None
    together = _mean_of_shifts if shifts else _all_targets
    return difference_on_seeds(together(control, targets), together(row, targets))


def _other_weights(row: DomainRow, domains: Mapping[str, str]) -> str | None:
    """Tell which seed has other weights on one domain than on another."""
    first: dict[int | None, tuple[str, str]] = {}
    for name, arm in row.scored.items():
        for record in arm.records:
            now = str(record["network"]["weights_sha256"]), domains[name]
            weights, title = first.setdefault(record["seed"], now)
            if weights != now[0]:
                was, got = f"{weights[:12]} on {title}", f"{now[0][:12]} on {now[1]}"
                return f"weights of seed {record['seed']} of {row.label} differ: {was}, {got}"
    return None


def _all_targets(row: DomainRow, targets: Sequence[str]) -> Arm:
    """The row as if its targets were one: a record per seed that was scored on all, with the images of all."""
    by_target = {name: {record["seed"]: record for record in row.scored[name].records} for name in targets}
    first = by_target[targets[0]]
    merged = []
    for seed in first:
        if all(seed in found for found in by_target.values()):
            cases = [
                {**case, "case": f"{name}/{case['case']}"}
                for name, found in by_target.items()
                for case in found[seed]["cases"]
            ]
            merged.append({**first[seed], "cases": cases})
    return replace(row.scored[targets[0]], records=tuple(merged))


def _mean_of_shifts(row: DomainRow, shifts: Sequence[str]) -> Arm:
    """The row with the mean Dice over its shifts of each image that has one under every shift."""
    by_shift = {name: {record["seed"]: record for record in row.scored[name].records} for name in shifts}
    merged = []
    for seed, record in by_shift[shifts[0]].items():
        if all(seed in found for found in by_shift.values()):
            of_image: dict[str, list[dict[str, float | None]]] = {}
            for found in by_shift.values():
                for case in found[seed]["cases"]:
                    of_image.setdefault(case["case"], []).append(case["dice"])
            cases = [
                {**case, "dice": {name: _mean_or_none([dice[name] for dice in of_image[case["case"]]])}}
                for case in record["cases"]
                for name in case["dice"]
            ]
            merged.append({**record, "cases": cases})
    return replace(row.scored[shifts[0]], records=tuple(merged))


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


# ---------------------------------------------------------------- notes


def _notes(
    rows: Sequence[DomainRow], domains: Mapping[str, str], references: Sequence[DomainRow], shifts: bool
) -> Iterator[str]:
    yield f"Images: {'; '.join(_images(rows, name, title) for name, title in domains.items())}."
    yield from _epoch_notes(rows, domains) if shifts else _training_notes(rows, domains)
    pooled, many = "" if shifts else ", or pooled", _of(shifts)
    yield (
        f"Scores are of the pixels inside the field of view: mean over images{pooled}, then mean ± SD over seeds (no "
        f"SD with one seed). Mean of {many}: of each seed that was scored on all of them, every {many[:-1]} counts "
        "alike."
    )
    errors = [e for row in rows for r in row.records if (e := r["summary"]["pixels"]["pooled"].get("auc_error"))]
    if errors:
        yield f"Pooled AUC is computed from histograms, which puts it off by about {max(errors):.1e} at most."
    yield from _unscored_notes(rows, domains)
    if references and shifts:
        yield (
            "Minus a control: on equal images and seeds, by the mean over all shifts of each image; in brackets the "
            "95 % bootstrap interval over images. The epoch of each method was selected on these images, as they are."
        )
    elif references:
        yield (
            f"Minus a control: on equal images and seeds, all images of {' and '.join(list(domains.values())[1:])} "
            "together, every image counts alike; in brackets the 95 % bootstrap interval over these images. Gain or "
            "loss: the interval excludes 0 and the difference exceeds the seed noise, 2 * sqrt((SD_a^2 + SD_b^2) / "
            "seeds)."
        )


def _images(rows: Sequence[DomainRow], protocol: str, title: str) -> str:
    records = [record for row in rows if protocol in row.scored for record in row.scored[protocol].records]
    if not records:
        return f"{title}, none scored"
    return f"{title}, {_either(len(r['cases']) for r in records)} ({records[0]['protocol']['section']} section)"


def _training_notes(rows: Sequence[DomainRow], domains: Mapping[str, str]) -> Iterator[str]:
    source, title = next(iter(domains.items()))
    trained = [record for row in rows for record in row.records if record["training"]]
    if trained:
        train, selection = (_either(r["protocol"][key] for r in trained) for key in ("n_train", "n_validation"))
        same = all(_trained_under(record) == source for record in trained)
        yield f"Training on {train} images, selection of the epoch on {selection}" + (
            f", all of {title}. The records name no target in either; they do not tell how settings were chosen."
            if same
            else "."
        )
    yield from _epoch_notes(rows, domains)


def _epoch_notes(rows: Sequence[DomainRow], domains: Mapping[str, str]) -> Iterator[str]:
    source = next(iter(domains))
    epochs: dict[str, list[str]] = {}
    for row in rows:
        counts = {record["training"].get("epochs") for record in row.records if record["training"]} - {None}
        if counts:
            epochs.setdefault(_either(counts), []).append(row.label)
    if epochs:
        yield f"Epochs: {_comma(f'{count} ({_comma(labels)})' for count, labels in epochs.items())}."
    for row in rows:
        others = {_trained_under(record) for record in row.records if record["training"]} - {source}
        if others:
            named = _comma(sorted(f"'{name}'" if name else "a protocol that is not recorded" for name in others))
            yield f"{row.label} was trained under {named}; the source is '{source}'."
        if unknown := sum(not record["training"] for record in row.records):
            yield f"{row.label}: {unknown} of {len(row.records)} evaluations carry no training."


def _trained_under(record: Record) -> str | None:
    """Return the protocol of the training, if it is recorded."""
    name: str | None = record["training"].get("protocol", {}).get("name")
    return name


def _unscored_notes(rows: Sequence[DomainRow], domains: Mapping[str, str]) -> Iterator[str]:
    """Tell where a mean is over fewer images than were scored."""
    for name, title in domains.items():
        arms = [row.scored[name] for row in rows if name in row.scored]
        records = [record for arm in arms for record in arm.records]
        for metric, text in _MEANS.items():
            counts = [(r["summary"]["pixels"]["n"].get(metric), len(r["cases"])) for r in records]
            if fewest := min(((n, cases) for n, cases in counts if n is not None and n < cases), default=None):
                yield (
                    f"{title}: {fewest[0]} of {fewest[1]} images have a value of {text} in the evaluation with fewest; "
                    "its means are over those."
                )


def _left_out(known: Iterable[Record], rows: Sequence[DomainRow], domains: Mapping[str, str]) -> Iterator[str]:
    """Tell which evaluations count nowhere, and where those that do were not scored alike."""
    for name, title in domains.items():
        scored = {row.label: row.scored[name] for row in rows if name in row.scored}
        records = [record for arm in scored.values() for record in arm.records]
        if not records:
            continue
        shown = records[0]["protocol"]["section"]
        sections = [r["protocol"]["section"] for r in known if r["protocol"]["name"] == name]
        if others := Counter(section for section in sections if section != shown):
            counts = _comma(f"{count} of the {section} section" for section, count in sorted(others.items()))
            yield f"{title}: evaluations of other sections are left out, {counts}."
        if (ways := len({r["protocol"].get("scoring_hash") for r in records})) > 1:
            yield f"{title}: scored in {ways} ways, by the scoring hashes; only what shares one can be compared."
        for label, arm in scored.items():
            if arm.superseded:
                yield f"{label} on {title}: the newest evaluation of each seed is shown, not {_comma(arm.superseded)}."


def _comma(names: Iterable[str]) -> str:
    return ", ".join(names)
