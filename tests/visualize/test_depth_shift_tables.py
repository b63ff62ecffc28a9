"""The tables of what a depth shift costs say what their record says, and nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from monai_kd.visualize import write_tables
from monai_kd.visualize.depth_shift_costs import depth_shift_table


def ratio(wall: float) -> dict[str, dict[str, float]]:
    """Return a ratio whose CPU time says something else, which no table shows."""
    return {kind: {"median": m, "low": m - 0.1, "high": m + 0.1} for kind, m in (("wall", wall), ("cpu", 77.0))}


SAME = {kind: {"median": 1.0, "low": 1.0, "high": 1.0} for kind in ("wall", "cpu")}


def forms(speedup: float, to_conv2d: float) -> dict[str, Any]:
    ours = {"wall_ms": 5.0, "cpu_ms": 5.0, "speedup": ratio(speedup), "to_conv2d": ratio(to_conv2d)}
    slow = {**ours, "speedup": ratio(speedup / 2), "to_conv2d": ratio(to_conv2d * 2)}
    plain = {"wall_ms": 4.0, "cpu_ms": 4.0, "speedup": ratio(0.75)}
    return {
        "literal": {"wall_ms": 12.34, "cpu_ms": 12.0, "speedup": SAME},
        "ours NCHW": slow,
        "ours channels-last": ours,
        "ours volume": slow,
        "ours volume channels-last": slow,
        "conv2d NCHW": plain,
        "conv2d channels-last": plain,
        "conv3d volume": {**plain, "speedup": ratio(0.5)},
        "conv3d volume channels-last": plain,
    }


def timed(ms: float, **ratios: Any) -> dict[str, Any]:
    return {"wall_ms": ms, "cpu_ms": ms, **ratios}


def variant(ms: float, error: float, seconds: float = 0.1, faults: int = 3000) -> dict[str, Any]:
    return timed(ms, time_ratio=ratio(ms / 200), error=error, first_call_s=seconds, page_faults=faults)


RECORD: dict[str, Any] = {
    "device": {"type": "cpu", "name": "AMD EPYC", "threads": 2},
    "rounds": 15,
    "quick": False,
    "load_before": 0.25,
    "block": [
        # geometric means of 4 and 1: 2; of 8 and 0.5: 2; of 1.2 at alpha 1: 1.2
        {
            **{"depth": 16, "channels": 64, "in_plane": 64, "alpha": 1.0},
            "forward": forms(4.0, 1.2),
            "forward_backward": forms(0.5, 1.1),
        },
        {
            **{"depth": 32, "channels": 64, "in_plane": 64, "alpha": 0.5},
            "forward": forms(1.0, 0.6),
            "forward_backward": forms(2.0, 0.7),
        },
    ],
    "network": {
        "shape": [1, 1, 24, 128, 128],
        "space_network": "MONAI BasicUNet",
        "networks": {
            "literal, alpha 0.5": {
                **{"parameters": 1216249, "reference": "literal, alpha 0.5"},
                **{which: timed(300.0, speedup=SAME) for which in ("forward", "step")},
            },
            "3-D U-Net, contiguous": {
                **{"parameters": 4276669, "reference": "literal, alpha 0.5"},
                "forward": timed(600.0, speedup=ratio(0.5)),
                "step": timed(1200.0, speedup=ratio(0.25)),
            },
        },
    },
    "variants": [
        {
            "shape": [1, 1, 24, 128, 128],
            "variants": {
                "float32": {
                    "forward": {**variant(200.0, 0.0, faults=90000), "time_ratio": SAME},
                    "step": {**variant(500.0, 0.0), "time_ratio": SAME},
                },
                "torch.compile": {"forward": variant(100.0, 9.5e-8, 41.0), "step": variant(300.0, 7e-6, 62.0)},
                "memory retained": {"forward": variant(190.0, 0.0, faults=12), "step": variant(480.0, 0.0)},
                "batch norms folded": {"forward": variant(150.0, 1.2e-7)},
            },
        },
        {
            "shape": [1, 1, 145, 128, 128],
            "variants": {"chunks of 15 slices": {"skipped": "monai_kd.inferers has no ChunkedDepthInferer"}},
        },
    ],
}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "depth_shift.json"
    path.write_text(json.dumps(RECORD), encoding="utf-8")
    return path


def cells(text: str, first: str) -> list[list[str]]:
    """Return the rows of the table whose first title is given."""
    tables = [[line for line in part.splitlines() if line.startswith("|")] for part in text.split("\n\n")]
    (found,) = [lines for lines in tables if lines and lines[0].startswith(f"| {first} |")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in found[2:]]


def test_one_exchange_by_hand(record):
    text = depth_shift_table(record)
    rows = cells(text, "one exchange")
    slow = ["2.00 (1.90 to 2.10)"]
    assert rows[0] == [
        "D16 C64 64², alpha 1, forward",
        "12.3",
        *slow,
        "4.00 (3.90 to 4.10)",
        *slow * 2,
        "1.20 (1.10 to 1.30)",
        "0.75",  # the faster of the 3-D convolutions
    ]
    assert [row[0] for row in rows[1:]] == [
        "D32 C64 64², alpha 0.5, forward",
        "D16 C64 64², alpha 1, forward + backward",
        "D32 C64 64², alpha 0.5, forward + backward",
    ]
    assert "77" not in text


def test_the_aims_are_judged_by_geometric_means_and_conv2d_where_all_channels_take_part(record):
    text = depth_shift_table(record)
    assert "is 2.00 times as fast as the literal form; aim: at least 2, reached. NCHW 1.00, volume 1.00," in text
    assert "is 1.00 times as fast as the literal form; aim: at least 1.8, missed. NCHW 0.50," in text
    assert "channels-last takes 1.20 times its time in forward; aim: at most 1.15, missed; 1.10 in forward +" in text
    assert "NCHW: 2.40 and 2.20." in text


def test_an_aim_that_is_met_within_the_limit_is_reached(record):
    changed = copy.deepcopy(RECORD)
    changed["block"][0]["forward"]["ours channels-last"]["to_conv2d"] = ratio(1.15)
    changed["block"][0]["forward_backward"]["ours channels-last"]["speedup"] = ratio(1.8)
    changed["block"][1]["forward_backward"]["ours channels-last"]["speedup"] = ratio(1.9)
    record.write_text(json.dumps(changed), encoding="utf-8")
    text = depth_shift_table(record)
    assert text.count("reached") == 3
    assert "missed" not in text


def test_without_a_size_of_alpha_1_nothing_is_said_against_conv2d(record):
    record.write_text(json.dumps({**RECORD, "block": RECORD["block"][1:]}), encoding="utf-8")
    assert "Against conv2d" not in depth_shift_table(record)


def test_networks_by_hand(record):
    text = depth_shift_table(record)
    assert cells(text, "network") == [
        ["literal, alpha 0.5", "1,216,249", "300", "1", "300", "1"],
        ["3-D U-Net, contiguous", "4,276,669", "600", "0.50 (0.40 to 0.60)", "1200", "0.25 (0.15 to 0.35)"],
    ]
    assert "One volume of 24 slices of 128 x 128, float32." in text
    assert "the other U-Nets, literal, alpha 0.5." in text


def test_variants_by_hand_and_a_skipped_one_says_why(record):
    text = depth_shift_table(record)
    half, one_and_a_half = "0.50 (0.40 to 0.60)", "1.50 (1.40 to 1.60)"
    assert cells(text, "variant") == [
        ["float32", "24", "200", "1", "0", "500", "1", "0"],
        ["torch.compile", "24", "100", half, "9.5e-08", "300", one_and_a_half, "7.0e-06"],
        ["memory retained", "24", "190", "0.95 (0.85 to 1.05)", "0", "480", "2.40 (2.30 to 2.50)", "0"],
        ["batch norms folded", "24", "150", "0.75 (0.65 to 0.85)", "1.2e-07", "", "", ""],
        ["chunks of 15 slices", "145", "skipped", "", "", "skipped", "", ""],
    ]
    assert "- Skipped chunks of 15 slices: monai_kd.inferers has no ChunkedDepthInferer." in text
    assert "`torch.compile` took 41 s for the first forward pass and 62 s for the first gradient" in text
    assert "24 slices: 12 page faults in a forward pass instead of 90,000." in text


def test_the_origin_tells_machine_rounds_and_load_and_marks_a_trial(record):
    text = depth_shift_table(record)
    assert "of 15 rounds on AMD EPYC, 2 threads, all in turn" in text
    assert "Load average before it began: 0.2." in text
    assert "no result" not in text
    record.write_text(json.dumps({**RECORD, "quick": True, "load_before": None}), encoding="utf-8")
    assert depth_shift_table(record).endswith("before. Tiny sizes, a trial of the machinery: no result.")


def test_a_record_of_some_parts_yields_their_tables(record):
    record.write_text(json.dumps({key: RECORD[key] for key in RECORD if key != "variants"}), encoding="utf-8")
    text = depth_shift_table(record)
    assert "| network |" in text
    assert "| variant |" not in text


def test_a_document_names_the_tables(record):
    page = record.parent / "page.md"
    page.write_text("<!-- >>> results: depth_shift -->\nold\n<!-- <<< results -->\n", encoding="utf-8")
    other = record.parent / "other"
    other.mkdir()
    assert write_tables(other, [page]) == [page]
    assert "No results recorded." in page.read_text(encoding="utf-8")
    assert depth_shift_table(other / "depth_shift.json") == "No results recorded."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "ValueError: it has none of block, network, variants"),
        ("{}", "ValueError: it has none of block, network, variants"),
        (json.dumps({**RECORD, "block": [{"depth": 16}]}), "KeyError: 'forward'"),
        (json.dumps({**RECORD, "network": {"networks": []}}), "AttributeError"),
        (json.dumps({**RECORD, "variants": 3}), "TypeError"),
        (json.dumps({key: RECORD[key] for key in RECORD if key != "device"}), "KeyError: 'device'"),
    ],
)
def test_a_broken_record_is_named(record, text, reason):
    record.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"depth_shift\.json' is no record of depth shift costs: .*{reason}"):
        depth_shift_table(record)
