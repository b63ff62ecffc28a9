"""The bundles at work: fair arms and living knobs in process, and the documented commands as their users type them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import TINY, bundle_run
from flows import checksum, first_batches, get, ready, validated
from ignite.engine import Engine
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.engines import IterationEvents
from monai.handlers import ValidationHandler

from monai_kd.data import CaseSplit, case_id, labelled_cases
from monai_kd.handlers.provenance import file_sha256
from monai_kd.hub import make_teacher
from monai_kd.teachers import load_report, load_teacher

ARMS = {"distilled": ("train.yaml",), "baseline": ("train.yaml", "baseline.yaml")}


# ---- in process: fair arms ------------------------------------------------------------------------------------------


def test_both_arms_start_from_the_same_weights_and_see_the_same_batches(repository, workflow):
    states, batches = {}, {}
    for arm, names in ARMS.items():
        flow = ready(workflow(repository / "bundles" / "student", names, patch_size=[16, 16, 16]))
        states[arm] = {key: value.clone() for key, value in get(flow, "network").state_dict().items()}
        batches[arm] = first_batches(flow, 2)
    assert states["distilled"].keys() == states["baseline"].keys()
    for key, value in states["distilled"].items():
        assert torch.equal(value, states["baseline"][key]), key
    assert [len(found) for found in batches.values()] == [2, 2]
    for ours, theirs in zip(*batches.values(), strict=True):
        assert ours["image"].meta["filename_or_obj"] == theirs["image"].meta["filename_or_obj"]
        for key in ("image", "label"):
            assert torch.equal(ours[key].as_tensor(), theirs[key].as_tensor())
    first, second = (batch["image"].as_tensor() for batch in batches["distilled"])
    assert not torch.equal(first, second)


# ---- in process: every knob changes a number ------------------------------------------------------------------------

SMALL = {"epochs": 1, "batch_size": 1, "patch_size": [16, 16, 16], "roi_size": [24, 24, 24], "overlap": 0.1}
ONLY_THE_SCHEDULE = {
    "_target_": "LrScheduleHandler",
    "lr_scheduler": "@lr_scheduler",
    "print_lr": False,
    "epoch_level": False,
}
START, BATCH, FIRST, AFTER = {"start"}, {"shape", "images"}, {"loss_1", "seg_1", "soft_1"}, {"loss_2", "weights"}
# knob: its override, the numbers that must change, the numbers that must not
KNOBS: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "seed": ({"seed": 1}, {"start", "images", "loss_1", "weights", "logits"}, {"shape"}),
    "epochs": ({"epochs": 2}, {"weights"}, START | BATCH | FIRST | {"loss_2", "logits"}),
    "split_seed": ({"split_seed": 3}, {"images", "loss_1", "logits"}, START | {"shape"}),
    "batch_size": ({"batch_size": 2}, {"shape", "loss_1"}, START | {"logits"}),
    "learning_rate": ({"learning_rate": 3.7e-3}, AFTER, START | BATCH | FIRST | {"logits"}),
    "weight_decay": ({"weight_decay": 0.5}, AFTER, START | BATCH | FIRST | {"logits"}),
    "spacing_mm": ({"spacing_mm": [1.0, 1.0, 1.3]}, {"images", "loss_1", "logits"}, START | {"shape"}),
    "patch_size": ({"patch_size": [16, 16, 24]}, {"shape", "loss_1"}, START | {"logits"}),
    "roi_size": ({"roi_size": [24, 24, 16]}, {"logits"}, START | BATCH | FIRST | AFTER),
    "overlap": ({"overlap": 0.5}, {"logits"}, START | BATCH | FIRST | AFTER),
    "cpu_bfloat16": ({"cpu_bfloat16": True}, {"loss_1", "weights", "logits"}, START | BATCH),
    "temperature": ({"terms::soft::loss::temperature": 3.7}, {"soft_1", "loss_1"} | AFTER, START | BATCH | {"seg_1"}),
    "weight of seg": ({"terms::seg::weight": 0.37}, {"loss_1"} | AFTER, START | BATCH | {"seg_1", "soft_1"}),
    "weight of soft": ({"terms::soft::weight": 0.37}, {"loss_1"} | AFTER, START | BATCH | {"seg_1", "soft_1"}),
}
NO_NUMBER = {
    "num_workers": "how many processes load the batches",
    "gradient_interval": "how often gradients are measured, beside the training: tests/bundles/test_distillers_page.py",
}


@pytest.fixture
def numbers(repository: Path, workflow: Callable[..., ConfigWorkflow]) -> Callable[..., dict[str, Any]]:
    """Validate the initial weights once, train by the student's train.yaml for two iterations: what came out."""

    def run(**overrides: Any) -> dict[str, Any]:
        cut = {
            "train::handlers": [ONLY_THE_SCHEDULE],
            "train::dataset::data": "$@split.cases('train')[:2]",
            "validate::handlers": [],
        }
        flow = ready(workflow(repository / "bundles" / "student", ("train.yaml",), **{**SMALL, **cut, **overrides}))
        network, trainer = get(flow, "network"), get(flow, "train::trainer")
        found = {"start": checksum(network.state_dict().values()), "logits": validated(flow)}
        outputs: list[dict[str, Any]] = []

        def keep(engine: Engine) -> None:
            outputs.append(dict(engine.state.output))
            if len(outputs) == 2:
                engine.terminate()

        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, keep)
        trainer.run()
        first, last = outputs[0], outputs[-1]
        found.update({"shape": tuple(first["image"].shape), "images": checksum([first["image"].as_tensor()])})
        found.update({f"{name}_1": first[name].item() for name in ("loss", "seg", "soft")})
        weights = {name: term.weight for name, term in get(flow, "distiller").terms.items()}
        assert first["loss"].item() == pytest.approx(
            sum(weights[name] * first[name].item() for name in weights), rel=1e-5
        )
        found.update({"loss_2": last["loss"].item(), "weights": checksum(network.state_dict().values())})
        return found

    return run


@pytest.fixture(scope="module")
def remembered() -> dict[str, dict[str, Any]]:
    return {}


@pytest.fixture
def base(numbers: Callable[..., dict[str, Any]], remembered: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the unchanged configuration, computed once."""
    if not remembered:
        remembered["base"] = numbers()
    return remembered["base"]


def test_the_same_configuration_gives_the_same_numbers(base, numbers):
    assert numbers() == base
    assert base["shape"] == (1, 1, 16, 16, 16)


@pytest.mark.parametrize("knob", list(KNOBS))
def test_every_knob_changes_the_numbers_it_should_and_no_other(base, numbers, knob):
    overrides, changes, keeps = KNOBS[knob]
    found = numbers(**overrides)
    assert {name for name in changes if found[name] == base[name]} == set()
    assert {name: found[name] for name in keeps} == {name: base[name] for name in keeps}


def test_the_list_of_knobs_is_complete(repository):
    config = ConfigParser.load_config_file(str(repository / "bundles" / "student" / "configs" / "train.yaml"))

    def is_number(value: Any) -> bool:
        items = value if isinstance(value, list) else [value]
        return all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items)

    named = {key for key, value in config.items() if is_number(value)}
    assert named == {knob for knob in KNOBS if knob in config and knob != "cpu_bfloat16"} | set(NO_NUMBER)
    terms = {f"weight of {name}" for name in config["terms"]}
    assert terms | {"temperature", "cpu_bfloat16"} == set(KNOBS) - named


def test_validation_interval_follows_the_epochs_and_can_be_set(repository, workflow):
    intervals = []
    for overrides in ({"epochs": 1}, {"epochs": 40}, {"epochs": 40, "val_interval": 7}):
        flow = workflow(repository / "bundles" / "student", ("train.yaml",), **overrides)
        [validation] = [handler for handler in get(flow, "train::handlers") if isinstance(handler, ValidationHandler)]
        intervals.append(validation.interval)
    assert intervals[0] == 1 < intervals[1] <= 40
    assert intervals[2] == 7


# ---- as users type it -----------------------------------------------------------------------------------------------


class Home(NamedTuple):
    """Copies of the bundles, trained by their own commands from a foreign folder."""

    root: Path
    teacher_run: Path
    runs: dict[str, Path]  # by arm

    @property
    def student(self) -> Path:
        return self.root / "student"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def tiny_run(bundle: Path, names: Sequence[str], cwd: Path, **overrides: Any) -> subprocess.CompletedProcess[str]:
    return bundle_run(bundle, names, cwd, **{**TINY[bundle.name], **overrides})


@pytest.fixture(scope="module")
def home(repository: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Teacher, then student distilled and alone, each by its documented command."""
    root = tmp_path_factory.mktemp("home")
    for name in ("teacher", "student"):
        ignore = shutil.ignore_patterns("models", "runs", "eval", "docs")
        shutil.copytree(repository / "bundles" / name, root / name, ignore=ignore)
    data = {"dataset_dir": phantoms, "split_file": "''", "patch_size": [16, 24, 16]}
    cwd = root / "elsewhere"
    tiny_run(root / "teacher", ("train.yaml",), cwd, run_dir=root / "teacher-run", epochs=1, **data)
    make_teacher(root / "teacher-run", root / "teacher", root / "student" / "models" / "teacher")
    runs = {}
    for arm, names in ARMS.items():
        tiny_run(root / "student", names, cwd, epochs=2, ckpt_dir=root / "student" / "models", **data)
        (runs[arm],) = set((root / "student" / "runs").iterdir()) - set(runs.values())
    assert list(cwd.iterdir()) == []
    return Home(root, root / "teacher-run", runs)


@pytest.mark.slow
def test_a_trained_teacher_becomes_the_students_teacher(home):
    record = read(home.teacher_run / "run.json")
    assert (record["status"], record["method"], record["epochs"]) == ("finished", "teacher", 1)
    sha256 = file_sha256(home.teacher_run / "model.pt")
    assert record["network"]["weights_sha256"] == sha256
    assert file_sha256(home.root / "teacher" / "models" / "model.pt") == sha256
    report = load_report(load_teacher(home.student / "models" / "teacher"))
    assert report.complete
    assert report.sha256 == sha256
    assert record["teacher"] == {"source": "none"}
    assert read(home.runs["distilled"] / "run.json")["teacher"]["networks"]["teacher"]["weights_sha256"] == sha256


@pytest.mark.slow
def test_the_arms_differ_in_the_method_alone(home, phantoms):
    distilled, baseline = (read(home.runs[arm] / "run.json") for arm in ("distilled", "baseline"))
    assert (distilled["method"], baseline["method"]) == ("distilled", "baseline")
    assert distilled["status"] == baseline["status"] == "finished"
    assert distilled["schedule_hash"] == baseline["schedule_hash"]
    assert distilled["config_hash"] != baseline["config_hash"]
    assert distilled["protocol"] == baseline["protocol"]
    assert distilled["seed"] == baseline["seed"] == 0
    assert (distilled["teacher"]["source"], baseline["teacher"]["source"]) == ("live", "none")
    splits = [(home.runs[arm] / "split.json").read_text() for arm in ARMS]
    assert splits[0] == splits[1]
    assert json.loads(splits[0]) == CaseSplit(str(phantoms), seed=0).ids
    files = [str(home.student / "configs" / name) for name in ("train.yaml", "baseline.yaml")]
    assert (distilled["config_files"], baseline["config_files"]) == (files[:1], files)
    assert distilled["config"]["network_def"]["channels"] == TINY["student"]["network_def::channels"]
    for arm, run_dir in home.runs.items():
        assert run_dir.name.startswith(f"{arm}-seed0-")


@pytest.mark.slow
def test_records_hold_the_curves_of_loss_terms_and_validation(home):
    for arm, terms in (("distilled", {"seg", "soft"}), ("baseline", {"seg"})):
        record = read(home.runs[arm] / "run.json")
        curves, weights = record["curves"], {name: record["config"]["terms"][name]["weight"] for name in terms}
        assert curves["epoch"] == curves["val_epoch"] == [1, 2]
        assert set(curves["terms"]) == terms
        for number, loss in enumerate(curves["loss"]):
            by_hand = sum(weights[name] * curves["terms"][name][number] for name in terms)
            assert loss == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.slow
def test_tensorboard_has_a_curve_for_the_loss_and_each_term(home):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(home.runs["distilled"]))
    tags = set()
    for path in home.runs["distilled"].glob("events.out.tfevents.*"):
        accumulator = EventAccumulator(str(path)).Reload()
        tags |= set(accumulator.Tags()["scalars"])
    assert {"loss", "seg", "soft", "val_mean_dice", "dice_anterior", "hd95_mm_posterior"} <= tags


@pytest.mark.slow
def test_checkpoints_hold_the_bare_student(home):
    definition = read(home.runs["distilled"] / "run.json")["config"]["network_def"]
    network = ConfigParser({"network_def": definition}).get_parsed_content("network_def")
    for run_dir in home.runs.values():
        state = torch.load(run_dir / "model.pt", weights_only=True)
        assert list(state) == list(network.state_dict())
        network.load_state_dict(state)


@pytest.mark.slow
def test_the_last_run_is_published_and_the_one_before_is_kept(home):
    models, previous = home.student / "models", home.student / "models" / "previous"
    assert file_sha256(models / "model.pt") == file_sha256(home.runs["baseline"] / "model.pt")
    assert read(models / "model.json")["method"] == "baseline"
    (kept,) = previous.glob("*.pt")
    assert file_sha256(kept) == file_sha256(home.runs["distilled"] / "model.pt")
    assert read(kept.with_suffix(".json"))["method"] == "distilled"


@pytest.fixture(scope="module")
def evaluation(home: Home, phantoms: Path) -> Path:
    """All labelled cases scored by the published student; no teacher is needed for that."""
    overrides = {"dataset_dir": phantoms, "split_file": "''", "teacher_root": home.root / "nowhere"}
    run_dir = home.root / "evaluation"
    names = ("train.yaml", "evaluate.yaml")
    done = tiny_run(home.student, names, home.root / "elsewhere", run_dir=run_dir, **overrides)
    (run_dir / "stdout.txt").write_text(done.stdout)
    return run_dir


@pytest.mark.slow
def test_evaluation_scores_every_labelled_case_into_csv_and_record(home, evaluation, phantoms):
    record = read(evaluation / "run.json")
    names = [case_id(case["image"]) for case in labelled_cases(phantoms)]
    assert (record["kind"], record["status"], record["protocol"]["section"]) == ("evaluation", "finished", "all")
    assert [case["case"] for case in record["cases"]] == names
    assert record["summary"]["n_cases"] == record["protocol"]["n_cases"] == 6
    with open(evaluation / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows] == [(n, c) for n in names for c in ("anterior", "posterior")]
    for row, case in zip(rows, [case for case in record["cases"] for _ in range(2)], strict=True):
        assert float(row["dice"]) == case["dice"][row["class"]]
    # the published weights bring the record of their training along
    trained = read(home.runs["baseline"] / "run.json")
    assert record["network"]["weights_sha256"] == trained["network"]["weights_sha256"]
    assert (record["method"], record["seed"]) == ("baseline", 0)
    assert record["schedule_hash"] == trained["schedule_hash"]
    assert f"mean Dice {record['summary']['dice']['mean']:.4f} over 6 cases" in (evaluation / "stdout.txt").read_text()


def oblique_and_anisotropic(affine: np.ndarray) -> bool:
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(affine[:3, :3] / spacing_mm)
    return np.ptp(spacing_mm) > 0.2 and cosines.max(axis=0).max() < 0.999


def assert_segments(image_path: Path, output_dir: Path) -> np.ndarray:
    """The one output of an image has its shape and affine and holds classes; returned as an array."""
    image = nib.load(image_path)
    assert oblique_and_anisotropic(image.affine)
    (path,) = output_dir.glob(f"{case_id(image_path)}*")
    assert path.name == f"{case_id(image_path)}_seg.nii.gz"
    output = nib.load(path)
    assert output.shape == image.shape
    np.testing.assert_allclose(output.affine, image.affine, atol=1e-4)
    assert output.get_data_dtype() == np.uint8
    classes = np.asarray(output.dataobj)
    assert set(np.unique(classes)) <= {0, 1, 2}
    return classes


@pytest.mark.slow
def test_inference_segments_images_ts_where_monai_kd_is_not_installed(home, phantoms):
    blocked = home.root / "blocked" / "monai_kd"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('inference needs stock MONAI alone')\n")
    environment = {**os.environ, "PYTHONPATH": str(blocked.parent)}
    probe = [sys.executable, "-c", "import monai_kd"]
    failed = subprocess.run(probe, env=environment, cwd=home.root, capture_output=True, text=True)
    assert "stock MONAI alone" in failed.stderr
    output_dir = home.root / "predictions"
    overrides = {"dataset_dir": phantoms, "output_dir": output_dir, "python_path": str(blocked.parent)}
    tiny_run(home.student, ("inference.yaml",), home.root / "elsewhere", **overrides)
    images = sorted((phantoms / "imagesTs").iterdir())
    assert len(images) == len(list(output_dir.iterdir())) == 2
    for path in images:
        assert_segments(path, output_dir)


def test_inference_on_a_folder_without_images_says_so(repository, workflow, tmp_path):
    folders = {"dataset_dir": str(tmp_path / "empty"), "output_dir": str(tmp_path / "out")}
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        workflow(repository / "bundles" / "student", ("inference.yaml",), "infer", **folders).run()
    cause: BaseException = caught.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, FileNotFoundError)
    assert f"no .nii or .nii.gz image in {tmp_path / 'empty'}: pass --dataset_dir DIR" in str(cause)


def test_inference_refuses_two_images_that_would_write_one_output(repository, phantoms, workflow, tmp_path):
    source = nib.load(next((phantoms / "imagesTs").iterdir()))
    (tmp_path / "images").mkdir()
    for ending in (".nii", ".nii.gz"):
        nib.save(source, tmp_path / "images" / f"a{ending}")
    folders = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(RuntimeError) as caught:
        workflow(repository / "bundles" / "student", ("inference.yaml",), "infer", **folders).run()
    assert "would write one output: a.nii beside a.nii.gz" in str(caught.value.__cause__)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_inference_on_a_plain_folder_gives_what_the_evaluation_scored(home, evaluation, phantoms, workflow, tmp_path):
    """Also from uncompressed NIfTI; Dice by hand from the written files."""
    cases = {case_id(case["image"]): case for case in labelled_cases(phantoms)[:3]}
    plain = tmp_path / "plain"
    plain.mkdir()
    for number, (name, case) in enumerate(cases.items()):
        nib.save(nib.load(case["image"]), plain / f"{name}.nii{'' if number == 0 else '.gz'}")
    folders = {"dataset_dir": str(plain), "output_dir": str(tmp_path / "out")}
    workflow(home.student, ("inference.yaml",), "infer", **folders).run()
    assert len(list((tmp_path / "out").iterdir())) == 3
    scored = {case["case"]: case["dice"] for case in read(evaluation / "run.json")["cases"]}
    for path in plain.iterdir():
        name = case_id(path)
        classes, label = assert_segments(path, tmp_path / "out"), np.asarray(nib.load(cases[name]["label"]).dataobj)
        for value, class_name in ((1, "anterior"), (2, "posterior")):
            found, truth = classes == value, label == value
            dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
            assert dice == pytest.approx(scored[name][class_name], abs=1e-3)
    assert max(dice for scores in scored.values() for dice in scores.values()) > 0
