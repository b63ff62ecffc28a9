"""pack_bundle: the same bytes every time, all that belongs in and nothing else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from bundle_folders import command_line, make_bundle, tree

from monai_kd.hub import pack_bundle

FILES = [
    "LICENSE",
    "configs/inference.yaml",
    "configs/metadata.json",
    "docs/README.md",
    "models/model.pt",
    "models/teacher/configs/metadata.json",
    "models/teacher/models/model.pt",
]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "ball")


def rewrite(bundle: Path, **changes: object) -> None:
    file = bundle / "configs" / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---- the zip --------------------------------------------------------------------------------------------------------


def test_the_zip_holds_one_top_folder_with_the_weights(bundle, tmp_path):
    packed = pack_bundle(bundle, tmp_path / "dist")
    assert packed.path == tmp_path / "dist" / "ball_v0.1.0.zip"
    assert (packed.files, packed.size) == (len(FILES), packed.path.stat().st_size)
    assert packed.sha256 == hashlib.sha256(packed.path.read_bytes()).hexdigest()
    with zipfile.ZipFile(packed.path) as archive:
        assert archive.namelist() == [f"ball/{name}" for name in FILES]
        assert {name: archive.read(f"ball/{name}") for name in FILES} == tree(bundle)


def test_dates_modes_umask_and_the_place_do_not_change_the_bytes(bundle, tmp_path):
    first = pack_bundle(bundle, tmp_path / "one")
    elsewhere = tmp_path / "elsewhere" / "ball"
    for name in reversed(FILES):  # other order of creation, other inodes
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, elsewhere / name)
        os.utime(elsewhere / name, (1e9, 1e9))
        (elsewhere / name).chmod(0o700)
    before = os.umask(0o077)
    try:
        second = pack_bundle(elsewhere, tmp_path / "two")
    finally:
        os.umask(before)
    assert second.sha256 == first.sha256


def test_the_bytes_are_known_in_advance(tmp_path):
    """Nothing in the zip depends on Python, zlib, system or clock: this hash holds everywhere."""
    packed = pack_bundle(make_bundle(tmp_path / "ball", weights=1000), tmp_path / "dist")
    assert packed.sha256 == "7e23fbbe17710b22a9f22131cd32480e39a874a4155e0cc82fc54b4f63f00149"
    with zipfile.ZipFile(packed.path) as archive:
        for member in archive.infolist():
            assert member.compress_type == zipfile.ZIP_STORED
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            assert member.external_attr >> 16 == stat.S_IFREG | 0o644


def test_a_changed_weight_changes_the_hash(bundle, tmp_path):
    first = pack_bundle(bundle, tmp_path / "dist")
    (bundle / "models" / "model.pt").write_bytes(b"other")
    assert pack_bundle(bundle, tmp_path / "dist").sha256 != first.sha256


def test_runs_exports_caches_and_hidden_files_stay_out(bundle, tmp_path):
    before = pack_bundle(bundle, tmp_path / "dist").sha256
    for name in (
        "runs/a/model.pt",
        "eval/x",
        "models/previous/model.pt",
        "configs/__pycache__/x.pyc",
        ".git/HEAD",
        "docs/.DS_Store",
    ):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("x")
    assert pack_bundle(bundle, tmp_path / "dist").sha256 == before
    (bundle / "models" / "exported").mkdir()
    (bundle / "models" / "exported" / "model.onnx").write_text("x")
    with zipfile.ZipFile(pack_bundle(bundle, tmp_path / "dist").path) as archive:
        assert "ball/models/exported/model.onnx" not in archive.namelist()


def test_the_folder_gives_the_name_also_from_inside(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(bundle)
    assert pack_bundle(".", tmp_path / "dist").path.name == "ball_v0.1.0.zip"
    with pytest.raises(ValueError, match="out_dir 'dist' lies inside the bundle"):
        pack_bundle(".", "dist")


def test_a_link_inside_the_bundle_is_packed_as_the_file(bundle, tmp_path):
    before = pack_bundle(bundle, tmp_path / "dist").sha256
    weights = bundle / "models" / "model.pt"
    (bundle / "runs").mkdir()
    weights.rename(bundle / "runs" / "best.pt")
    weights.symlink_to("../runs/best.pt")
    assert pack_bundle(bundle, tmp_path / "dist").sha256 == before


def test_the_shipped_bundles_pack(bundles, tmp_path):
    for shipped in bundles:
        packed = pack_bundle(shipped, tmp_path)
        with zipfile.ZipFile(packed.path) as archive:
            assert f"{shipped.name}/models/model.pt" in archive.namelist()
            assert archive.testzip() is None


# ---- refusals -------------------------------------------------------------------------------------------------------


def refused(bundle: Path, tmp_path: Path, kind: type[Exception], match: str) -> None:
    """Packing fails with that message, and writes nothing."""
    with pytest.raises(kind, match=match) as caught:
        pack_bundle(bundle, tmp_path / "dist")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "dist").exists() or tree(tmp_path / "dist") == {}


def test_a_folder_without_metadata_is_no_bundle(bundle, tmp_path):
    refused(tmp_path / "nothing", tmp_path, FileNotFoundError, "nothing' is no folder")
    (bundle / "configs" / "metadata.json").unlink()
    refused(bundle, tmp_path, FileNotFoundError, r"it has no configs/metadata\.json")


def test_metadata_that_is_no_json_is_refused(bundle, tmp_path):
    (bundle / "configs" / "metadata.json").write_text('{"version": ')
    refused(bundle, tmp_path, ValueError, r"metadata\.json' is no JSON")


@pytest.mark.parametrize("name", ["models/model.pt", "models/teacher/models/model.pt"])
def test_missing_and_empty_weights_are_refused(bundle, tmp_path, name):
    (bundle / name).write_bytes(b"")
    refused(bundle, tmp_path, FileNotFoundError, f"{name}' is missing or empty")
    (bundle / name).unlink()
    refused(bundle, tmp_path, FileNotFoundError, "no weights in" if "teacher" in name else "is missing or empty")


def test_a_git_lfs_pointer_is_not_taken_for_weights(bundle, tmp_path):
    (bundle / "models" / "model.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(bundle, tmp_path, ValueError, "is a Git LFS pointer")


@pytest.mark.parametrize("version", ["0.1", "1", "v0.1.0", "0.1.0rc1", "", None, 1.0])
def test_a_version_that_is_not_x_y_z_is_refused(bundle, tmp_path, version):
    rewrite(bundle, version=version)
    refused(bundle, tmp_path, ValueError, r"it must be x\.y\.z")


@pytest.mark.parametrize("version", ["0.10.0", "10.0.0", "0.0.12"])
def test_a_version_part_of_two_digits_is_refused(bundle, tmp_path, version):
    rewrite(bundle, version=version)
    refused(bundle, tmp_path, ValueError, f"version '{version}'.*each part must be one digit")


@pytest.mark.parametrize(("name", "reason"), [("brats_vnet", "has '_v'"), ("my ball", "use letters, digits")])
def test_a_name_that_monai_would_misread_is_refused(tmp_path, name, reason):
    refused(make_bundle(tmp_path / name), tmp_path, ValueError, f"bundle name '{name}'.*{reason}")


def test_another_name_in_the_metadata_is_refused_and_a_title_is_not(bundle, tmp_path):
    rewrite(bundle, name="Ball segmentation")  # as in the model zoo
    pack_bundle(bundle, tmp_path / "titled")
    rewrite(bundle, name="cube")
    refused(bundle, tmp_path, ValueError, "names the bundle 'cube' and its folder is 'ball'")


def test_links_that_lead_out_or_nowhere_are_refused(bundle, tmp_path):
    (tmp_path / "secret").write_text("x")
    link = bundle / "docs" / "link"
    for target, reason in (("../../secret", "outside"), ("nothing", "does not exist"), ("../configs", "to the folder")):
        link.symlink_to(target)
        refused(bundle, tmp_path, ValueError, f"'docs/link' is a link .*{reason}")
        link.unlink()
    os.mkfifo(bundle / "docs" / "pipe")
    refused(bundle, tmp_path, ValueError, "'docs/pipe' is neither a file nor a folder")


def test_large_files_must_be_there_and_be_the_listed_ones(bundle, tmp_path):
    before = pack_bundle(bundle, tmp_path / "before").sha256
    weights = bundle / "models" / "model.pt"
    listed = {
        "path": "models/model.pt",
        "url": "http://127.0.0.1/model.pt",
        "hash_val": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "hash_type": "sha256",
    }
    (bundle / "large_files.yml").write_text(yaml.safe_dump({"large_files": [listed]}))
    assert pack_bundle(bundle, tmp_path / "before").sha256 == before, "large_files.yml is not packed"
    weights.rename(tmp_path / "kept.pt")
    refused(bundle, tmp_path, FileNotFoundError, r"models/model\.pt' is listed .* download_large_files --bundle_path")
    weights.write_bytes(b"another training")
    refused(bundle, tmp_path, ValueError, r"large_files\.yml says")


def test_a_zip_of_that_version_stays_when_the_new_one_fails(bundle, tmp_path):
    first = pack_bundle(bundle, tmp_path / "dist")
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(FileNotFoundError):
        pack_bundle(bundle, tmp_path / "dist")
    assert hashlib.sha256(first.path.read_bytes()).hexdigest() == first.sha256


def test_a_write_that_fails_leaves_nothing(bundle, tmp_path):
    """The limit on file sizes stands in for the end of the disk: the write itself fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"dist/ball_v0\.1\.0\.zip' was not written: File too large") as caught:
            pack_bundle(bundle, tmp_path / "dist")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert list((tmp_path / "dist").iterdir()) == []


def test_a_full_disk_is_one_line_on_the_command_line(bundle, tmp_path):
    """A real one: a file system of 64 KB in a mount namespace of its own."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=64k none disk && "$0" -m monai_kd pack ball disk; code=$?; ls -A disk; exit $code'
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, sys.executable],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr.strip().splitlines()[-1].endswith("'disk/ball_v0.1.0.zip' was not written: No space left on device")
    )


def test_the_command_line_says_what_was_packed(bundle, tmp_path, monkeypatch, capsys):
    assert command_line(monkeypatch, "pack", bundle, tmp_path / "dist") == 0
    assert capsys.readouterr().out.splitlines()[0] == f"packed: {tmp_path}/dist/ball_v0.1.0.zip (0.20 MB, 7 files)"
    (bundle / "models" / "model.pt").unlink()
    assert command_line(monkeypatch, "pack", bundle, tmp_path / "dist") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("error: ")


def test_weights_that_are_not_those_of_the_list_are_refused(bundle, tmp_path):
    """After a training the list of checksums is of the weights before."""
    (bundle / "models" / "checksums.sha256").write_text(f"{'0' * 64}  model.pt\n")
    refused(bundle, tmp_path, ValueError, "python -m monai_kd sync")
