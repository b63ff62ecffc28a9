"""Methods of several trainings: order, what is passed over, what goes on, what is trained anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_kd.hub import stages as module
from monai_kd.hub.stages import read_stages, run_stages

STAGES = {
    "teacher": {"configs": ["train.yaml", "teacher.yaml"], "gives": "teacher_path"},
    "student": {"configs": ["train.yaml"], "needs": ["teacher_path"]},
}
# a training that writes what a run leaves; no network
TRAIN = """
imports: [$import json, $from pathlib import Path]
run_dir: .
bundle_root: .
resume: false
teacher_path: ""
value: 1
initialize: []
run:
  - $Path(@run_dir, 'model.pt').write_text(str(@value) + @teacher_path)
  - "$Path(@run_dir, 'run.json').write_text(json.dumps({'status': 'finished', 'value': @value}))"
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text(TRAIN)
    (tmp_path / "configs" / "teacher.yaml").write_text("value: 2\n")
    (tmp_path / "configs" / "stages.json").write_text(json.dumps(STAGES))
    return tmp_path


@pytest.fixture
def trained(monkeypatch) -> list[dict]:
    """Trainings are recorded, and leave weights and a record that say what they were given."""
    calls: list[dict] = []

    def execute(root, stage, given, log):
        calls.append({"stage": stage.name, **given})
        folder = root / given["run_dir"]
        (folder / "model.pt").write_text(json.dumps(sorted(str(value) for value in given.values())))
        (folder / "run.json").write_text(json.dumps({"status": calls[-1].get("status", "finished")}))

    monkeypatch.setattr(module, "_execute", execute)
    return calls


def test_stages_run_in_their_order_in_real_processes_and_hand_their_weights_on(bundle, capfd):
    teacher, student = run_stages(bundle, overrides={"value": 3})
    assert (teacher, student) == (bundle / "runs/stages/teacher", bundle / "runs/stages/student")
    assert (student / "model.pt").read_text() == "3runs/stages/teacher/model.pt"
    (bundle / "configs" / "train.yaml").write_text(TRAIN.replace("run:\n", "run:\n  - $1 // 0\n"))
    with pytest.raises(RuntimeError, match=r"(?s)stage 'teacher' failed with code 1 .*1 // 0"):
        run_stages(bundle)
    assert "teacher: configs/train.yaml, value changed since it was trained; anew" in capfd.readouterr().out


def test_finished_stages_are_passed_over(bundle, trained, capsys):
    run_stages(bundle)
    run_stages(bundle)
    assert [call["stage"] for call in trained] == ["teacher", "student"]
    assert "student: finished already" in capsys.readouterr().out


def test_an_interrupted_stage_goes_on_where_it_stopped(bundle, trained):
    run_stages(bundle)
    (bundle / "runs/stages/student/run.json").write_text(json.dumps({"status": "interrupted"}))
    run_stages(bundle)
    assert [(call["stage"], call.get("resume", False)) for call in trained[2:]] == [("student", True)]


@pytest.mark.parametrize("change", ["overlay", "override", "weights"])
def test_a_stage_with_other_inputs_is_trained_anew_and_so_are_those_behind_it(bundle, trained, change):
    run_stages(bundle, overrides={"seed": 0})
    if change == "overlay":
        (bundle / "configs" / "teacher.yaml").write_text("value: 5\n")
    if change == "weights":
        (bundle / "runs/stages/teacher/model.pt").write_text("other")
    run_stages(bundle, overrides={"seed": int(change == "override")})
    again = [(call["stage"], call.get("resume", False)) for call in trained[2:]]
    # an overlay that gives the same weights leaves the next stage as it is
    expected = {"overlay": ["teacher"], "override": ["teacher", "student"], "weights": ["student"]}
    assert again == [(name, False) for name in expected[change]]


def test_one_stage_alone_takes_what_the_others_left(bundle, trained):
    with pytest.raises(FileNotFoundError, match=r"teacher/model.pt' does not exist \(teacher_path\)"):
        run_stages(bundle, only=["student"])
    run_stages(bundle, only=["teacher"])
    assert run_stages(bundle, only=["student"]) == [bundle / "runs/stages/student"]
    assert [call["stage"] for call in trained] == ["teacher", "student"]


def test_what_cannot_be_run_is_told_before_anything_is(bundle, trained):
    with pytest.raises(ValueError, match=r"unknown stages \['distil'\]; the bundle has teacher, student"):
        run_stages(bundle, only=["distil"])
    (bundle / "configs/stages.json").write_text(json.dumps({**STAGES, "last": {"configs": ["none.yaml"]}}))
    with pytest.raises(ValueError, match=r"stage 'last' has no file \['none.yaml'\]"):
        run_stages(bundle)
    (bundle / "configs/stages.json").write_text(json.dumps({"student": STAGES["student"]}))
    with pytest.raises(ValueError, match=r"stage 'student' .*needs \['teacher_path'\], which no earlier one gives"):
        read_stages(bundle)
    (bundle / "configs/stages.json").unlink()
    with pytest.raises(FileNotFoundError, match="this bundle has no stages; train it by"):
        run_stages(bundle)
    assert trained == []
