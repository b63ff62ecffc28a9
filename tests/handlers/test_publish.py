"""PublishBest: the best weights arrive whole, and what stood there is kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from ignite.engine import Engine

from monai_kd.handlers import PublishBest


def finish(run_dir: Path, ckpt_dir: Path, weights: str | None, record: str | None = "{}") -> None:
    """Run an engine to its end whose training left ``weights`` and ``record`` in its run folder."""
    run_dir.mkdir(exist_ok=True)
    for name, content in (("model.pt", weights), ("run.json", record)):
        if content is not None:
            (run_dir / name).write_text(content)
    engine = Engine(lambda *_: None)
    PublishBest(str(run_dir), str(ckpt_dir)).attach(engine)
    engine.run([0], max_epochs=1)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.is_file()}


def test_weights_and_record_are_copied_when_training_completes(tmp_path):
    finish(tmp_path / "run", tmp_path / "models", "weights 1", "record 1")
    assert contents(tmp_path / "models") == {"model.json": "record 1", "model.pt": "weights 1"}
    assert contents(tmp_path / "run") == {"model.pt": "weights 1", "run.json": "record 1"}
    assert not (tmp_path / "models" / "previous").exists()


def test_earlier_files_are_kept_however_fast_runs_follow_each_other(tmp_path):
    for number in range(4):
        finish(tmp_path / f"run{number}", tmp_path / "models", f"weights {number}", f"record {number}")
    assert contents(tmp_path / "models") == {"model.json": "record 3", "model.pt": "weights 3"}
    kept = contents(tmp_path / "models" / "previous")
    assert sorted(kept.values()) == sorted(f"{kind} {n}" for n in range(3) for kind in ("record", "weights"))
    # a file and its record are kept under one name
    for name, text in kept.items():
        if name.endswith(".pt"):
            assert kept[name.removesuffix(".pt") + ".json"] == text.replace("weights", "record")


def test_a_full_disk_leaves_the_earlier_weights_in_place(tmp_path, monkeypatch):
    finish(tmp_path / "run", tmp_path / "models", "weights 1", "record 1")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        finish(tmp_path / "other", tmp_path / "models", "weights 2", "record 2")
    assert contents(tmp_path / "models") == {"model.json": "record 1", "model.pt": "weights 1"}


def test_other_files_of_the_folder_are_left_alone(tmp_path):
    (tmp_path / "models" / "teacher").mkdir(parents=True)
    (tmp_path / "models" / "teacher" / "model.pt").write_text("teacher")
    finish(tmp_path / "run", tmp_path / "models", "weights")
    assert (tmp_path / "models" / "teacher" / "model.pt").read_text() == "teacher"


def test_a_run_without_validation_is_refused_and_changes_nothing(tmp_path):
    finish(tmp_path / "run", tmp_path / "models", "weights 1", "record 1")
    with pytest.raises(FileNotFoundError, match="no validation ran; epochs must be at least val_interval"):
        finish(tmp_path / "other", tmp_path / "models", None)
    assert contents(tmp_path / "models") == {"model.json": "record 1", "model.pt": "weights 1"}


def test_weights_without_a_record_are_refused_and_change_nothing(tmp_path):
    finish(tmp_path / "run", tmp_path / "models", "weights 1", "record 1")
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        finish(tmp_path / "other", tmp_path / "models", "weights 2", None)
    assert contents(tmp_path / "models") == {"model.json": "record 1", "model.pt": "weights 1"}


def test_a_run_that_fails_publishes_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.pt").write_text("half trained")

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    engine = Engine(fail)
    PublishBest(str(tmp_path / "run"), str(tmp_path / "models")).attach(engine)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.run([0])
    assert not (tmp_path / "models").exists()
