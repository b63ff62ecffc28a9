"""The tables of the step of MTCM-KD say what their record says."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from monai_kd.visualize import write_tables
from monai_kd.visualize.mtcm_step import mtcm_step_markdown, mtcm_step_table


def spread(median: float) -> dict[str, float]:
    return {"median": median, "least": median - 0.25, "most": median + 0.25}


def step(seconds: float, speedup: float, peak: float, **others: Any) -> dict[str, Any]:
    numbers = {"seconds": spread(seconds), "cpu_seconds": spread(seconds), "speedup": spread(speedup)}
    return {"runs": 3, **numbers, "peak_mb": spread(peak), "gradient_error": 2e-6, "emulated": False, **others}


def part(literal: float, ours: float, kept: dict[str, int] | None) -> dict[str, Any]:
    ratio = {"median": literal / ours, "low": 1.0, "high": 9.0}
    return {
        "literal": {"wall_ms": literal, "cpu_ms": literal},
        "ours": {"wall_ms": ours, "cpu_ms": ours},
        "speedup": {"wall": ratio, "cpu": ratio},
        "retained_bytes": kept,
    }


RECORD: dict[str, Any] = {
    "device": {"type": "cpu", "name": "AMD EPYC", "threads": 2},
    "size": 64,
    "width": 32,
    "rounds": 3,
    "load_before": 0.1,
    "bfloat16_in_hardware": False,
    "network": {"target": "ChannelAttentionResUNet", "parameters": 9458702},
    "gflop": {"forward": 222.2, "backward": 443.0, "joint": 2661.0, "pretrained": 1331.8},
    "matrix_gflops": 133.05,
    "memory": {
        "kept": {
            "literal": step(20.0, 1.0, 5000, gradient_error=0.0),
            "joint": step(18.0, 1.11, 4500),
            "pretrained": step(9.0, 2.22, 2000),
            "joint staged bfloat16": step(200.0, 0.1, 1500, runs=1, gradient_error=0.03, emulated=True),
        },
        "returned": {
            "literal": step(24.0, 1.0, 4900, gradient_error=0.0),
            "joint": step(22.0, 1.09, 4400, gradient_error=5e-6),
            "pretrained": step(11.0, 2.18, 1900),
        },
    },
    "parts": {
        "softmax": part(60.0, 20.0, {"literal": 30_000_000, "ours": 10_000_000}),
        "divergence": part(90.0, 30.0, {"literal": 25_000_000, "ours": 4_200_000}),
        "dice": part(100.0, 10.0, None),
    },
}


def test_steps_stand_beside_the_literal_one():
    table = mtcm_step_markdown(RECORD)
    assert ("| literal, joint | 20.00 (19.75 to 20.25) | 1 | 5.00 | 24.00 (23.75 to 24.25) | 1 | 4.90 | 133 |") in table
    assert "| ours, pretrained teachers | 9.00 (8.75 to 9.25) | 2.22 (1.97 to 2.47) | 2.00 | 11.00" in table
    assert "| 148 |" in table  # 1331.8 GFLOP in 9 s
    assert "64 x 64 x 64, student and three teachers of 9,458,702 parameters each" in table
    assert "at most 5.0e-06 apart in float32" in table
    assert "2.00 times as fast by that alone" in table
    assert "133 GFLOP/s here: 20.0 and 10.0 s" in table


def test_emulated_bfloat16_is_said_and_wins_no_aim():
    table = mtcm_step_markdown(RECORD)
    assert "| ours, joint, staged, bfloat16 | 200.00 \\* | 0.10 | 1.50 |  |  |  |" in table
    assert "bfloat16: 3.0e-02. \\* This CPU does not multiply bfloat16: emulated, one first step." in table
    assert "at least 1.5 times as fast as the literal step; missed: 1.11, ours, joint, memory kept." in table
    fast = copy.deepcopy(RECORD)
    fast["memory"]["kept"]["joint staged bfloat16"].update(emulated=False, speedup=spread(1.75))
    fast["bfloat16_in_hardware"] = True
    text = mtcm_step_markdown(fast)
    assert "reached: 1.75, ours, joint, staged, bfloat16, memory kept." in text
    assert "\\*" not in text


def test_aims_and_parts():
    table = mtcm_step_markdown(RECORD)
    assert "at least 2 times as fast as the literal step; reached: 2.22, ours, pretrained teachers" in table
    assert "; one softmax | 60.0 | 20.0 | 3.0 (1.0 to 9.0) | 30.0 | 10.0 |" in table
    assert "; counts | 100.0 | 10.0 | 10.0 (1.0 to 9.0) |  |  |" in table


def test_a_missing_record_is_said_a_wrong_one_named_and_documents_ask_for_it(tmp_path):
    path = tmp_path / "mtcm_step.json"
    assert mtcm_step_table(path) == "No results recorded."
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"mtcm_step\.json"):
        mtcm_step_table(path)
    path.write_text(json.dumps(RECORD))
    page = tmp_path / "page.md"
    page.write_text("<!-- >>> results: mtcm_step -->\n<!-- <<< results -->")
    assert write_tables(tmp_path, [page]) == [page]
    assert "| ours, joint | 18.00" in page.read_text()
