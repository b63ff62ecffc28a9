"""materialize: a run becomes a bundle that passes verify, computes what the run's network computes, and trains on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import bundle_run
from monai.bundle import ConfigParser, create_workflow
from tiny_bundles import OVERLAYS, change_json, command, tiny_student

from monai_kd.handlers.provenance import file_sha256
from monai_kd.hub import materialize_run, verify_bundle
from monai_kd.hub.bundle_folder import BundleFolder
from monai_kd.hub.config_text import rewrite
from monai_kd.hub.materialize import _route_inference, _Run
from monai_kd.teachers import load_report, load_teacher

OVERRIDES: dict[str, Any] = {
    "network_def::channels": [4, 8, 8],  # not the bundle's own
    "terms::soft::weight": 0.25,
    "roi_size": [32, 32, 32],
    "patch_size": [16, 16, 16],
    "epochs": 1,
    "cpu_bfloat16": False,
}


@pytest.fixture(scope="module")
def whole(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_student(repository, tmp_path_factory.mktemp("whole") / "tiny")


def train(bundle: Path, phantoms: Path, *overlays: str, **overrides: Any) -> Path:
    """Train for one epoch; return the run's folder, below the bundle's runs."""
    given = {**OVERRIDES, "dataset_dir": str(phantoms), "split_file": "", "bundle_root": str(bundle), **overrides}
    given = {"run_name": "trained", "ckpt_dir": str(bundle / "runs" / "published"), **given}
    files = [str(bundle / "configs" / name) for name in ("train.yaml", *overlays)]
    flow = create_workflow(config_file=files, workflow_type="train", logging_file=False, **given)
    flow.run()
    flow.finalize()
    return bundle / "runs" / given["run_name"]


@pytest.fixture(scope="module")
def trained(whole: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distillation with a teacher from elsewhere, and another network than the bundle's."""
    root = tmp_path_factory.mktemp("trained")
    bundle = Path(shutil.copytree(whole, root / "tiny"))
    teacher = Path(shutil.copytree(bundle / "models" / "teacher", root / "my_teacher"))
    state = torch.load(teacher / "models" / "model.pt", weights_only=True)
    torch.save({key: value + 0.01 for key, value in state.items()}, teacher / "models" / "model.pt")
    change_json(teacher / "configs" / "metadata.json", provenance={})
    return train(bundle, phantoms, teacher_root=str(teacher))


@pytest.fixture(scope="module")
def made(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialize_run(trained, tmp_path_factory.mktemp("made") / "my_student")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained bundle's run, to be spoiled."""
    return Path(shutil.copytree(trained.parents[1], tmp_path / "tiny")) / "runs" / "trained"


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())


def test_the_new_bundle_passes_verify(made):
    assert [check for check in verify_bundle(made) if not check.passed] == []


def test_configuration_network_and_weights_are_those_of_the_run(made, trained):
    config = read(made / "configs" / "train.yaml")
    inference = read(made / "configs" / "inference.yaml")
    assert config["network_def"]["channels"] == inference["network_def"]["channels"] == [4, 8, 8]
    assert read(made / "configs" / "infer.json")["network_def"] == config["network_def"]
    assert config["roi_size"] == inference["roi_size"] == [32, 32, 32]
    assert config["terms"]["soft"]["weight"] == 0.25
    assert config["epochs"] == 1
    assert (made / "models" / "model.pt").read_bytes() == (trained / "model.pt").read_bytes()
    base = read(trained.parents[1] / "configs" / "train.yaml")
    for place in ("bundle_root", "dataset_dir", "split_file", "run_dir", "ckpt_dir", "device", "teacher_root"):
        assert config[place] == base[place], place
    text = (made / "configs" / "train.yaml").read_text()
    assert "# voxels, multiples of 8" in text
    assert ">>> shared" not in text


def test_metadata_card_and_record_tell_where_it_comes_from(made, trained):
    metadata, record = read(made / "configs" / "metadata.json"), read(made / "models" / "model.json")
    assert (metadata["name"], metadata["version"]) == ("my_student", "0.1.0")
    assert metadata["changelog"] == {"0.1.0": "materialized from run trained of tiny 0.1.0"}
    assert metadata["provenance"]["network"]["weights_sha256"] == file_sha256(trained / "model.pt")
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["2"] == "posterior"
    assert record["best_metric"] == read(trained / "run.json")["best_metric"]
    card = (made / "docs" / "README.md").read_text()
    assert f"| mean | {record['validation']['dice']['mean']:.4f} |" in card
    assert "- `terms::soft::weight`: `0.25`" in card
    assert "state here\nits source and terms" in (made / "docs" / "data_license.txt").read_text()


def test_the_teacher_of_the_run_is_in_it(made, trained):
    own = load_report(load_teacher(made / "models" / "teacher")).sha256
    known = read(trained / "run.json")["teacher"]["networks"]["teacher"]["weights_sha256"]
    assert own == known != file_sha256(trained.parents[1] / "models" / "teacher" / "models" / "model.pt")


def test_sliding_window_output_is_that_of_the_run_bit_by_bit(made, trained):
    network = ConfigParser(read(trained / "run.json")["config"]).get_parsed_content("network_def")
    network.load_state_dict(torch.load(trained / "model.pt", weights_only=True))
    config = {**read(trained / "run.json")["config"], "cpu_bfloat16": False}
    of_run = ConfigParser({"roi_size": config["roi_size"], "overlap": config["overlap"]})
    of_run["inferer"] = config["validate"]["inferer"]["inferer"]
    parser = ConfigParser(read(made / "configs" / "inference.yaml"))
    parser["bundle_root"] = str(made)
    image = torch.randn(1, 1, 40, 44, 36, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = of_run.get_parsed_content("inferer")(image, network.eval())
        found = parser.get_parsed_content("inferer")(image, load_teacher(made))
    assert torch.equal(found, expected)


def test_the_new_bundle_scores_what_the_run_scored_and_trains_on(made, trained, phantoms, tmp_path):
    bundle = Path(shutil.copytree(made, tmp_path / "my_student"))
    given = {"dataset_dir": str(phantoms), "split_file": "", "bundle_root": str(bundle)}
    files = [str(bundle / "configs" / name) for name in ("train.yaml", "evaluate.yaml")]
    flow = create_workflow(config_file=files, workflow_type="train", logging_file=False, section="validation", **given)
    flow.run()
    (record,) = (bundle / "runs").glob("evaluate-*/run.json")
    assert read(record)["summary"] == read(trained / "run.json")["validation"]
    again = train(bundle, phantoms, run_name="again", **{"train::trainer::epoch_length": 2})
    assert read(again / "run.json")["status"] == "finished"
    assert read(again / "run.json")["teacher"] == read(trained / "run.json")["teacher"]


def test_a_baseline_has_no_teacher_and_its_overlay_is_written_in(whole, phantoms, tmp_path):
    bundle = Path(shutil.copytree(whole, tmp_path / "tiny"))
    shutil.copytree(bundle / "configs", tmp_path / "before")
    made = materialize_run(train(bundle, phantoms, "baseline.yaml"), tmp_path / "alone")
    config = read(made / "configs" / "train.yaml")
    assert config["method"] == "baseline"
    assert config["terms"]["soft"]["_disabled_"] is True
    assert config["distiller_def"]["teachers"] == {}
    assert config["ckpt_dir"] == read(bundle / "configs" / "train.yaml")["ckpt_dir"]
    assert not (made / "models" / "teacher").exists()
    assert read(made / "configs" / "evaluate.yaml") == read(bundle / "configs" / "evaluate.yaml")
    assert sorted(path.name for path in (tmp_path / "before").iterdir()) == sorted(
        path.name for path in (bundle / "configs").iterdir()
    ), "the base bundle stays as it is"


@pytest.fixture(scope="module")
def made_from_overlay(
    whole: Path, phantoms: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run with a distiller's overlay and what became of it; the bundle's overlays are those of ``OVERLAYS``."""
    root = tmp_path_factory.mktemp("overlay")
    bundle = Path(shutil.copytree(whole, root / "tiny"))
    name = "configs/distillers/review.yaml"
    shutil.copyfile(repository / "bundles" / "student" / name, bundle / name)
    run = train(bundle, phantoms, "distillers/review.yaml")
    names = ("train.yaml", "distillers/review.yaml")  # the command line records them, Python code does not
    change_json(run / "run.json", config_files=[str(bundle / "configs" / file) for file in names])
    return run, materialize_run(run, root / "reviewed")


def test_an_overlay_in_a_subfolder_is_written_into_train_yaml_with_its_adapter(made_from_overlay):
    run, made = made_from_overlay
    config, ran = read(made / "configs" / "train.yaml"), read(run / "run.json")["config"]
    assert config["method"] == "review"
    assert config["terms"] == ran["terms"]
    assert config["terms"]["review"]["adapter"] == {"_target_": "monai_kd.networks.ReviewFusion"}
    assert config["terms"]["soft"]["_disabled_"] is True
    assert config["schedules"] == {"review": {"ramp": 0.1}}
    assert config["distiller_def"] == ran["distiller_def"]
    record = read(made / "models" / "model.json")
    assert record["config_files"] == ["configs/train.yaml", "configs/distillers/review.yaml"]
    assert [check for check in verify_bundle(made) if not check.passed] == []


def test_the_other_overlays_still_stand_for_their_methods_alone(made_from_overlay):
    run, made = made_from_overlay
    base = run.parents[1] / "configs"
    assert {path.name for path in (made / "configs" / "distillers").iterdir()} == {*OVERLAYS, "review.yaml"}
    for name in ("evaluate.yaml", "multi_gpu_train.yaml", "distillers/review.yaml"):
        assert (made / "configs" / name).read_bytes() == (base / name).read_bytes(), name
    active = {"baseline.yaml": {"seg"}, "distillers/kd.yaml": {"seg", "kd"}, "distillers/cwd.yaml": {"seg", "cwd"}}
    for name, expected in active.items():
        parser = ConfigParser()
        parser.read_config([str(made / "configs" / file) for file in ("train.yaml", name)])
        terms = parser.get("terms")
        assert {term for term, content in terms.items() if not content.get("_disabled_")} == expected, name
        assert parser.get("schedules")["review"] == {}, name
        text = (base / name).read_text()
        assert (made / "configs" / name).read_text().startswith(text.rstrip())


def test_the_new_bundle_trains_on_by_its_own_files_with_term_and_adapter(made_from_overlay, phantoms, tmp_path):
    bundle = Path(shutil.copytree(made_from_overlay[1], tmp_path / "reviewed"))
    one = {"train::trainer::epoch_length": 1}
    for name, expected in (
        ((), {"seg", "review"}),
        (("distillers/kd.yaml",), {"seg", "kd"}),
        (("baseline.yaml",), {"seg"}),
    ):
        run = train(bundle, phantoms, *name, run_name=f"again-{len(expected)}-{'-'.join(expected)}", **one)
        record = read(run / "run.json")
        assert (record["status"], set(record["curves"]["terms"])) == ("finished", expected)


def test_overlays_that_do_not_fit_are_left_out_and_named_with_the_reason(whole, phantoms, tmp_path, caplog):
    bundle = Path(shutil.copytree(whole, tmp_path / "tiny"))
    made = materialize_run(train(bundle, phantoms, "baseline.yaml"), tmp_path / "alone")
    assert not (made / "configs" / "distillers").exists()
    assert (made / "configs" / "baseline.yaml").is_file()
    messages = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    named = " ".join(messages)
    assert all(f"distillers/{name}" in named for name in OVERLAYS)
    assert "teacher" in named


def test_references_of_the_network_and_the_working_grid_are_written_out(run, out):
    bundle = run.parents[1]
    for name in ("train", "inference"):
        with (bundle / "configs" / f"{name}.yaml").open("a") as file:
            file.write("pixel_size: 1.0\ndiameter: 512\n")
    config = read(run / "run.json")["config"]
    network = {**config["network_def"], "out_channels": "$len(@class_names)"}
    change_json(run / "run.json", config={**config, "network_def": network, "pixel_size": "$4 / 2", "diameter": 256})
    made = materialize_run(run, out)
    inference = read(made / "configs" / "inference.yaml")
    assert (inference["pixel_size"], inference["diameter"]) == (2.0, 256)
    for file in ("train.yaml", "inference.yaml", "infer.json"):
        assert read(made / "configs" / file)["network_def"] == config["network_def"], file


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_a_network_that_no_file_can_hold_is_refused(run, out):
    config = read(run / "run.json")["config"]
    network = {**config["network_def"], "channels": "$[object()]"}
    change_json(run / "run.json", config={**config, "network_def": network})
    refused(run, out, ValueError, r"network_def::channels of the run is '\$\[object\(\)\]', which no file can hold")


def refused(run: Path, out: Path, error: type[Exception], message: str, bundle: Path | None = None) -> None:
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        materialize_run(run, out, bundle)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.rglob("*")) == before, "something was left behind"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    return tmp_path / "new" / "mine"


def test_a_run_that_did_not_finish_is_refused(run, out):
    change_json(run / "run.json", status="stopped by KeyboardInterrupt")
    refused(run, out, ValueError, r"is not finished \(status 'stopped by KeyboardInterrupt'\)")


def test_an_evaluation_is_refused(run, out):
    change_json(run / "run.json", kind="evaluation")
    refused(run, out, ValueError, "of kind 'evaluation', not of a training")


def test_weights_that_the_record_does_not_name_are_refused(run, out):
    with (run / "model.pt").open("ab") as file:
        file.write(b"x")
    refused(run, out, ValueError, r"is not the file that its run\.json names")


def test_missing_files_are_named(run, out):
    (run / "model.pt").unlink()
    refused(run, out, FileNotFoundError, r"has no model\.pt")
    (run / "run.json").unlink()
    refused(run, out, FileNotFoundError, r"has no run\.json")


def test_an_existing_folder_is_never_overwritten(run, out):
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    refused(run, out, FileExistsError, "exists and is not empty")


def test_a_name_that_monai_would_split_is_refused(run, out):
    refused(run, out.with_name("my_vnet"), ValueError, "'_v'")


def test_a_run_outside_of_a_bundle_needs_its_bundle(run, out, tmp_path):
    moved = Path(shutil.move(run, tmp_path / "elsewhere"))
    refused(moved, out, FileNotFoundError, "name the trained bundle by --bundle DIR")
    assert materialize_run(moved, out, tmp_path / "tiny") == out


def test_a_teacher_that_changed_since_is_refused(run, out, trained):
    teacher = Path(shutil.copytree(trained.parents[2] / "my_teacher", out.parents[1] / "changed"))
    change_json(run / "run.json", lambda content: content["config"].update(teacher_root=str(teacher)))
    state = torch.load(teacher / "models" / "model.pt", weights_only=True)
    torch.save({key: value + 1 for key, value in state.items()}, teacher / "models" / "model.pt")
    refused(run, out, ValueError, "is not the run's: its weights have changed since")
    shutil.rmtree(teacher)
    refused(run, out, FileNotFoundError, "is not there any more")


def test_an_override_that_inference_cannot_follow_is_refused(run, out):
    change_json(run / "run.json", lambda content: content["config"]["validate"]["preprocessing"]["transforms"].pop())
    refused(run, out, ValueError, "the run changed 'validate::preprocessing'")


def test_a_result_that_would_not_pass_verify_is_not_left_behind(run, out):
    (run.parents[1] / "LICENSE").unlink()
    refused(run, out, ValueError, "would not pass verify, nothing is written: files: LICENSE is missing")


# ---- the text of train.yaml -----------------------------------------------------------------------------------------


def test_every_kind_of_change_is_written_in_place(repository):
    text = (repository / "bundles" / "student" / "configs" / "train.yaml").read_text()
    wanted = yaml.safe_load(text)
    wanted["learning_rate"] = 1e-5
    wanted["class_names"] = ["background", "left: x", "@y"]
    wanted["terms"]["mine"] = {"_target_": "a.B", "x": [1, 2.5e-7, "$x: y"]}
    wanted["loss"]["lambda_ce"] = 0.5
    wanted["train"]["handlers"].append({"_target_": "X"})
    wanted["run"] = ["$a"]
    wanted["new"] = {"a": None}
    del wanted["weight_decay"]
    found = rewrite(text, wanted)
    assert yaml.safe_load(found) == wanted
    assert list(yaml.safe_load(found)) == list(wanted)
    commented = [line for line in text.partition("\nrun:\n")[0].splitlines() if "#" in line and "shared" not in line]
    assert len(commented) > 20
    assert [line for line in commented if line not in found.splitlines()] == []


def test_what_cannot_be_edited_is_written_anew():
    text = "# A title of the file.\na: &x {b: 1}\nc: *x\n"
    assert rewrite(text, {"a": {"b": 1}, "c": {"b": 2}}) == "# A title of the file.\na:\n  b: 1\nc:\n  b: 2\n"


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_materializes_and_the_result_segments(trained, phantoms, tmp_path):
    out = tmp_path / "made" / "from_command"
    done = command("materialize", trained, out)
    assert done.stdout.strip().splitlines()[-1] == f"materialized: {out}"
    bundle_run(out, ["inference.yaml"], tmp_path / "cwd", dataset_dir=phantoms, output_dir=tmp_path / "seg")
    assert len(list((tmp_path / "seg").glob("*_seg.nii.gz"))) == 2
    done = command("materialize", trained, out, succeed=False)
    assert done.stderr.strip() == f"error: '{out}' exists and is not empty; choose another name, nothing is overwritten"
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("seen", "kept"), [(["t1"], "t1"), (["t1ce"], "t1ce"), (["flair", "t1ce"], None)], ids=["other", "same", "several"]
)
def test_inference_picks_the_modality_that_the_run_was_trained_on(repository, tmp_path, seen, kept):
    base = BundleFolder(repository / "bundles" / "mtcm-kd")
    train = base.config("train")
    run = _Run(tmp_path, {}, base, train, {**train, "student_modalities": seen})
    file = tmp_path / "configs" / "inference_brats.yaml"
    file.parent.mkdir()
    shutil.copyfile(base.root / "configs" / file.name, file)
    _route_inference(run, tmp_path)
    assert (read(file)["modality"] if file.is_file() else None) == kept
