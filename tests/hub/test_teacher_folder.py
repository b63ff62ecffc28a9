"""make_teacher: a finished run becomes a bundle folder that load_teacher opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNet

from monai_kd.handlers.provenance import file_sha256
from monai_kd.hub import make_teacher
from monai_kd.teachers import load_report, load_teacher

# the command line overrode the channels: this, not the bundle's own file, is what was trained
NETWORK_DEF = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
}


METADATA = {
    "name": "teacher",
    "version": "0.1.0",
    "network_data_format": {"outputs": {"pred": {"type": "image", "num_channels": 2, "channel_def": {}}}},
}


def network() -> UNet:
    return UNet(3, 1, 3, channels=(4, 8), strides=(2,)).eval()


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a finished training, made up."""
    folder = tmp_path / "runs" / "teacher-seed0"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(network().state_dict(), folder / "model.pt")
    record = {
        "kind": "training",
        "status": "finished",
        "run_id": "teacher-seed0",
        "bundle": {"name": "teacher", "version": "0.1.0"},
        "method": "teacher",
        "seed": 0,
        "commit": "0123abc",
        "network": {"target": "UNet", "parameters": 1, "weights_sha256": file_sha256(folder / "model.pt")},
        "best_epoch": 4,
        "best_metric": 0.9,
        "classes": {"1": "atrium", "2": "ventricle"},
        "config": {"device": "cpu", "network_def": NETWORK_DEF, "epochs": 5},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def bundle(tmp_path) -> Path:
    """The bundle that was trained, as far as its metadata."""
    root = tmp_path / "teacher"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    return root


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_teacher_loads_and_computes_what_was_trained(run, bundle, tmp_path):
    out = make_teacher(run, bundle, tmp_path / "student" / "models" / "teacher")
    teacher = load_teacher(out)
    trained = network()
    trained.load_state_dict(torch.load(run / "model.pt", weights_only=True))
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(teacher(image), trained(image))
    assert load_report(teacher).complete
    assert load_report(teacher).sha256 == file_sha256(run / "model.pt")
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "configs/infer.json",
        "configs/metadata.json",
        "models/model.pt",
    ]


def test_the_metadata_is_the_bundles_own_plus_where_the_weights_come_from(run, bundle, tmp_path):
    out = make_teacher(run, bundle, tmp_path / "out")
    metadata = json.loads((out / "configs" / "metadata.json").read_text())
    provenance = metadata.pop("provenance")
    pred = metadata["network_data_format"]["outputs"].pop("pred")
    assert metadata == {"name": "teacher", "version": "0.1.0", "network_data_format": {"outputs": {}}}
    # the classes of the run, not those of the bundle
    classes = {"0": "background", "1": "atrium", "2": "ventricle"}
    assert pred == {"type": "image", "num_channels": 3, "channel_def": classes}
    assert (provenance["run_id"], provenance["commit"], provenance["best_epoch"]) == ("teacher-seed0", "0123abc", 4)
    assert provenance["network"]["weights_sha256"] == file_sha256(out / "models" / "model.pt")
    assert provenance["best_metric"] == 0.9


def test_a_network_that_refers_to_other_ids_is_written_out(run, bundle, tmp_path):
    names = ["background", "atrium", "ventricle"]
    edit(run, config={"network_def": {**NETWORK_DEF, "out_channels": "$len(@class_names)"}, "class_names": names})
    out = make_teacher(run, bundle, tmp_path / "out")
    assert json.loads((out / "configs" / "infer.json").read_text())["network_def"] == NETWORK_DEF
    assert load_report(load_teacher(out)).complete


@pytest.mark.parametrize("value", ["$len(@no_such_id)", "$object()", "$float('nan')"])
def test_a_network_that_no_file_can_hold_is_refused(run, bundle, tmp_path, value):
    edit(run, config={"network_def": {**NETWORK_DEF, "out_channels": value}})
    with pytest.raises(ValueError, match=r"network_def::out_channels of .* which no file can hold"):
        make_teacher(run, bundle, tmp_path / "out")


def test_a_bundles_models_folder_serves_as_well_as_a_run(run, bundle, tmp_path):
    (run / "run.json").rename(run / "model.json")
    assert load_report(load_teacher(make_teacher(run, bundle, tmp_path / "out"))).complete


def test_a_teacher_that_stood_there_is_replaced(run, bundle, tmp_path):
    out = make_teacher(run, bundle, tmp_path / "out")
    torch.manual_seed(1)
    torch.save(network().state_dict(), run / "model.pt")
    edit(run, network={"weights_sha256": file_sha256(run / "model.pt")}, run_id="teacher-seed1")
    make_teacher(run, bundle, out)
    assert load_report(load_teacher(out)).sha256 == file_sha256(run / "model.pt")
    assert json.loads((out / "configs" / "metadata.json").read_text())["provenance"]["run_id"] == "teacher-seed1"


def refused(run: Path, bundle: Path, out: Path, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_teacher(run, bundle, out)
    assert not out.exists()


def test_a_folder_without_a_record_is_refused(run, bundle, tmp_path):
    (run / "run.json").unlink()
    refused(run, bundle, tmp_path / "out", FileNotFoundError, r"teacher-seed0' has no run\.json \(or model\.json\)")


def test_a_run_without_weights_is_refused(run, bundle, tmp_path):
    (run / "model.pt").unlink()
    refused(run, bundle, tmp_path / "out", FileNotFoundError, r"teacher-seed0' has no model\.pt")


def test_weights_that_the_record_does_not_name_are_refused(run, bundle, tmp_path):
    torch.save(network().state_dict(), run / "model.pt")
    refused(run, bundle, tmp_path / "out", ValueError, r"is not of the training that wrote its model\.pt")


@pytest.mark.parametrize("status", ["running", "stopped by RuntimeError"])
def test_a_run_that_did_not_finish_is_refused(run, bundle, tmp_path, status):
    edit(run, status=status, network={"target": "UNet"})  # the hash is written at the end
    refused(run, bundle, tmp_path / "out", ValueError, "is not of the training")


def test_an_evaluation_is_refused(run, bundle, tmp_path):
    edit(run, kind="evaluation")
    refused(run, bundle, tmp_path / "out", ValueError, "is not of the training")


def test_a_bundle_without_metadata_is_refused(run, tmp_path):
    refused(run, tmp_path / "nowhere", tmp_path / "out", FileNotFoundError, "metadata.json")
