"""Tables say what the records say, and nothing else; documents follow the records."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
from records import arm, make_record, write_record

from monai_kd.visualize import load_records, result_groups, results_table, write_tables
from monai_kd.visualize.records import _REQUIRED, _REQUIRED_OF_TRAINED

BASE = ((0.80, 0.82, 0.84, 0.86), (0.82, 0.84, 0.86, 0.88))
BETTER = [[value + 0.05 for value in seed] for seed in BASE]


def study() -> list[dict]:
    """A teacher and a student with and without distillation, two seeds."""
    return [
        *arm("teacher", [(0.90, 0.91, 0.92, 0.93)]),
        *arm("baseline", BASE),
        *arm("distilled", BETTER),
    ]


@pytest.fixture
def results_dir(tmp_path: Path) -> Path:
    for record in study():
        write_record(tmp_path / "results", record)
    return tmp_path / "results"


def row(markdown: str, start: str) -> list[str]:
    """The cells of the first table row that begins with ``start``."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


# ---------------------------------------------------------------- numbers


def test_row_shows_mean_and_sd_over_seeds() -> None:
    cells = row(results_table(study()), "baseline")
    # Seed means 0.83 and 0.85: mean 0.84, SD 0.02 / sqrt(2) = 0.0141; the classes lie 0.01 above and below.
    assert cells == [
        *("baseline", "DynUNet (student)", "271,234", "2"),
        *("0.8500 ± 0.0141", "0.8300 ± 0.0141", "0.8400 ± 0.0141"),
        *("1.00 ± 0.00", "1.50 ± 0.00", "100", "6.2x", "5.0"),
    ]


def test_one_seed_has_no_sd() -> None:
    assert row(results_table(study()), "teacher")[4:7] == ["0.9250", "0.9050", "0.9150"]


def test_student_row_shows_paired_difference_verdict_and_percent_of_the_teacher() -> None:
    cells = row(results_table(study()), "distilled (student)")
    # 0.89 / 0.915 = 97.3 %, 271,234 / 4,800,000 = 5.7 %, noise 2 * sqrt(0.0004 / 2) = 0.0283.
    assert cells == [
        *("distilled (student)", "**gain**", "+0.0500", "+0.0500 to +0.0500", "0.0283"),
        *("4", "0, 1", "97.3 %", "5.7 %"),
    ]


def test_gain_inside_the_seed_noise_is_printed_as_such() -> None:
    closer = [[value + 0.02 for value in seed] for seed in BASE]
    table = results_table([*arm("baseline", BASE), *arm("distilled", closer)])
    assert row(table, "distilled (student)")[1] == "**within noise**"


def test_misses_are_counted_beside_the_distance() -> None:
    records = [*arm("baseline", BASE, missed=(1,)), *arm("distilled", BETTER)]
    table = results_table(records)
    # Three cases at 1.5 mm and one at the diagonal of 75 mm: 19.88 mm; missed once by each of two seeds.
    assert row(table, "baseline")[8] == "19.88 ± 0.00 (2 missed)"
    assert "missed" not in row(table, "distilled")[8]
    assert "image diagonal" in table


def test_class_that_is_never_scored_shows_no_number() -> None:
    records = arm("baseline", BASE)
    for record in records:
        record["summary"]["dice"]["posterior"] = record["summary"]["hd95_mm"]["posterior"] = None
    cells = row(results_table(records), "baseline")
    assert (cells[5], cells[8]) == ("-", "-")


def test_other_cpu_gives_no_speed_up() -> None:
    records = study()
    records[0]["device"] = {"name": "Apple M2", "type": "cpu", "threads": 2}
    table = results_table(records)
    assert row(table, "distilled")[9:11] == ["100", "-"]
    assert "timed on another CPU than teacher (teacher)" in table


def test_gpu_times_do_not_count_as_cpu_times() -> None:
    records = study()
    for record in records:
        record["device"]["type"] = "cuda"
    assert row(results_table(records), "distilled")[9:11] == ["-", "-"]


def test_cpu_time_is_the_median_over_records() -> None:
    records = arm("baseline", [BASE[0]] * 3)
    for record, seconds in zip(records, (0.1, 0.2, 0.9), strict=True):
        record["time"]["inference_s_per_case"] = seconds
    assert row(results_table(records), "baseline")[9] == "200"


def test_order_of_records_does_not_matter() -> None:
    assert results_table(study()) == results_table(list(reversed(study())))


# ---------------------------------------------------------------- what may be compared


def test_other_schedules_have_rows_of_their_own_and_are_not_compared() -> None:
    records = [*arm("baseline", BASE), *arm("distilled", BETTER, schedule="9" * 64)]
    table = results_table(records)
    assert row(table, "baseline, schedule 11111111")
    assert row(table, "distilled, schedule 99999999")
    assert row(table, "distilled, schedule 99999999 (student)")[1] == "refused"
    assert "distilled (student) is not compared with baseline (student): schedule_hash differs" in table
    assert "rows of different schedules are not compared" in table


def test_other_splits_are_not_compared() -> None:
    table = results_table([*arm("baseline", BASE), *arm("distilled", BETTER, split="8" * 64)])
    assert row(table, "distilled, split 88888888")
    assert "split_hash differs" in table


def test_other_seeds_are_not_compared() -> None:
    table = results_table([*arm("baseline", BASE), *arm("distilled", BETTER[:1])])
    assert "seeds differ: 0, 1 in a, 0 in b" in table
    assert row(table, "distilled (student)")[1] == "refused"


def test_baseline_of_the_same_schedule_is_chosen_among_several() -> None:
    worse = [[value - 0.3 for value in seed] for seed in BASE]
    records = [*arm("baseline", BASE), *arm("baseline", worse, schedule="0" * 64), *arm("distilled", BETTER)]
    assert row(results_table(records), "distilled, schedule 11111111 (student)")[2] == "+0.0500"


def test_protocols_of_different_hash_and_section_stand_in_tables_of_their_own() -> None:
    records = [*study(), *arm("distilled", BETTER, protocol="7" * 64), *arm("distilled", BETTER, section="validation")]
    groups = result_groups(records)
    assert [group.title for group in groups] == [
        "hippocampus, test section (protocol 333333333333)",
        "hippocampus, test section (protocol 777777777777)",
        "hippocampus, validation section (protocol 333333333333)",
    ]
    assert [len(group.arms) for group in groups] == [3, 1, 1]


def test_missing_baseline_and_teacher_are_said() -> None:
    table = results_table(arm("distilled", BETTER))
    assert "no baseline recorded" in table
    assert "no teacher recorded" in table


def test_student_of_other_teacher_weights_is_said() -> None:
    records = study()
    for record in records[3:]:
        record["teacher"]["weights_sha256"] = "bb" * 32
    assert (
        "learned from other teacher weights (bbbbbbbbbbbb) than teacher (teacher) has (aaaaaaaaaaaa)"
        in results_table(records)
    )


def test_teacher_is_found_by_the_weights_the_student_learned_from() -> None:
    other = make_record("teacher", dice=(0.5, 0.5, 0.5, 0.5))
    other["network"].update(target="UNet", weights_sha256="cc" * 32)
    table = results_table([other, *study()])
    assert row(table, "distilled (student)")[7] == "97.3 %"
    assert row(table, "baseline (student)")[7] == "-"
    assert "baseline (student): which of the 2 teachers it learned from is not recorded" in table


def test_weights_of_several_teachers_are_read_by_name() -> None:
    records = study()
    for record in records[3:]:
        networks = {"t1": {"weights_sha256": "bb" * 32}, "t2": {"weights_sha256": "cc" * 32}}
        record["teacher"] = {"source": "live", "networks": networks}
    assert "other teacher weights (bbbbbbbbbbbb, cccccccccccc)" in results_table(records)


def test_weights_of_unknown_training_are_shown_but_not_compared(results_dir: Path) -> None:
    for path in results_dir.glob("evaluate-distilled-*/run.json"):
        record = json.loads(path.read_text())
        record.update(training=None, seed=None, schedule_hash=None, teacher=None)
        for key in ("split_hash", "n_train", "n_validation"):
            del record["protocol"][key]
        path.write_text(json.dumps(record))
    table = results_table(load_records(results_dir))
    cells = row(table, "distilled, schedule unknown, split unknown")
    assert (cells[3], cells[11]) == ("1 (unknown)", "-")
    assert "schedule_hash is unknown in evaluate-distilled" in table


def test_repeated_evaluation_is_named() -> None:
    records = [*study(), make_record("distilled", 0, BETTER[0], stamp="20261122-080000")]
    table = results_table(records)
    assert row(table, "distilled")[3] == "2"
    assert "not evaluate-distilled-seed0-20261121-104400" in table


def test_hidden_arms_still_serve_as_reference() -> None:
    table = results_table(study(), methods=["distilled"])
    assert row(table, "distilled")[10] == "6.2x"
    assert row(table, "distilled (student)")[2] == "+0.0500"
    assert "| teacher |" not in table
    assert "| baseline |" not in table


# ---------------------------------------------------------------- records


def test_only_files_named_run_json_are_read(results_dir: Path) -> None:
    (results_dir / "notes.json").write_text("not a record")
    assert len(load_records(results_dir)) == 5


def test_training_records_are_left_out(results_dir: Path) -> None:
    write_record(results_dir, {"schema": 1, "kind": "training", "run_id": "train-x"})
    assert len(load_records(results_dir)) == 5


@pytest.mark.parametrize("key", [*_REQUIRED, *_REQUIRED_OF_TRAINED])
def test_missing_key_is_named_with_its_file(tmp_path: Path, key: str) -> None:
    record = make_record("distilled")
    path = write_record(tmp_path, record)
    place = record
    *parents, last = key.split(".")
    for parent in parents:
        place = place[parent]
    del place[last]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"run.json: missing key '{key}'") as caught:
        load_records(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(schema=2), "'schema' is 2"),
        (lambda r: r.update(seed="0"), "'seed' is '0'"),
        (lambda r: r.update(cases=[]), "'cases' is empty"),
        (lambda r: r["cases"].append(copy.deepcopy(r["cases"][0])), "case 'hippocampus_000' occurs twice"),
        (
            lambda r: r["cases"][1]["dice"].pop("posterior"),
            r"missing key 'cases\[1\].dice.posterior'; known there: ant",
        ),
        (lambda r: r["cases"][1]["dice"].update(posterior="high"), r"'cases\[1\].dice.posterior' is 'high'"),
        (lambda r: r["summary"]["dice"].update(anterior=math.nan), "'summary.dice.anterior' is nan"),
        (lambda r: r["summary"]["hd95_mm"].pop("anterior"), "missing key 'summary.hd95_mm.anterior'"),
        (lambda r: r["summary"]["missed"].update(anterior=None), "'summary.missed.anterior' is None"),
        (lambda r: r["training"].pop("time"), "missing key 'training.time.total_s'"),
    ],
)
def test_bad_record_is_refused(tmp_path: Path, change, message: str) -> None:
    record = make_record("distilled")
    change(record)
    write_record(tmp_path, record)
    with pytest.raises(ValueError, match=message):
        load_records(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[1]", "holds a list")])
def test_file_that_is_no_record_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=f"run.json: {message}"):
        load_records(tmp_path)


def test_absent_results_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="results_dir"):
        load_records(tmp_path / "absent")


# ---------------------------------------------------------------- documents

MARKED = "# Title\n\n<!-- >>> results: hippocampus{filters} -->\nold\n<!-- <<< results -->\n\nEnd.\n"


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(MARKED.format(filters=""))
    return path


def test_document_gets_the_table_once_and_then_stays(results_dir: Path, readme: Path) -> None:
    assert write_tables(results_dir, [readme]) == [readme]
    table = results_table(load_records(results_dir))
    assert readme.read_text() == MARKED.format(filters="").replace("old", table)
    assert write_tables(results_dir, [readme]) == []


def test_check_reports_drift_and_changes_nothing(results_dir: Path, readme: Path) -> None:
    before = readme.read_text()
    assert write_tables(results_dir, [readme], check=True) == [readme]
    assert readme.read_text() == before
    write_tables(results_dir, [readme])
    assert write_tables(results_dir, [readme], check=True) == []


def test_editing_a_record_changes_the_document(results_dir: Path, readme: Path) -> None:
    write_tables(results_dir, [readme])
    path = next(results_dir.glob("evaluate-teacher-*/run.json"))
    record = json.loads(path.read_text())
    record["summary"]["dice"]["mean"] = 0.4321
    path.write_text(json.dumps(record))
    assert write_tables(results_dir, [readme]) == [readme]
    assert row(readme.read_text(), "teacher")[6] == "0.4321"


def test_deleting_a_record_removes_its_row(results_dir: Path, readme: Path) -> None:
    write_tables(results_dir, [readme])
    assert "| teacher |" in readme.read_text()
    next(results_dir.glob("evaluate-teacher-*/run.json")).unlink()
    write_tables(results_dir, [readme])
    assert "| teacher |" not in readme.read_text()
    assert "| distilled |" in readme.read_text()


def test_protocol_without_records_says_so(results_dir: Path, readme: Path) -> None:
    readme.write_text(readme.read_text().replace("hippocampus", "spleen"))
    write_tables(results_dir, [readme])
    assert "-->\nNo results recorded.\n<!--" in readme.read_text()


def test_filters_of_a_marker_select_rows(results_dir: Path, readme: Path) -> None:
    readme.write_text(MARKED.format(filters=" methods=teacher,baseline sections=test"))
    write_tables(results_dir, [readme])
    assert "| teacher |" in readme.read_text()
    assert "| baseline |" in readme.read_text()
    assert "| distilled |" not in readme.read_text()
    readme.write_text(MARKED.format(filters=" bundles=gkd"))
    write_tables(results_dir, [readme])
    assert "No results recorded." in readme.read_text()


def test_marker_in_a_code_block_is_an_example(results_dir: Path, readme: Path) -> None:
    readme.write_text("```\n" + MARKED.format(filters="") + "```\n")
    assert write_tables(results_dir, [readme]) == []


def test_several_markers_in_a_document_are_filled(results_dir: Path, readme: Path) -> None:
    readme.write_text(MARKED.format(filters=" methods=teacher") + MARKED.format(filters=" methods=distilled"))
    write_tables(results_dir, [readme])
    assert readme.read_text().count("End.") == 2
    assert "| distilled |" in readme.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\n<!-- >>> results: hippocampus -->\n", "README.md:2: this results marker is not closed"),
        ("<!-- <<< results -->\n", "README.md:1: .* was not opened"),
        ("<!-- >>> results: a -->\n<!-- >>> results: b -->\n", "README.md:2: .* inside the one of line 1"),
        (MARKED.format(filters=" seeds=0"), "README.md:3: unknown filter 'seeds'.*bundles, methods, sections"),
        (MARKED.format(filters=" teacher"), "README.md:3: cannot read"),
    ],
)
def test_broken_marker_is_named_with_its_line(results_dir: Path, readme: Path, text: str, message: str) -> None:
    readme.write_text(text)
    with pytest.raises(ValueError, match=message):
        write_tables(results_dir, [readme])
    assert readme.read_text() == text
