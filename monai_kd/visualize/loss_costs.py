"""The table of what each distillation loss costs, from docs/results/zoo/loss_costs.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_kd.visualize.measured import measured_markdown
from monai_kd.visualize.statistics import _cpu_text
from monai_kd.visualize.tables import NO_RESULTS

__all__ = ["costs_markdown", "loss_costs_table"]

AIM = 2 / 3  # of the textbook formulation's time and memory
_TITLES = ("loss", "size", "ms", "textbook", "time ratio", "peak MB", "textbook", "memory ratio")


def loss_costs_table(results_dir: str | Path) -> str:
    """Return the Markdown tables of what ``benchmarks/losses.py`` measured, one a device; a sentence if there is none.

    Args:
        results_dir: folder of ``loss_costs.json`` and, from other devices, ``loss_costs_<device>.json``.

    Raises:
        ValueError: a file is no such record; names the file.
    """
    paths = sorted(Path(results_dir).glob("loss_costs*.json"), key=lambda path: (len(path.name), path.name))
    return "\n\n".join(measured_markdown(path, "loss costs", costs_markdown) for path in paths) or NO_RESULTS


def costs_markdown(record: Mapping[str, Any]) -> str:
    """Return the table of one record and its notes."""
    rows = list(_rows(record))
    lines = ["| " + " | ".join(row) + " |" for row in (_TITLES, ("---", "---", *["---:"] * 6), *rows)]
    return "\n".join([*lines, "", *_notes(record)])


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for size, found in record["sizes"].items():
        for loss, entry in found.items():
            ms, peak = entry["ms"], entry["peak_bytes"]
            yield (
                *(loss, size, f"{ms['ours']:.1f}", f"{ms['textbook']:.1f}", _ratio(entry["time_ratio"])),
                *(f"{peak['ours'] / 1e6:.1f}", f"{peak['textbook'] / 1e6:.1f}", _ratio(entry["memory_ratio"])),
            )


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value <= AIM else f"{value:.2f} (missed)"


def _notes(record: Mapping[str, Any]) -> Iterator[str]:
    device = record["device"]
    machine = _cpu_text(device) if device["type"] == "cpu" else device["name"]
    shapes = [
        f"{size} {on} {' x '.join(map(str, shape))}"
        for size, found in record["sizes"].items()
        for on, shape in {entry["on"]: entry["shape"] for entry in found.values()}.items()
    ]
    yield (
        f"- Forward and backward in float32 on {machine}, median of {record['rounds']} runs; ours, with the label "
        "where it takes one, and the textbook formulation in turn, after values and gradients were found to agree."
    )
    yield f"- Sizes: {'; '.join(shapes)} (batch, channels, space)."
    yield "- Peak: most memory held at once beyond the inputs; the student's gradient counts on both sides."
    entries = [entry for found in record["sizes"].values() for entry in found.values()]
    time, memory = (sum(entry[key] <= AIM for entry in entries) for key in ("time_ratio", "memory_ratio"))
    yield (
        f"- The aim is two thirds of the textbook's: reached in time by {time} and in memory by {memory} of "
        f"{len(entries)}; the others are marked as missed."
    )
