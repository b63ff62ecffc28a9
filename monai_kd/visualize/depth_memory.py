"""The table of memory and time as volumes get deeper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_kd.visualize.measured import measured_markdown
from monai_kd.visualize.statistics import _cpu_text

__all__ = ["depth_memory_markdown", "depth_memory_table"]


def depth_memory_table(path: str | Path) -> str:
    """Return the Markdown table of what ``benchmarks/depth_memory.py`` measured; a sentence if there is no record.

    Args:
        path: the JSON file.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    return measured_markdown(path, "depth memory", depth_memory_markdown)


def depth_memory_markdown(record: Mapping[str, Any]) -> str:
    """Return the table of one record: peak memory by depth for each way, and the time of a slice at the deepest."""
    depths = list(next(iter(record["ways"].values())))
    titles = ["way", *(f"MB, {depth} slices" for depth in depths), f"{depths[-1]} / {depths[0]}", "ms per slice"]
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for way, found in record["ways"].items():
        peaks = [f"{found[depth]['median_peak_mb']:.0f}" for depth in depths]
        ratio, time = record["memory_ratio"][way], 1000 * found[depths[-1]]["median_seconds_per_slice"]
        lines.append("| " + " | ".join([way, *peaks, f"{ratio:.2f}", f"{time:.1f}"]) + " |")
    size = " x ".join(str(length) for length in record["slice"])
    note = (
        f"- Slices of {size}, float32, chunks of {record['chunk']}; {_cpu_text(record['device'])}. Peak of the "
        f"resident memory during inference above that just before, median of {record['rounds']} processes each; the "
        "output of volumes counts, the stream keeps none."
    )
    return "\n".join([*lines, "", note])
