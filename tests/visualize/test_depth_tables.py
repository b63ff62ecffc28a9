"""The tables of the depth benchmarks say what their records say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from monai_kd.visualize import write_tables
from monai_kd.visualize.depth_learning import depth_learning_table
from monai_kd.visualize.depth_memory import depth_memory_table

MEMORY: dict[str, Any] = {
    "device": {"type": "cpu", "name": "AMD EPYC", "threads": 1},
    "slice": [128, 128],
    "chunk": 32,
    "rounds": 3,
    "ways": {
        "whole": {
            "64": {"median_peak_mb": 440.6, "median_seconds_per_slice": 0.011},
            "1024": {"median_peak_mb": 5715.0, "median_seconds_per_slice": 0.0123},
        },
        "stream": {
            "64": {"median_peak_mb": 49.2, "median_seconds_per_slice": 0.02},
            "1024": {"median_peak_mb": 51.0, "median_seconds_per_slice": 0.0184},
        },
    },
    "memory_ratio": {"whole": 12.97, "stream": 1.037},
}
LEARNING: dict[str, Any] = {"volumes": 8, "dice": {"none": [0.0, 0.1], "distill": [0.9]}}


def test_memory_by_depth_for_each_way(tmp_path):
    path = tmp_path / "depth_memory.json"
    path.write_text(json.dumps(MEMORY))
    table = depth_memory_table(path)
    assert "| way | MB, 64 slices | MB, 1024 slices | 1024 / 64 | ms per slice |" in table
    assert "| whole | 441 | 5715 | 12.97 | 12.3 |" in table
    assert "| stream | 49 | 51 | 1.04 | 18.4 |" in table
    assert "128 x 128, float32, chunks of 32; AMD EPYC, 1 thread" in table


def test_dice_by_exchange(tmp_path):
    path = tmp_path / "depth_learning.json"
    path.write_text(json.dumps(LEARNING))
    table = depth_learning_table(path)
    assert "| `none` | 2 | 0.050 ± 0.071 |" in table
    assert "| `distill` | 1 | 0.900 |" in table
    assert "8 made-up test volumes" in table


@pytest.mark.parametrize(
    ("name", "make"), [("depth_memory", depth_memory_table), ("depth_learning", depth_learning_table)]
)
def test_a_missing_record_is_said_and_a_wrong_one_named(tmp_path: Path, name, make):
    path = tmp_path / f"{name}.json"
    assert make(path) == "No results recorded."
    path.write_text("{}")
    with pytest.raises(ValueError, match=f"{name}.json"):
        make(path)


def test_documents_ask_for_them_by_name(tmp_path):
    (tmp_path / "depth_memory.json").write_text(json.dumps(MEMORY))
    (tmp_path / "depth_learning.json").write_text(json.dumps(LEARNING))
    page = tmp_path / "page.md"
    markers = [f"<!-- >>> results: {name} -->\n<!-- <<< results -->" for name in ("depth_memory", "depth_learning")]
    page.write_text("\n".join(markers))
    assert write_tables(tmp_path, [page]) == [page]
    assert "| stream | 49 |" in page.read_text()
    assert "| `distill` |" in page.read_text()
