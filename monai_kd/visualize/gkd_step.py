"""The table of what a training step of GKD costs, from docs/results/gkd_step.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_kd.visualize.measured import measured_markdown
from monai_kd.visualize.statistics import _cpu_text

__all__ = ["gkd_step_markdown", "gkd_step_table"]

AIM = 10.0  # times as fast as the literal step
_WORDS = {
    "literal": "literal, view by view",
    "live": "ours, live teacher",
    "bank": "ours, stored teacher outputs",
    "bank, no cross_encoder": "the same without `cross_encoder`",
    "student alone": "student alone",
}
_FULL = ("live", "bank")  # steps with all terms
_PART = "bank, no cross_encoder"


def gkd_step_table(path: str | Path) -> str:
    """Return the Markdown table of what ``benchmarks/gkd_step.py`` measured; a sentence if there is no record.

    Args:
        path: the JSON file.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    return measured_markdown(path, "steps of GKD", gkd_step_markdown)


def gkd_step_markdown(record: Mapping[str, Any]) -> str:
    """Return the table of one record and its notes."""
    rate = record["matrix_gflops"]
    titles = ["step", "s", "times as fast", "GFLOP", "s at the rate of a matrix product", "GFLOP/s"]
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for name, found in record["steps"].items():
        seconds, gflop = found["wall_ms"] / 1000, found["gflop"]
        cells = [_WORDS.get(name, name), f"{seconds:.3g}", "1" if name == "literal" else _spread(found["speedup"])]
        lines.append(
            "| " + " | ".join([*cells, f"{gflop:.4g}", f"{gflop / rate:.2g}", f"{gflop / seconds:.0f}"]) + " |"
        )
    return "\n".join([*lines, "", *_notes(record)])


def _spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.3g} ({ratio['low']:.3g} to {ratio['high']:.3g})"


def _notes(record: Mapping[str, Any]) -> list[str]:
    teacher, student = (record[side] for side in ("teacher", "student"))
    best = max(_FULL, key=lambda name: record["steps"][name]["speedup"]["median"])
    full, part = (record["steps"][name]["speedup"]["median"] for name in (best, _PART))
    return [
        f"- {record['batch']} patches of {record['size']} x {record['size']} with {record['views']} views each; "
        f"{_short(teacher)} teaches {_short(student)}; forward and backward, float32; "
        f"{_cpu_text(record['device'])}. Median of {record['rounds']} rounds, all in turn; in brackets 10th to 90th "
        f"percentile of the ratio to the literal step of the same round. Load average before: "
        f"{record['load_before']:.1f}.",
        f"- A plain float32 matrix product runs at {record['matrix_gflops']:.0f} GFLOP/s here.",
        f"- Aim: at least {AIM:g} times as fast as the literal step. All terms: {_verdict(full)}, {full:.3g}, "
        f"{_WORDS[best]}. Without `cross_encoder`, for whose gradient the teacher's decoder must run: "
        f"{_verdict(part)}, {part:.3g}.",
    ]


def _short(facts: Mapping[str, Any]) -> str:
    return f"{facts['target'].rsplit('.', 1)[-1]} ({facts['parameters']:,} parameters)"


def _verdict(speedup: float) -> str:
    return "reached" if speedup >= AIM else "missed"
