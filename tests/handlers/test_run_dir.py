"""The run folder: names, resume, lock, and what was there before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from monai_kd.handlers import open_run_dir, require_free_space, run_name


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


def test_an_earlier_run_in_the_folder_is_kept(tmp_path):
    folder = make_run(tmp_path / "run", "finished")
    for _ in range(2):
        open_run_dir(str(folder))
        assert [path.name for path in folder.iterdir() if path.name != ".lock"] == ["previous"]
        make_run(folder / "new", "running")
    kept = sorted((folder / "previous").iterdir())
    assert len(kept) == 2
    assert (kept[0] / "model.pt").read_bytes() == b"weights"
    assert (kept[1] / "new" / "model.pt").read_bytes() == b"weights"


def test_resume_leaves_the_folder_as_it_is(tmp_path):
    folder = make_run(tmp_path / "run", "running")
    open_run_dir(str(folder), resume=True)
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
        with pytest.raises(FileExistsError, match="another process trains in"):
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
