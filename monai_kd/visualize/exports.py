"""The table of measured exports, from docs/results/exports.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_kd.visualize.measured import measured_markdown

__all__ = ["exports_table"]

_TITLES = ("bundle", "format", "size, MB", "logit difference", "Dice to PyTorch", "test Dice", "ms per case", "faster")


def exports_table(record: str | Path) -> str:
    """Return the Markdown table of what ``benchmarks/exports.py`` measured; a sentence if there is no record.

    Args:
        record: the JSON file: for each bundle and format size in bytes, parity with PyTorch, test Dice per class and
            median milliseconds per case. What has no parity is another network, such as the teacher.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    return measured_markdown(record, "measured exports", _markdown)


def _markdown(results: Mapping[str, Any]) -> str:
    lines = ["| " + " | ".join(_TITLES) + " |", "|---|---|" + "---:|" * 6]
    for bundle, formats in results["bundles"].items():
        for name, entry in formats.items():
            parity, dice = entry.get("parity"), entry["dice"].values()
            cells = [bundle, f"`{name}`" if parity else f"{name} in PyTorch", f"{entry['size'] / 1e6:.2f}"]
            cells += [f"{parity['max_logit_difference']:.1e}", f"{parity['dice']:.4f}"] if parity else ["-", "-"]
            cells.append(f"{sum(dice) / len(dice):.4f} ({entry['dice_difference']:+.4f})")
            cells += [f"{entry['ms_per_case']:.1f}", f"{entry['times_faster']:.2f} x"]
            lines.append("| " + " | ".join(cells) + " |")
    (cases,) = {entry["n_cases"] for formats in results["bundles"].values() for entry in formats.values()}
    machine = f"{results['threads']} threads of {results['device']['name']}"
    whole = all("parity" in entry for formats in results["bundles"].values() for entry in formats.values())
    reference = "PyTorch" if whole else "the bundle's own network in PyTorch"
    note = (
        f"{cases} test cases; {machine}. In brackets: the difference from {reference}, in float32, against which the "
        "time is taken as well, case by case."
    )
    return "\n".join([*lines, "", note])
