"""The table of measured exports, from docs/results/exports.json alone."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["exports_table"]

_TITLES = ("bundle", "format", "size, MB", "logit difference", "Dice to PyTorch", "test Dice", "ms per case", "faster")


def exports_table(record: str | Path) -> str:
    """Return the Markdown table of what ``benchmarks/exports.py`` measured; a sentence if there is no record.

    Args:
        record: the JSON file: for each bundle and format size in bytes, parity with PyTorch, test Dice per class and
            median milliseconds per case.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    path = Path(record)
    if not path.is_file():
        return "No results recorded."
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        lines = ["| " + " | ".join(_TITLES) + " |", "|---|---|" + "---:|" * 6]
        for bundle, formats in results["bundles"].items():
            for name, entry in formats.items():
                parity, dice = entry["parity"], entry["dice"].values()
                cells = [bundle, f"`{name}`", f"{entry['size'] / 1e6:.2f}", f"{parity['max_logit_difference']:.1e}"]
                cells += [f"{parity['dice']:.4f}", f"{sum(dice) / len(dice):.4f} ({entry['dice_difference']:+.4f})"]
                cells += [f"{entry['ms_per_case']:.1f}", f"{entry['times_faster']:.2f} x"]
                lines.append("| " + " | ".join(cells) + " |")
        (cases,) = {entry["n_cases"] for formats in results["bundles"].values() for entry in formats.values()}
        machine = f"{results['threads']} threads of {results['device']['name']}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{path}' is no record of measured exports: {type(error).__name__}: {error}") from error
    note = (
        f"{cases} test cases; {machine}. In brackets: the difference from PyTorch in float32, against which the time "
        "is taken as well, case by case."
    )
    return "\n".join([*lines, "", note])
