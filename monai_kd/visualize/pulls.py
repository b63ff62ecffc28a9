"""The table of how hard each distiller pulls on the student, from docs/results/zoo/pulls.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_kd.visualize.measured import measured_markdown
from monai_kd.visualize.statistics import _cpu_text

__all__ = ["pulls_markdown", "pulls_table"]

_TITLES = ("overlay", "term", "weight", "ratio, mean ± SD", "weight for ratio 1")
Terms = Mapping[str, Mapping[str, Any]]


def pulls_table(path: str | Path) -> str:
    """Return the Markdown table of what ``benchmarks/pulls.py`` measured; a sentence if there is no record.

    Args:
        path: the JSON file: weight, gradient ratio and suggested weight of each term of each overlay.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    return measured_markdown(path, "pulls", pulls_markdown)


def pulls_markdown(record: Mapping[str, Any]) -> str:
    """Return the table of the record and its notes."""
    rows = list(_rows(record))
    lines = ["| " + " | ".join(row) + " |" for row in (_TITLES, ("---", "---", *["---:"] * 3), *rows)]
    return "\n".join([*lines, "", *_notes(record)])


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the terms besides the reference, the overlay with the strongest term first."""
    reference, several = record["reference"], record["batches"] > 1
    compared = {name: _strongest_first(name, terms, reference) for name, terms in record["overlays"].items()}
    for overlay, terms in sorted(compared.items(), key=lambda item: -next(iter(item[1].values()))["ratio"]):
        for name, term in terms.items():
            ratio = f"{term['ratio']:.3g}" + (f" ± {term['sd']:.2g}" if several else "")
            suggested = "no gradient" if term["suggested"] is None else f"{term['suggested']:.3g}"
            yield overlay, name, f"{term['weight']:g}", ratio, suggested


def _strongest_first(overlay: str, terms: Terms, reference: str) -> Terms:
    found = sorted((item for item in terms.items() if item[0] != reference), key=lambda item: -item[1]["ratio"])
    if not found:
        raise ValueError(f"overlay '{overlay}' has no term besides '{reference}'")
    return dict(found)


def _notes(record: Mapping[str, Any]) -> Iterator[str]:
    reference, batches, warmup = record["reference"], record["batches"], record["warmup"]
    when = f"after {_count(warmup, 'iteration')} on `{reference}` alone" if warmup else "at the random start"
    yield (
        f"- Ratio: gradient norm of the weighted term on the student over that of `{reference}`, at the whole weight, "
        "without the overlay's schedule."
    )
    yield (
        f"- Measured {when}, on {_count(batches, 'batch', 'batches')} of {record['data']}, the same for all overlays; "
        f"{record['precision']} on {_cpu_text(record['device'])}."
    )
    yield f"- At the weight of the last column a term pulls as hard as `{reference}` on the mean of these batches."


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
