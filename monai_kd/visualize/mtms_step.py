"""The table of what a training step of MTMS-KD costs, from docs/results/mtms_step.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_kd.visualize.measured import measured_markdown
from monai_kd.visualize.statistics import _cpu_text

__all__ = ["mtms_step_markdown", "mtms_step_table"]

_WORDS = {
    "literal": "literal, both decoders of the teacher",
    "live": "ours, live teacher",
    "cached": "ours, stored targets",
    "student alone": "student alone",
}


def mtms_step_table(path: str | Path) -> str:
    """Return the Markdown table of what ``benchmarks/mtms_step.py`` measured; a sentence if there is no record.

    Args:
        path: the JSON file.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    return measured_markdown(path, "steps of MTMS-KD", mtms_step_markdown)


def mtms_step_markdown(record: Mapping[str, Any]) -> str:
    """Return the table of one record and its notes."""
    rate = record["matrix_gflops"]
    titles = ["step", "s", "times as fast", "GFLOP", "s at the rate of a matrix product", "GFLOP/s", "peak, MB"]
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for name, found in record["steps"].items():
        seconds, gflop = found["wall_ms"] / 1000, found["gflop"]
        cells = [_WORDS.get(name, name), f"{seconds:.3g}", "1" if name == "literal" else _spread(found["speedup"])]
        cells += [f"{gflop:.4g}", f"{gflop / rate:.2g}", f"{gflop / seconds:.0f}", f"{found['peak_mb']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_notes(record)])


def _spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.3g} ({ratio['low']:.3g} to {ratio['high']:.3g})"


def _notes(record: Mapping[str, Any]) -> list[str]:
    steps, grid = record["steps"], record["grid"]
    live, cached = (steps[name]["speedup"]["median"] for name in ("live", "cached"))
    share = steps["cached"]["wall_ms"] / steps["student alone"]["wall_ms"]
    return [
        f"- {record['batch']} slices of {record['size']} x {record['size']}; {_short(record['teacher'])} teaches "
        f"{_short(record['student'])}; forward and backward, float32; {_cpu_text(record['device'])}. Median of "
        f"{record['rounds']} rounds, all in turn; in brackets 10th to 90th percentile of the ratio to the literal step "
        f"of the same round. Load average before: {record['load_before']:.1f}. Peak: the most memory that a step holds "
        "beyond weights and batch.",
        f"- A plain float32 matrix product runs at {record['matrix_gflops']:.0f} GFLOP/s here.",
        f"- Literal: whole maps, flattened behind projections that are drawn anew. Ours: {grid} x {grid} cells, "
        f"trained projections and a queue. {live:.3g} times as fast with a live teacher, whose reconstruction does not "
        f"run, and {cached:.3g} times with stored targets, where a step takes {share:.3g} times as long as the student "
        "alone.",
    ]


def _short(facts: Mapping[str, Any]) -> str:
    return f"{facts['target'].rsplit('.', 1)[-1]} ({facts['parameters']:,} parameters)"
