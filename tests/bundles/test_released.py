"""What is released: weights, records and tables belong together, and the records can be repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from monai_kd.handlers.provenance import file_sha256
from monai_kd.teachers import load_report, load_teacher, load_weights
from monai_kd.visualize import load_records, write_tables


@pytest.fixture(scope="module")
def records(repository) -> list[dict]:
    found = load_records(repository / "docs" / "results" / "hippocampus")
    assert {(r["method"], r["seed"]) for r in found} >= {("teacher", 0)} | {
        (arm, seed) for arm in ("baseline", "distilled") for seed in (0, 1, 2)
    }
    return found


@pytest.fixture(scope="module")
def depth_records(repository) -> list[dict]:
    found = load_records(repository / "docs" / "results" / "distill_dsm")
    several = {"hippocampus": ("baseline", "distill_dsm", "plain_dsm", "unet3d")}
    several["left_atrium"] = ("baseline", "distill_dsm", "unet3d")
    wanted = {(data, name, seed) for data, names in several.items() for name in names for seed in (0, 1, 2)}
    variants = ("distill_dsm_alpha_quarter", "distill_dsm_alpha_one", "residual_dsm")
    wanted |= {("hippocampus", name, 0) for name in variants}
    wanted |= {(data, name, 0) for data in ("prostate", "brats") for name in ("baseline", "distill_dsm")}
    assert {(r["protocol"]["name"], r["method"], r["seed"]) for r in found} >= wanted
    return found


@pytest.fixture(scope="module")
def modality_records(repository) -> list[dict]:
    found = load_records(repository / "docs" / "results" / "mtcm_kd")
    many = ("baseline", "early_fusion", "mtcm_kd_pretrained", "response_kd_pretrained")
    single = ("mtcm_kd", "mtcm_teachers", "cdsfl_only_pretrained", "uniform_weights_pretrained")
    wanted = {(name, seed) for name in many for seed in (0, 1, 2)} | {(name, 0) for name in single}
    assert {(r["method"], r["seed"]) for r in found if r["seed"] is not None} == wanted
    assert {r["protocol"]["name"] for r in found} == {"brats"}
    return found


CAMERAS = ("retina", "retina_stare", "retina_drive")


@pytest.fixture(scope="module")
def camera_records(repository) -> list[dict]:
    found = [r for r in load_records(repository / "docs" / "results" / "gkd") if r["protocol"]["name"] in CAMERAS]
    found = [r for r in found if r["protocol"]["section"] != "validation"]
    many = ("gkd_teacher", "gkd_scratch", "gkd", "baseline", "augmentation", "logit_kd")
    single = ("views_kd", "gkd_intra_only", "gkd_inter_only", "gkd_graphs_only", "gkd_cross_only", "gkd_anchor_only")
    wanted = {(name, seed) for name in many for seed in (0, 1, 2)} | {(name, 0) for name in single}
    for camera in CAMERAS:
        assert {(r["method"], r["seed"]) for r in found if r["protocol"]["name"] == camera} >= wanted, camera
    return found


SLICES = ("left_atrium_slices", "left_atrium_slices_one_component")


@pytest.fixture(scope="module")
def slice_records(repository) -> list[dict]:
    found = load_records(repository / "docs" / "results" / "mtms_kd")
    arms = ("baseline", "logit_kd", "mtms_kd", "mtms_kd_unlabelled")
    wanted = {(f"{width}{name}", seed) for width in ("", "wide_") for name in arms for seed in range(3)}
    wanted |= {("mtms_teacher", 0)}
    for protocol in SLICES:
        own = {(r["method"], r["seed"]) for r in found if r["protocol"]["name"] == protocol}
        assert own >= wanted, protocol
    return found


def record_of(records: list[dict], weights: Path) -> dict:
    (found,) = [r for r in records if r["network"]["weights_sha256"] == file_sha256(weights)]
    return found


@pytest.mark.parametrize(
    ("bundle", "method"),
    [
        ("teacher", "teacher"),
        ("student", "distilled"),
        ("distill-dsm", "distill_dsm"),
        ("mtcm-kd", "mtcm_kd"),
        ("gkd", "gkd"),
        ("mtms-kd", "mtms_kd"),
    ],
)
def test_shipped_weights_have_a_record_and_load_strictly(
    repository, records, depth_records, modality_records, camera_records, slice_records, bundle, method
):
    folder = repository / "bundles" / bundle
    on_source = [r for r in camera_records if r["protocol"]["name"] == "retina"]
    known = [*records, *depth_records, *modality_records, *on_source]
    known += [r for r in slice_records if r["protocol"]["name"] == SLICES[0]]
    record = record_of(known, folder / "models" / "model.pt")
    assert (record["method"], record["bundle"]["name"]) == (method, bundle)
    assert load_report(load_teacher(folder)).complete
    assert (folder / "models" / "model.pt").stat().st_size < 20e6


def test_the_students_teacher_is_the_teacher_bundle_and_what_the_students_learned_from(repository, records):
    own = repository / "bundles" / "student" / "models" / "teacher" / "models" / "model.pt"
    sha256 = file_sha256(own)
    assert sha256 == file_sha256(repository / "bundles" / "teacher" / "models" / "model.pt")
    distilled = [r for r in records if r["method"] == "distilled"]
    assert {r["teacher"]["networks"]["teacher"]["weights_sha256"] for r in distilled} == {sha256}


def test_both_arms_were_trained_by_one_schedule_on_the_same_cases(records):
    arms = [r for r in records if r["method"] in ("baseline", "distilled")]
    for key in ("schedule_hash",):
        assert len({r[key] for r in arms}) == 1, key
    for key in ("hash", "split_hash", "cases_hash"):
        assert len({r["protocol"][key] for r in arms}) == 1, key
    assert len({r["protocol"]["hash"] for r in records}) == 1


def test_the_student_has_at_most_six_percent_of_the_teachers_parameters(records):
    size = {r["method"]: r["network"]["parameters"] for r in records}
    assert size["distilled"] == size["baseline"] <= 0.06 * size["teacher"]


def test_networks_on_one_task_share_recipe_cases_and_scoring(depth_records):
    for name in {r["protocol"]["name"] for r in depth_records}:
        own = [r for r in depth_records if r["protocol"]["name"] == name]
        assert len({r["recipe_hash"] for r in own}) == 1, name
        for key in ("scoring_hash", "split_hash", "cases_hash"):
            assert len({r["protocol"][key] for r in own}) == 1, (name, key)


def test_the_shipped_slices_network_is_the_seed_of_the_best_validation(repository, depth_records):
    seeds = [r for r in depth_records if (r["protocol"]["name"], r["method"]) == ("hippocampus", "distill_dsm")]
    best = max(seeds, key=lambda record: record["training"]["best_metric"])
    assert record_of(depth_records, repository / "bundles" / "distill-dsm" / "models" / "model.pt") == best


def test_the_shipped_teachers_of_other_modalities_fit_their_configuration(repository):
    folder = repository / "bundles" / "mtcm-kd"
    parser = ConfigParser(ConfigParser.load_config_file(str(folder / "configs" / "train.yaml")))
    weights, seen = folder / "models" / "teachers" / "model.pt", parser.get_parsed_content("teacher_modalities")
    teachers = load_weights(parser.get_parsed_content("teachers_def"), weights, {"teacher_modalities": seen})
    assert load_report(teachers).complete
    assert json.loads(weights.with_suffix(".json").read_text())["network"]["weights_sha256"] == file_sha256(weights)


def test_arms_of_one_modality_share_recipe_cases_and_scoring(modality_records):
    arms = [r for r in modality_records if r["training"] and r["method"] != "mtcm_teachers"]
    assert len({r["recipe_hash"] for r in arms}) == 1
    for key in ("scoring_hash", "split_hash", "cases_hash"):
        assert len({r["protocol"][key] for r in arms}) == 1, key
    for floor in (r for r in modality_records if r["method"] == "all_background"):
        assert floor["summary"]["dice"]["mean"] == 0.0


def test_arms_of_unseen_cameras_share_schedule_and_cases_and_never_saw_a_target(camera_records):
    arms = [r for r in camera_records if r["method"] not in ("gkd_teacher", "gkd_scratch")]
    assert len({r["schedule_hash"] for r in arms}) == 1
    for camera in CAMERAS:
        own = [r for r in arms if r["protocol"]["name"] == camera]
        for key in ("hash", "split_hash", "cases_hash"):
            assert len({r["protocol"][key] for r in own}) == 1, (camera, key)
    assert {r["training"]["protocol"]["name"] for r in camera_records} == {"retina"}
    weights = {
        camera: {
            (r["method"], r["seed"]): r["network"]["weights_sha256"]
            for r in camera_records
            if r["protocol"]["name"] == camera
        }
        for camera in CAMERAS
    }
    assert weights["retina"] == weights["retina_stare"] == weights["retina_drive"]


def test_the_shipped_stages_are_those_that_the_shipped_student_came_from(repository):
    folder = repository / "bundles" / "gkd" / "models"
    student = json.loads((folder / "model.json").read_text())
    assert student["start"] == {"student": file_sha256(folder / "stages" / "scratch.pt")}
    assert student["teacher"]["networks"]["teacher"]["weights_sha256"] == file_sha256(folder / "stages" / "teacher.pt")
    helpers = {facts["weights_sha256"] for facts in student["teacher"]["helpers"].values()}
    assert helpers == {file_sha256(folder / "stages" / "alignment.pt")}
    for path in (folder / "stages").glob("*.pt"):
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["network"]["weights_sha256"] == file_sha256(path), path.name


def test_students_of_slices_share_schedule_labels_and_the_shipped_teacher(repository, slice_records):
    students = [r for r in slice_records if not r["method"].endswith("_teacher")]
    assert len({r["schedule_hash"] for r in students if not r["method"].startswith("wide_")}) == 1
    assert len({r["schedule_hash"] for r in students if r["method"].startswith("wide_")}) == 1
    for protocol in SLICES:
        own = [r for r in students if r["protocol"]["name"] == protocol]
        for key in ("hash", "split_hash", "cases_hash"):
            assert len({r["protocol"][key] for r in own}) == 1, (protocol, key)
    assert len({r["training"]["protocol"]["n_train"] for r in students}) == 1
    shipped = file_sha256(repository / "bundles" / "mtms-kd" / "models" / "stages" / "teacher.pt")
    taught = [r for r in students if r["method"].removeprefix("wide_") in ("logit_kd", "mtms_kd", "mtms_kd_unlabelled")]
    assert {r["teacher"]["networks"]["teacher"]["weights_sha256"] for r in taught} == {shipped}


def test_published_tables_follow_from_the_records(repository):
    pages = [*repository.glob("docs/how_to/*.md"), *repository.glob("bundles/[!_]*/docs/README.md")]
    files = [repository / "README.md", *sorted(pages)]
    assert len(files) >= 3
    assert "results: exports" in (repository / "docs" / "how_to" / "openvino.md").read_text(encoding="utf-8")
    assert write_tables(repository / "docs" / "results", files, check=True) == []


def test_records_name_no_place_on_a_machine(repository):
    for path in [*repository.glob("docs/results/**/*.json"), *repository.glob("bundles/*/models/**/*.json")]:
        text = path.read_text(encoding="utf-8")
        for place in ('"/', "/home/", "/root/", "/tmp/", "/work/"):
            assert place not in text, f"{path}: {place}"


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["student", "distill-dsm"])
def test_the_score_on_real_data_can_be_repeated(repository, records, depth_records, real_data, tmp_path, bundle):
    if not (real_data / "Task04_Hippocampus").is_dir():
        pytest.skip(f"MONAI_KD_DATA lacks {real_data / 'Task04_Hippocampus'}: this test needs it")
    folder = repository / "bundles" / bundle
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", ".", "--run_dir", str(tmp_path / "run")]
    files = "['configs/train.yaml','configs/evaluate.yaml']"
    environment = {**os.environ, "MONAI_KD_DATA": str(real_data.resolve()), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, "--config_file", files], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    expected = record_of([*records, *depth_records], folder / "models" / "model.pt")
    assert found["protocol"]["hash"] == expected["protocol"]["hash"]
    for name, dice in expected["summary"]["dice"].items():
        assert found["summary"]["dice"][name] == pytest.approx(dice, abs=5e-4)
    assert found["training"]["run_id"] == expected["training"]["run_id"]
