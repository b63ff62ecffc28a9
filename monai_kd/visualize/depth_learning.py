"""The table of the task that single slices cannot solve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_kd.visualize.measured import measured_markdown
from monai_kd.visualize.statistics import mean_and_sd

__all__ = ["depth_learning_markdown", "depth_learning_table"]


def depth_learning_table(path: str | Path) -> str:
    """Return the Markdown table of what ``benchmarks/depth_learning.py`` found; a sentence if there is no record.

    Args:
        path: the JSON file.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    return measured_markdown(path, "the depth learning task", depth_learning_markdown)


def depth_learning_markdown(record: Mapping[str, Any]) -> str:
    """Return the table of one record: Dice by exchange."""
    lines = ["| exchange | seeds | Dice |", "|---|---:|---:|"]
    for name, values in record["dice"].items():
        mean, sd = mean_and_sd(values)
        lines.append(f"| `{name}` | {len(values)} | {mean:.3f}{'' if sd is None else f' ± {sd:.3f}'} |")
    return "\n".join([*lines, "", f"- {record['volumes']} made-up test volumes; mean ± SD over seeds."])
