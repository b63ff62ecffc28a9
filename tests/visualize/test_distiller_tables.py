"""The tables of the distillers and of the losses' costs say what their records say, and nothing else."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from records import arm, write_record

from monai_kd.hub.calibrate import Calibration, TermPull
from monai_kd.visualize import distillers_figure, distillers_table, results_table, write_tables
from monai_kd.visualize.loss_costs import loss_costs_table
from monai_kd.visualize.noisy_labels import noisy_labels_table
from monai_kd.visualize.pulls import pulls_table

# mean Dice of the student alone over its four cases: 0.83, 0.85, 0.84 by seed
BASE = ((0.80, 0.82, 0.84, 0.86), (0.82, 0.84, 0.86, 0.88), (0.81, 0.83, 0.85, 0.87))
SHORT = "hippocampus_short"
HEAD = ("method", "seeds", "Dice anterior", "Dice posterior", "Dice mean", "HD95 mean (mm)")
DIFFERENCE, VERDICT, MS, EXTRA = 6, 7, 8, 9


def shifted(by: float, seeds: int = 3) -> list[list[float]]:
    return [[value + by for value in seed] for seed in BASE[:seeds]]


def method(name: str, dice: Sequence[Sequence[float]], **settings: Any) -> list[dict[str, Any]]:
    return arm(name, dice, protocol_name=SHORT, **settings)


def study() -> list[dict[str, Any]]:
    """Student alone, teacher, three methods of three seeds and two of one."""
    return [
        *method("teacher", [(0.90, 0.91, 0.92, 0.93)]),
        *method("baseline", BASE),
        *method("at", shifted(0.05)),
        *method("dist", shifted(-0.05)),
        *method("kd", shifted(0.01)),
        *method("lskd", shifted(0.02, seeds=1)),
        *method("pkd", shifted(0.03, seeds=1)),
    ]


STEPS: dict[str, Any] = {
    "device": {"type": "cpu", "name": "AMD EPYC", "threads": 2},
    "rounds": 15,
    "batch": [1, 1, 40, 56, 40],
    "precision": "bfloat16",
    "teacher_forward_ms": 140.2,
    "methods": {
        "baseline": {"ms": 100.4, "extra_ms": 0.0, "ratio": 1.0},
        "at": {"ms": 251.0, "extra_ms": 150.6, "ratio": 2.5},
    },
}


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    path = tmp_path / "zoo" / "steps.json"
    path.parent.mkdir()
    path.write_text(json.dumps(STEPS), encoding="utf-8")
    return path


def rows(table: str) -> dict[str, list[str]]:
    """The cells of each row below the header by its first cell, in order."""
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")][2:]
    return {cells[0].strip(): [cell.strip() for cell in cells] for cells in lines}


# ---------------------------------------------------------------- what the rows say


def test_the_student_alone_comes_first_then_methods_by_dice_then_those_of_one_seed_and_the_teacher():
    expected = ["student alone", "at", "kd", "dist", "_1 seed each:_", "pkd", "lskd", "teacher"]
    assert list(rows(distillers_table(study()))) == expected
    assert list(rows(distillers_table(reversed(study())))) == expected


def test_a_row_of_several_seeds_by_hand(steps):
    table = distillers_table(study(), steps)
    assert table.startswith("| " + " | ".join(HEAD))
    # seed means 0.83, 0.85 and 0.84: mean 0.84, SD 0.01; HD95 1.0 and 1.5 mm; 251 - 100.4 ms
    assert rows(table)["student alone"] == [
        *("student alone", "3", "0.8500 ± 0.0100", "0.8300 ± 0.0100", "0.8400 ± 0.0100", "1.25 ± 0.00"),
        *("-", "reference", "100", "-"),
    ]
    assert rows(table)["at"] == [
        *("at", "3", "0.9000 ± 0.0100", "0.8800 ± 0.0100", "0.8900 ± 0.0100", "1.25 ± 0.00"),
        *("+0.0500 (+0.0500 to +0.0500)", "**gain**", "251", "+151 (2.50x)"),
    ]


def test_verdicts_by_hand():
    # the seed noise is 2 * sqrt((0.01**2 + 0.01**2) / 3) = 0.0163
    found = {name: cells[VERDICT] for name, cells in rows(distillers_table(study())).items()}
    assert found["at"] == "**gain**"
    assert found["dist"] == "**loss**"
    assert found["kd"] == "**within noise**"
    assert found["lskd"] == found["pkd"] == "1 seed"
    assert found["teacher"] == "-"


def test_a_method_of_one_seed_is_compared_with_the_student_alone_of_that_seed():
    found = rows(distillers_table(study()))["lskd"]
    # seed 0: 0.85 against 0.83, not against 0.84, the mean of the three
    assert found[4] == "0.8500"
    assert found[DIFFERENCE] == "+0.0200 (+0.0200 to +0.0200)"
    other = [record for record in method("lskd", shifted(0.02)) if record["seed"] == 1]
    assert rows(distillers_table([*study()[:4], *other]))["lskd"][DIFFERENCE] == "+0.0200 (+0.0200 to +0.0200)"


def test_a_seed_that_the_student_alone_lacks_is_refused_with_the_reason():
    records = [*method("baseline", BASE[:1]), *method("kd", shifted(0.01))]
    table = distillers_table(records)
    assert rows(table)["kd"][DIFFERENCE : VERDICT + 1] == ["-", "refused"]
    assert "kd is not compared with the student alone: seeds differ: 0 in baseline, 0, 1, 2 in kd." in table


def test_another_schedule_is_refused_and_named():
    records = [*method("baseline", BASE), *method("kd", shifted(0.01), schedule="9" * 64)]
    table = distillers_table(records)
    assert rows(table)["kd"][VERDICT] == "refused"
    assert "schedule_hash differs" in table


def test_misses_are_counted_beside_the_distance():
    records = [*method("baseline", BASE), *method("kd", shifted(0.01), missed=(1,))]
    table = distillers_table(records)
    assert rows(table)["kd"][5].endswith("(3 missed)")
    assert "Missed:" in table
    assert "Missed:" not in distillers_table(study())


# ---------------------------------------------------------------- the control of equal time


def longer(by: float = 0.03, seeds: int = 3) -> list[dict[str, Any]]:
    """The student alone for 210 epochs, where the others have 60."""
    records = method("baseline", shifted(by, seeds), schedule="8" * 64)
    for record in records:
        record["training"]["epochs"] = 210
    return records


def test_a_longer_student_alone_is_the_control_of_equal_time(steps):
    table = distillers_table([*longer(), *study()], steps)
    found = rows(table)
    assert "| verdict | minus student alone, 210 epochs | ms per step |" in table
    assert list(found)[:3] == ["student alone", "student alone, 210 epochs", "at"]
    assert found["student alone"][VERDICT : VERDICT + 3] == ["reference", "-", "100"]
    assert found["student alone, 210 epochs"][4] == "0.8700 ± 0.0100"
    assert found["student alone, 210 epochs"][DIFFERENCE : VERDICT + 2] == [
        *("+0.0300 (+0.0300 to +0.0300)", "**gain**", "-")
    ]
    # 0.05 better than the student alone and 0.02 than the longer one; the seed noise is 0.0163
    assert found["at"][DIFFERENCE : VERDICT + 2] == [
        *("+0.0500 (+0.0500 to +0.0500)", "**gain**", "+0.0200 (+0.0200 to +0.0200), gain")
    ]
    assert found["kd"][VERDICT + 1] == "-0.0200 (-0.0200 to -0.0200), loss"
    assert found["lskd"][VERDICT + 1] == "-0.0100 (-0.0100 to -0.0100), 1 seed"
    assert found["teacher"][DIFFERENCE : VERDICT + 2] == ["-", "-", "-"]
    assert "student alone, 210 epochs: 3.5 times the steps, the control of equal time" in table
    assert "Epochs of training: students 60, the teacher 60." in table
    assert {cells[VERDICT] for cells in rows(distillers_table(study())).values()} >= {"reference", "**gain**"}


def test_without_a_shorter_one_a_longer_student_alone_is_no_control():
    records = [*longer(), *(record for record in study() if record["method"] != "baseline")]
    found = rows(distillers_table(records))
    assert found["kd"][VERDICT] == "refused"
    assert "student alone, 210 epochs" not in found


def test_a_seed_that_the_control_of_equal_time_lacks_is_refused():
    table = distillers_table([*longer(seeds=1), *study()])
    assert "kd is not compared with the student alone: seeds differ: 0 in baseline, 0, 1, 2 in kd." in table


# ---------------------------------------------------------------- what the notes say


def test_the_notes_tell_cases_epochs_machine_and_how_many_comparisons_there_were(steps):
    table = distillers_table(study(), steps)
    assert "4 cases; training on 152, selection on 16." in table
    assert "Epochs of training: students 60, the teacher 60." in table
    assert "AMD EPYC, 2 threads, batch 1 x 1 x 40 x 56 x 40, bfloat16: median of 15 rounds" in table
    assert "The teacher's forward alone takes 140 ms." in table
    # 5 methods, 3 of them of 3 seeds; |t| > 2 with 4 degrees of freedom has probability 0.116
    assert "5 comparisons with one and the same student alone" in table
    assert "Of the 3 with several seeds about 0.3 would pass the seed noise by luck" in table
    assert "The 2 with 1 seed have no known seed noise" in table


def test_without_step_times_their_columns_are_empty():
    table = distillers_table(study(), None)
    assert all(cells[MS:] == ["-", "-"] for name, cells in rows(table).items() if "each" not in name)
    assert "No time per step recorded." in table


def test_a_method_without_a_step_time_has_none(steps):
    assert rows(distillers_table(study(), steps))["kd"][MS:] == ["-", "-"]


@pytest.mark.parametrize("text", ["{", "[]", '{"methods": {"kd": {}}}', '{"methods": {"kd": {"ms": "fast"}}}'])
def test_broken_step_times_are_named(steps, text):
    steps.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"steps\.json' is no record of step times"):
        distillers_table(study(), steps)


def test_without_records_the_table_says_so():
    assert distillers_table([]) == "No results recorded."
    assert distillers_table(arm("baseline", BASE)) == "No results recorded."  # of another protocol


def test_without_the_student_alone_nothing_is_compared():
    table = distillers_table(method("kd", shifted(0.01)))
    assert rows(table)["kd"][DIFFERENCE : VERDICT + 1] == ["-", "-"]
    assert "No student alone recorded to compare with." in table


# ---------------------------------------------------------------- documents


def page(folder: Path, name: str) -> Path:
    path = folder / "page.md"
    path.write_text(f"Before\n<!-- >>> results: {name} -->\n<!-- <<< results -->\nAfter\n", encoding="utf-8")
    return path


@pytest.fixture
def results_dir(tmp_path: Path, steps: Path) -> Path:
    for record in study():
        write_record(tmp_path / "zoo", record)
    return tmp_path


def test_an_edited_record_changes_the_document_and_a_removed_one_leaves_it(results_dir, steps):
    path = page(results_dir, "distillers")
    assert write_tables(results_dir, [path]) == [path]
    before = path.read_text(encoding="utf-8")
    assert list(rows(before)) == list(rows(distillers_table(study(), steps)))
    assert write_tables(results_dir, [path], check=True) == []
    record = next(record for record in study() if record["method"] == "pkd")
    record["summary"]["dice"]["mean"] = 0.7777
    write_record(results_dir / "zoo", record)
    assert write_tables(results_dir, [path]) == [path]
    assert "| 0.7777 |" in path.read_text(encoding="utf-8")
    (results_dir / "zoo" / record["run_id"] / "run.json").unlink()
    write_tables(results_dir, [path])
    after = rows(path.read_text(encoding="utf-8"))
    assert "pkd" not in after
    assert "lskd" in after


def test_step_times_are_read_from_the_folder_of_the_records(results_dir, steps):
    path = page(results_dir, "distillers")
    content = copy.deepcopy(STEPS)
    content["methods"]["at"]["ms"] = 987.0
    steps.write_text(json.dumps(content), encoding="utf-8")
    write_tables(results_dir, [path])
    assert rows(path.read_text(encoding="utf-8"))["at"][MS] == "987"


def test_records_of_the_short_schedule_stay_out_of_the_other_table(results_dir):
    path = page(results_dir, "hippocampus")
    write_tables(results_dir, [path])
    assert "No results recorded." in path.read_text(encoding="utf-8")
    assert results_table(record for record in study() if record["protocol"]["name"] == "hippocampus") == (
        "No results recorded."
    )


@pytest.mark.parametrize("name", ["exports", "distillers", "loss_costs", "noisy_labels", "pulls"])
def test_a_table_of_its_own_takes_no_filters(results_dir, name):
    path = page(results_dir, f"{name} methods=kd")
    with pytest.raises(ValueError, match=rf"page\.md:2: the table '{name}' takes no filters, got 'methods=kd'"):
        write_tables(results_dir, [path])


# ---------------------------------------------------------------- the figure


def test_the_figure_shows_every_seed_the_means_the_band_and_the_teacher():
    pytest.importorskip("matplotlib")
    (axes,) = distillers_figure(study()).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["student alone", "at", "kd", "dist", "pkd", "lskd"]
    drawn = [(line.get_marker(), sorted(line.get_xdata())) for line in axes.lines]
    assert ("o", pytest.approx([0.88, 0.89, 0.90])) in drawn
    assert ("|", pytest.approx([0.89])) in drawn
    assert ("o", pytest.approx([0.86])) in drawn
    vertical = [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]]
    assert vertical == pytest.approx([0.84, 0.915])
    (band,) = axes.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((0.83, 0.02))


def test_a_figure_without_a_distiller_is_refused():
    with pytest.raises(ValueError, match="no distiller is recorded under the protocol 'hippocampus_short'"):
        distillers_figure(method("baseline", BASE))


# ---------------------------------------------------------------- what losses cost


def cost(ours: float, textbook: float, on: str = "logits") -> dict[str, Any]:
    return {
        "on": on,
        "shape": [2, 9, 512, 512],
        "ms": {"ours": ours, "textbook": textbook},
        "time_ratio": ours / textbook,
        "peak_bytes": {"ours": 40_000_000, "textbook": 100_000_000},
        "memory_ratio": 0.4,
    }


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    record = {
        "device": {"type": "cpu", "name": "AMD EPYC", "threads": 1},
        "rounds": 9,
        "sizes": {"2-D": {"KD": cost(50, 100), "DKD": cost(90, 100)}},
    }
    path = tmp_path / "loss_costs.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def test_a_loss_that_misses_two_thirds_of_the_textbook_is_marked(costs):
    table = loss_costs_table(costs.parent)
    assert rows(table)["KD"] == ["KD", "2-D", "50.0", "100.0", "0.50", "40.0", "100.0", "0.40"]
    assert rows(table)["DKD"][4] == "0.90 (missed)"
    assert "reached in time by 1 and in memory by 2 of 2" in table
    assert "AMD EPYC, 1 thread," in table
    assert "2-D logits 2 x 9 x 512 x 512" in table


def test_costs_of_several_devices_stand_in_tables_of_their_own(costs):
    record = json.loads(costs.read_text(encoding="utf-8"))
    record["device"] = {"type": "cuda", "name": "NVIDIA H100", "threads": 8}
    costs.with_name("loss_costs_cuda.json").write_text(json.dumps(record), encoding="utf-8")
    table = loss_costs_table(costs.parent)
    assert table.index("AMD EPYC") < table.index("NVIDIA H100,")
    assert table.count("| loss |") == 2


def test_without_costs_the_table_says_so(tmp_path):
    assert loss_costs_table(tmp_path) == "No results recorded."


@pytest.mark.parametrize("text", ["{", "[]", '{"device": {}, "sizes": {"2-D": {"KD": {}}}}'])
def test_broken_costs_are_named(costs, text):
    costs.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"loss_costs\.json' is no record of loss costs"):
        loss_costs_table(costs.parent)


# ---------------------------------------------------------------- labels that are wrong


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    record = {
        "wrong_foreground_percent": 41.7,
        "teacher_dice_percent": 95.04,
        "dice_percent": {"baseline": [60.0, 62.0, 64.0], "kd": [70.0, 61.0, 70.0]},
        "untrained_teacher_dice_percent": {"baseline": [60.0, 62.0, 64.0], "kd": [61.0, 62.0, 63.0]},
    }
    path = tmp_path / "zoo" / "noisy_labels.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def test_gains_under_wrong_labels_by_hand(noisy):
    path = page(noisy.parents[1], "noisy_labels")
    write_tables(noisy.parents[1], [path])
    text = path.read_text(encoding="utf-8")
    # gains 10, -1, 6: mean 5, SD sqrt((25 + 36 + 1) / 2) = 5.57
    assert rows(text) == {
        "student alone": ["student alone", "3", "62.0 ± 2.0", "-", "-", "-", "-"],
        "kd": ["kd", "3", "67.0 ± 5.2", "+5.0 ± 5.6", "-1.0", "2 of 3", "+0.0 ± 1.0"],
        "teacher": ["teacher", "1", "95.0", "-", "-", "-", "-"],
    }
    assert "Labels of 42 % of the objects' pixels are wrong" in text


def test_without_a_record_of_noisy_labels_the_table_says_so(tmp_path):
    assert noisy_labels_table(tmp_path / "noisy_labels.json") == "No results recorded."


@pytest.mark.parametrize("text", ["{", "[]", '{"dice_percent": {"kd": [1]}}', '{"dice_percent": {"baseline": []}}'])
def test_a_broken_record_of_noisy_labels_is_named(noisy, text):
    noisy.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"noisy_labels\.json' is no record of noisy labels"):
        noisy_labels_table(noisy)


# ---------------------------------------------------------------- how hard terms pull


def pull(weight: float, ratio: float, sd: float, suggested: float | None) -> dict[str, float | None]:
    return {"weight": weight, "ratio": ratio, "sd": sd, "suggested": suggested}


SEG = pull(1.0, 1.0, 0.0, None)
PULLS: dict[str, Any] = {
    "device": {"type": "cpu", "name": "AMD EPYC", "threads": 1},
    "data": "hippocampus",
    "precision": "bfloat16",
    "batches": 10,
    "warmup": 20,
    "reference": "seg",
    "overlays": {
        "dist": {"seg": SEG, "dist": pull(1.0, 1.525, 0.294, 0.65574)},
        "emkd": {"seg": SEG, "affinity": pull(0.9, 0.0, 0.0, None), "importance": pull(0.9, 6.0, 1.25, 0.15)},
        "at": {"seg": SEG, "at": pull(2.0, 25.04, 4.0, 0.0798722)},
    },
}


@pytest.fixture
def pulls(tmp_path: Path) -> Path:
    path = tmp_path / "zoo" / "pulls.json"
    path.parent.mkdir()
    path.write_text(json.dumps(PULLS), encoding="utf-8")
    return path


def cells(table: str) -> list[list[str]]:
    """The cells of each row below the header."""
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_pulls_by_hand_the_overlay_of_the_strongest_term_first_and_without_the_reference(pulls):
    path = page(pulls.parents[1], "pulls")
    assert write_tables(pulls.parents[1], [path]) == [path]
    text = path.read_text(encoding="utf-8")
    assert "| overlay | term | weight | ratio, mean ± SD | weight for ratio 1 |" in text
    assert cells(text) == [
        ["at", "at", "2", "25 ± 4", "0.0799"],
        ["emkd", "importance", "0.9", "6 ± 1.2", "0.15"],
        ["emkd", "affinity", "0.9", "0 ± 0", "no gradient"],
        ["dist", "dist", "1", "1.52 ± 0.29", "0.656"],
    ]
    assert "after 20 iterations on `seg` alone, on 10 batches of hippocampus," in text
    assert "bfloat16 on AMD EPYC, 1 thread." in text
    assert write_tables(pulls.parents[1], [path], check=True) == []


def test_pulls_on_one_batch_have_no_deviation(pulls):
    pulls.write_text(json.dumps({**PULLS, "batches": 1, "warmup": 0}), encoding="utf-8")
    table = pulls_table(pulls)
    assert [row[3] for row in cells(table)] == ["25", "6", "0", "1.52"]
    assert "at the random start, on 1 batch of hippocampus," in table


def test_what_the_benchmark_records_of_a_calibration_is_what_the_table_reads(pulls, repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "benchmarks")
    benchmark = importlib.import_module("pulls")
    measured = [TermPull("seg", 1.0, 1.0, 0.0, None), TermPull("kd", 2.0, 5.0, 0.5, 0.4)]
    found = {"kd": benchmark.entry(Calibration(measured, "seg", 1.0, 10, 20))}
    pulls.write_text(json.dumps({**PULLS, "overlays": found}), encoding="utf-8")
    assert cells(pulls_table(pulls)) == [["kd", "kd", "2", "5 ± 0.5", "0.4"]]
    assert len(benchmark.overlays()) == len(list((repository / "bundles/student/configs/distillers").glob("*.yaml")))
    assert {"at", "kd", "self"} <= set(benchmark.overlays())


def test_without_a_record_of_pulls_the_table_says_so(tmp_path):
    assert pulls_table(tmp_path / "pulls.json") == "No results recorded."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'reference'"),
        (json.dumps({**PULLS, "overlays": {"kd": {"seg": SEG}}}), "overlay 'kd' has no term besides 'seg'"),
        (json.dumps({**PULLS, "overlays": {"kd": {"kd": {"ratio": 1.0}}}}), "KeyError"),
        (json.dumps({**PULLS, "overlays": {"kd": {"kd": {**SEG, "ratio": None}}}}), "TypeError"),
    ],
)
def test_a_broken_record_of_pulls_is_named(pulls, text, reason):
    pulls.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"pulls\.json' is no record of pulls: .*{reason}"):
        pulls_table(pulls)
