"""Folders of the Hugging Face cache: a MONAI bundle behind links, and weights in safetensors."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet

from monai_kd.teachers import load_report, load_teacher

ARGUMENTS = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
REVISION = "0123456789abcdef0123456789abcdef01234567"
CONFIG = json.dumps({"network_def": {"_target_": "UNet", **ARGUMENTS}}).encode()


def make_unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return UNet(**ARGUMENTS).eval()


def make_cache(root: Path, files: dict[str, bytes], revision: str = REVISION, main: str | None = REVISION) -> Path:
    """What huggingface_hub leaves on disk: blobs named by hash, and relative links to them in the snapshot."""
    cache = root / "models--someone--a_bundle"
    (cache / "blobs").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob = cache / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = cache / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if main is not None:
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / "main").write_text(main)
    return cache


def weights(tmp_path: Path, kind: str) -> bytes:
    path = tmp_path / f"weights.{kind}"
    if kind == "pt":
        torch.save(make_unet().state_dict(), path)
    else:
        safetensors = pytest.importorskip("safetensors.torch", reason="pip install 'monai_kd[hub]'")
        safetensors.save_file(make_unet().state_dict(), str(path))
    return path.read_bytes()


def assert_loaded(root: Path, name: str, **settings: str) -> None:
    teacher = load_teacher(root, **settings)
    image = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(teacher(image), make_unet()(image))
    report = load_report(teacher)
    assert report.complete
    assert report.weights is not None
    assert report.weights.as_posix().endswith(f"snapshots/{REVISION}/{name}")
    assert report.sha256 == report.weights.resolve().name  # the blob's own name


@pytest.mark.parametrize("place", ["cache", "snapshot"])
def test_a_bundle_in_the_cache_loads_through_its_links(tmp_path, place):
    cache = make_cache(tmp_path, {"configs/inference.json": CONFIG, "models/model.pt": weights(tmp_path, "pt")})
    root = cache if place == "cache" else cache / "snapshots" / REVISION
    assert_loaded(root, "models/model.pt")
    assert_loaded(root, "models/model.pt", weights="models/model.pt")


@pytest.mark.parametrize("name", ["models/model.safetensors", "model.safetensors", "models/other.safetensors"])
def test_safetensors_are_read(tmp_path, name):
    files = {"configs/inference.json": CONFIG, name: weights(tmp_path, "safetensors")}
    assert_loaded(make_cache(tmp_path, files), name)


def test_a_config_json_may_define_the_network(tmp_path):
    files = {"config.json": CONFIG, "model.safetensors": weights(tmp_path, "safetensors")}
    assert_loaded(make_cache(tmp_path, files), "model.safetensors")


def test_a_model_of_another_library_is_refused_with_what_it_has(tmp_path):
    files = {"config.json": b'{"model_type": "vit", "hidden_size": 8}', "model.safetensors": b""}
    with pytest.raises(ValueError, match=r"no 'network_def' .* in config.json .*known ids: model_type, hidden_size"):
        load_teacher(make_cache(tmp_path, files))


def test_damaged_safetensors_are_named(tmp_path):
    pytest.importorskip("safetensors", reason="pip install 'monai_kd[hub]'")
    files = {"configs/inference.json": CONFIG, "model.safetensors": b"not tensors"}
    with pytest.raises(ValueError, match=r"model.safetensors' is no readable"):
        load_teacher(make_cache(tmp_path, files))
    with pytest.raises(ValueError, match="is a safetensors file and has no checkpoint keys"):
        load_teacher(make_cache(tmp_path / "again", files), key_in_ckpt="ema")


def test_safetensors_without_the_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    files = {"configs/inference.json": CONFIG, "model.safetensors": b"x"}
    with pytest.raises(ImportError, match=r"pip install 'monai_kd\[hub\]'"):
        load_teacher(make_cache(tmp_path, files))


def test_the_only_snapshot_is_taken_without_a_main_reference(tmp_path):
    cache = make_cache(
        tmp_path, {"configs/inference.json": CONFIG, "models/model.pt": weights(tmp_path, "pt")}, main=None
    )
    assert_loaded(cache, "models/model.pt")
    make_cache(tmp_path, {"configs/inference.json": CONFIG}, revision="f" * 40, main=None)
    with pytest.raises(ValueError, match=rf"has the snapshots {REVISION}, f{{40}} and no refs/main"):
        load_teacher(cache)


def test_a_main_that_was_not_downloaded_is_named(tmp_path):
    cache = make_cache(tmp_path, {"configs/inference.json": CONFIG}, main="e" * 40)
    with pytest.raises(FileNotFoundError, match=rf"main is 'e{{40}}', its snapshots are {REVISION}"):
        load_teacher(cache)


def test_an_empty_cache_is_named(tmp_path):
    (tmp_path / "models--a--b" / "snapshots").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no snapshot"):
        load_teacher(tmp_path / "models--a--b")
