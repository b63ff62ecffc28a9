"""The run folder: names, resume, lock, and what was there before."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from monai_kd.handlers import clear_run_dir, open_run_dir, require_free_space, run_name


def make_run(folder: Path, status: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": status}))
    (folder / "model.pt").write_bytes(b"weights")
    return folder


def test_the_run_to_resume_is_the_newest_unfinished_one_of_method_and_seed(tmp_path):
    make_run(tmp_path / "distilled-seed0-20260101-000000", "running")
    make_run(tmp_path / "distilled-seed0-20260102-000000", "stopped by KeyboardInterrupt")
    make_run(tmp_path / "distilled-seed0-20260103-000000", "finished")
    make_run(tmp_path / "distilled-seed1-20260104-000000", "running")
    make_run(tmp_path / "baseline-seed0-20260104-000000", "running")
    assert run_name("distilled", 0, str(tmp_path), resume=True) == "distilled-seed0-20260102-000000"
    assert run_name("distilled", 1, str(tmp_path), resume=True) == "distilled-seed1-20260104-000000"
    assert run_name("distilled", 0, str(tmp_path)).startswith("distilled-seed0-2")
    with pytest.raises(FileNotFoundError, match=r"no interrupted run 'teacher-seed0-...' in"):
        run_name("teacher", 0, str(tmp_path), resume=True)


def test_an_earlier_run_in_the_folder_is_kept_and_nothing_else_moves(tmp_path):
    folder = make_run(tmp_path / "run", "finished")
    (folder / "console.txt").write_text("of the user")
    (folder / "state").mkdir()
    for _ in range(2):
        open_run_dir(str(folder))
        assert (folder / "model.pt").is_file()  # nothing moves before all checks have passed
        clear_run_dir(str(folder))
        assert {path.name for path in folder.iterdir()} == {".lock", "previous", "console.txt"}
        (folder / "run.json").write_text('{"status": "finished"}')
        (folder / "model.pt").write_bytes(b"new")
    kept = sorted((folder / "previous").iterdir())
    assert [(path / "model.pt").read_bytes() for path in kept] == [b"weights", b"new"]
    assert (kept[0] / "state").is_dir()


def test_folders_that_are_no_runs_are_refused_and_left_alone(tmp_path):
    bundle = tmp_path / "bundle"
    (bundle / "configs").mkdir(parents=True)
    (bundle / "configs" / "metadata.json").write_text("{}")
    (bundle / "models").mkdir()
    (bundle / "models" / "model.pt").write_bytes(b"released")
    with pytest.raises(FileExistsError, match="is a bundle's folder"):
        open_run_dir(str(bundle))
    with pytest.raises(FileExistsError, match=r"holds weights but no run\.json"):
        open_run_dir(str(bundle / "models"))
    scored = make_run(tmp_path / "scored", "finished")
    (scored / "run.json").write_text(json.dumps({"status": "finished", "kind": "evaluation"}))
    with pytest.raises(FileExistsError, match="a run of kind 'evaluation'; give this training another run_dir"):
        open_run_dir(str(scored))
    open_run_dir(str(scored), kind="evaluation")
    assert (bundle / "models" / "model.pt").read_bytes() == b"released"


def test_a_torn_record_counts_as_interrupted(tmp_path, caplog):
    folder = make_run(tmp_path / "distilled-seed0-20260101-000000", "running")
    (folder / "run.json").write_text("")
    assert run_name("distilled", 0, str(tmp_path), resume=True) == folder.name
    assert "cannot be read" in caplog.text
    open_run_dir(str(folder), resume=True)


def test_a_run_that_was_killed_before_its_first_record_can_be_resumed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    open_run_dir(str(tmp_path / "run"), resume=True)


def test_remains_of_interrupted_writing_go(tmp_path):
    folder = make_run(tmp_path / "run", "running")
    (folder / ".model.pt.123.tmp").write_bytes(b"half")
    open_run_dir(str(folder), resume=True)
    assert not (folder / ".model.pt.123.tmp").exists()


def test_a_disk_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    open_run_dir(str(tmp_path / "run"))
    assert "cannot be locked" in caplog.text


def test_resume_leaves_the_folder_as_it_is(tmp_path):
    folder = make_run(tmp_path / "run", "running")
    open_run_dir(str(folder), resume=True)
    clear_run_dir(str(folder), resume=True)
    assert (folder / "model.pt").read_bytes() == b"weights"


def test_resume_needs_a_run_that_is_not_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run \(no run.json\)"):
        open_run_dir(str(tmp_path / "none"), resume=True)
    assert not (tmp_path / "none").exists()
    make_run(tmp_path / "done", "finished")
    with pytest.raises(FileExistsError, match="is finished; there is nothing to resume"):
        open_run_dir(str(tmp_path / "done"), resume=True)
    with pytest.raises(TypeError, match="resume is 'yes'; it must be True or False"):
        open_run_dir(str(tmp_path / "done"), resume="yes")  # type: ignore[arg-type]


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    code = "from monai_kd.handlers import open_run_dir\n"
    code += f"open_run_dir({str(tmp_path / 'run')!r}); print('open', flush=True); input()"
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        with pytest.raises(FileExistsError, match="another process works in"):
            open_run_dir(str(tmp_path / "run"))
    finally:
        first.kill()  # the system drops the lock
        first.wait()
    open_run_dir(str(tmp_path / "run"))


def test_too_little_room_is_said_before_training(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    require_free_space(tmp_path / "not" / "yet", 10**6)
    with pytest.raises(OSError, match=r"a run writes about 2 MB .* and the disk has 1 MB free"):
        require_free_space(tmp_path / "not" / "yet", 2 * 10**6)
