"""index_bundles: the model zoo's form plus sha256, and MONAI's own functions read it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import monai.bundle.scripts
import pytest
from bundle_folders import command_line, make_bundle, tree
from file_server import FileServer
from monai.bundle import get_all_bundles_list, get_bundle_info, get_bundle_versions

from monai_kd.hub import index_bundles, pack_bundle

BASE = "https://example.org/releases/download/hosting_storage_v1"


@pytest.fixture
def zips(tmp_path: Path) -> list[Path]:
    """Three packed bundles: ball 0.1.0, ball 0.2.0, cube 0.1.0."""
    made = []
    for name, version in (("cube", "0.1.0"), ("ball", "0.2.0"), ("ball", "0.1.0")):
        bundle = make_bundle(tmp_path / version / name, version, weights=1000)
        made.append(pack_bundle(bundle, tmp_path / "dist").path)
    return made


def test_an_entry_has_both_hashes_and_the_address(zips, tmp_path):
    out = tmp_path / "models" / "model_info.json"
    assert index_bundles(zips, BASE + "/", out) == ["ball_v0.1.0", "ball_v0.2.0", "cube_v0.1.0"]
    index = json.loads(out.read_text())
    assert list(index) == ["ball_v0.1.0", "ball_v0.2.0", "cube_v0.1.0"]
    content = zips[0].read_bytes()
    assert index["cube_v0.1.0"] == {
        "checksum": hashlib.sha1(content).hexdigest(),
        "source": f"{BASE}/cube_v0.1.0.zip",
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def test_other_entries_stay_and_the_same_bytes_may_move(zips, tmp_path):
    out = tmp_path / "model_info.json"
    foreign = {"spleen_v1.0.0": {"checksum": "0" * 40, "source": "https://example.org/spleen.zip"}}
    out.write_text(json.dumps(foreign))
    index_bundles(zips[:1], BASE, out)
    index_bundles(zips[:1], "https://mirror.org/bundles", out)
    index = json.loads(out.read_text())
    assert index["spleen_v1.0.0"] == foreign["spleen_v1.0.0"]
    assert index["cube_v0.1.0"]["source"] == "https://mirror.org/bundles/cube_v0.1.0.zip"
    assert sorted(path.name for path in tmp_path.glob("*.json*")) == ["model_info.json"]


@pytest.mark.parametrize("known", ["sha256", "checksum"])
def test_a_published_version_keeps_its_bytes(zips, tmp_path, known):
    out = tmp_path / "model_info.json"
    index_bundles(zips[:1], BASE, out)
    index = json.loads(out.read_text())
    if known == "checksum":  # an index of the model zoo's own form
        del index["cube_v0.1.0"]["sha256"]
        out.write_text(json.dumps(index))
    before = out.read_bytes()
    (tmp_path / "0.1.0" / "cube" / "models" / "model.pt").write_bytes(b"retrained")
    again = pack_bundle(tmp_path / "0.1.0" / "cube", tmp_path / "dist2").path
    with pytest.raises(ValueError, match=r"cube_v0\.1\.0 is already published with other bytes .*raise the version"):
        index_bundles([zips[1], again], BASE, out)
    assert out.read_bytes() == before, "not even the good zip before it is entered"


def test_what_is_no_packed_bundle_is_refused_by_name(zips, tmp_path):
    text = tmp_path / "notes.zip"
    text.write_text("no zip at all")
    flat = tmp_path / "flat_v0.1.0.zip"
    with zipfile.ZipFile(flat, "w") as archive:
        archive.writestr("configs/metadata.json", "{}")
    renamed = tmp_path / "other_v0.1.0.zip"
    renamed.write_bytes(zips[0].read_bytes())
    hollow = tmp_path / "hollow_v0.1.0.zip"
    with zipfile.ZipFile(hollow, "w") as archive:
        archive.writestr("hollow/configs/metadata.json", '{"version": "0.1.0"}')
    cut = tmp_path / "cut_v0.1.0.zip"
    cut.write_bytes(zips[0].read_bytes()[:700])
    for path, reason in (
        (tmp_path / "absent.zip", "is no file"),
        (text, "is no zip"),
        (cut, "is no zip, or a truncated one"),
        (flat, r"configs/configs/metadata\.json' is not in it"),
        (renamed, r"its name must be 'cube_v0\.1\.0\.zip'"),
        (hollow, r"hollow/models/model\.pt' is not in it"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=rf"{path.name}'.*{reason}"):
            index_bundles([zips[0], path], BASE, tmp_path / "out" / "model_info.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", ["0.10.0", "1.0"])
def test_a_version_that_sorts_wrongly_is_not_entered(tmp_path, version):
    path = tmp_path / f"ball_v{version}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ball/configs/metadata.json", json.dumps({"version": version}))
    with pytest.raises(ValueError, match=rf"{path.name}': version '{version}'"):
        index_bundles([path], BASE, tmp_path / "model_info.json")


@pytest.mark.parametrize("base_url", ["", "dist", "ftp://example.org/x", "https://", "https://example.org/?a=b"])
def test_an_address_must_be_one(zips, tmp_path, base_url):
    with pytest.raises(ValueError, match=r"base_url '.*' is no address of a folder"):
        index_bundles(zips, base_url, tmp_path / "model_info.json")
    with pytest.raises(ValueError, match="no zip named"):
        index_bundles([], BASE, tmp_path / "model_info.json")


@pytest.mark.parametrize("content", ["{", "[]", '{"a_v0.1.0": {}}', '{"a_v0.1.0": "https://example.org"}'])
def test_a_damaged_index_is_named_and_left_alone(zips, tmp_path, content):
    out = tmp_path / "model_info.json"
    out.write_text(content)
    with pytest.raises(ValueError, match=r"model_info\.json' is no download index"):
        index_bundles(zips, BASE, out)
    assert out.read_text() == content


def test_an_index_that_cannot_be_written_stays(zips, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="was not written"):
        index_bundles(zips, BASE, tmp_path / "file" / "model_info.json")


def test_the_command_line_enters_zips(zips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command_line(monkeypatch, "index", zips[0], zips[1], "--base_url", BASE) == 0
    assert capsys.readouterr().out == "indexed: ball_v0.2.0\nindexed: cube_v0.1.0\n"
    assert sorted(json.loads((tmp_path / "models" / "model_info.json").read_text())) == ["ball_v0.2.0", "cube_v0.1.0"]
    assert command_line(monkeypatch, "index", zips[0]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# ---- MONAI reads it -------------------------------------------------------------------------------------------------


@pytest.fixture
def github(zips, tmp_path, monkeypatch):
    """GitHub as MONAI asks it, on loopback: the index of branch main and the assets of a release."""
    root = tmp_path / "github"
    assets = root / "someone" / "kd" / "releases" / "download" / "main"
    assets.mkdir(parents=True)
    with FileServer(root) as server:
        for path in zips:
            (assets / path.name).write_bytes(path.read_bytes())
        base = f"{server.url}/someone/kd/releases/download/main"
        index_bundles(zips, base, root / "someone" / "kd" / "main" / "models" / "model_info.json")
        real_get = monai.bundle.scripts.requests.get

        def get(url: str, **keywords):
            return real_get(url.replace("https://raw.githubusercontent.com", server.url), **keywords)

        def release_url(repo_owner: str, repo_name: str, tag_name: str, filename: str) -> str:
            return f"{server.url}/{repo_owner}/{repo_name}/releases/download/{tag_name}/{filename}"

        monkeypatch.setattr(monai.bundle.scripts.requests, "get", get)
        monkeypatch.setattr(monai.bundle.scripts, "_get_git_release_url", release_url)
        yield server


def test_monai_lists_names_and_versions(github):
    assert sorted(get_all_bundles_list("someone/kd", "main")) == [("ball", "0.2.0"), ("cube", "0.1.0")]
    versions = get_bundle_versions("ball", "someone/kd", "main")
    assert versions == {"latest_version": "0.2.0", "all_versions": ["0.1.0", "0.2.0"]}
    found = get_bundle_info("cube", None, "someone/kd", "main")
    assert found["browser_download_url"] == f"{github.url}/someone/kd/releases/download/main/cube_v0.1.0.zip"


def test_monai_downloads_the_newest_version_from_github(github, tmp_path):
    monai.bundle.download(
        name="ball", source="github", repo="someone/kd/main", bundle_dir=tmp_path / "got", progress=False
    )
    assert tree(tmp_path / "got" / "ball") == tree(tmp_path / "0.2.0" / "ball")
    assert f"{github.requests[-1][0]}".endswith("/ball_v0.2.0.zip")
