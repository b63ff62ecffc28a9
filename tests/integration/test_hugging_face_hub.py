"""Share a bundle through the Hugging Face Hub: our push, MONAI's download and load, a stand-in as the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import monai.bundle
import pytest
import torch
from commands import monai_bundle
from integration.hub_stand_in import HubStandIn

from monai_kd.hub.hugging_face_push import LATEST_TAG, lay_out_for_hugging_face, push_to_hugging_face

pytestmark = pytest.mark.integration
REPO = "someone/student"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    constants = pytest.importorskip("huggingface_hub", reason="pip install 'monai_kd[hub]'").constants
    with HubStandIn() as server:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)  # for the processes
        yield server


@pytest.fixture
def bundle(repository: Path, tmp_path: Path) -> Path:
    ignore = shutil.ignore_patterns("runs", "eval", "previous", "exported", "*.onnx", "*.ts")
    return shutil.copytree(repository / "bundles" / "student", tmp_path / "mine" / "student", ignore=ignore)


def raise_version(bundle: Path, version: str) -> None:
    path = bundle / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))


def download(folder: Path, *options: str) -> Path:
    """``python -m monai.bundle download``; return the bundle's folder."""
    arguments = ["--name", "student", "--source", "huggingface_hub", "--repo", REPO, "--bundle_dir", str(folder)]
    monai_bundle(folder, "download", *arguments, *options)
    return folder / "student"


def test_a_pushed_bundle_is_downloaded_whole_by_monai_and_loads(hub, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("monai.bundle.workflows.fileConfig", lambda *_, **__: None)  # other tests keep their logging
    push_to_hugging_face(bundle, REPO)
    got = download(tmp_path / "theirs")
    wanted = lay_out_for_hugging_face(bundle, tmp_path / "wanted")
    names = [path.relative_to(wanted) for path in wanted.rglob("*") if path.is_file()]
    assert all((got / name).read_bytes() == (wanted / name).read_bytes() for name in names)

    network = monai.bundle.load(
        "student", bundle_dir=got.parent, source="huggingface_hub", repo=REPO, workflow_type="infer", device="cpu"
    )
    state = torch.load(bundle / "models" / "model.pt", map_location="cpu", weights_only=True)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert ("GET", f"/api/models/{REPO}/revision/{LATEST_TAG}") in hub.requests, "MONAI asks for the latest version"


def test_without_a_version_monai_gets_the_newest_and_with_one_the_old(hub, bundle, tmp_path):
    push_to_hugging_face(bundle, REPO)
    raise_version(bundle, "0.2.0")
    push_to_hugging_face(bundle, REPO)
    found = [
        json.loads((folder / "configs" / "metadata.json").read_text())["version"]
        for folder in (download(tmp_path / "newest"), download(tmp_path / "old", "--version", "0.1.0"))
    ]
    assert found == ["0.2.0", "0.1.0"]


def test_monais_own_push_leaves_the_latest_tag_at_the_first_version(hub, bundle):
    """The reason for a push of our own; when this fails, MONAI's may do."""
    for version in ("0.1.0", "0.2.0"):
        raise_version(bundle, version)
        monai.bundle.push_to_hf_hub(
            REPO, bundle.name, str(bundle.parent), token=hub.token, version=version, tag_as_latest_version=True
        )
    tags = hub.repositories[REPO].tags
    assert tags[LATEST_TAG] == tags["0.1.0"] != tags["0.2.0"]
