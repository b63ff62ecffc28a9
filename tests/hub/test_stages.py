"""Methods of several trainings: order, what is passed over, what goes on, what is trained anew."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from monai_kd.hub import stages as module
from monai_kd.hub.stages import Stage, read_stages, run_stages

STAGES = {
    "teacher": {"configs": ["train.yaml", "teacher.yaml"], "gives": "teacher_path"},
    "student": {"configs": ["train.yaml"], "needs": ["teacher_path"]},
}
# a training that writes what a run leaves; no network
TRAIN = """
imports: [$import hashlib, $import json, $import os, $from pathlib import Path]
run_dir: .
bundle_root: .
resume: false
dataset_dir: data
split_file: $os.path.join(@dataset_dir, 'split.json')
num_workers: 0
teacher_path: ""
value: 1
weights: $(str(@value) + @teacher_path).encode()
facts: "$dict(weights_sha256=hashlib.sha256(@weights).hexdigest())"
initialize: []
run:
  - $Path(@run_dir, 'model.pt').write_bytes(@weights)
  - "$Path(@run_dir, 'run.json').write_text(json.dumps({'status': 'finished', 'network': @facts}))"
"""


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.delenv("MONAI_KD_DATA", raising=False)
    root = tmp_path / "bundle"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "train.yaml").write_text(TRAIN)
    (root / "configs" / "teacher.yaml").write_text("value: 2\n")
    (root / "configs" / "stages.json").write_text(json.dumps(STAGES))
    for name in ("data/imagesTr/a.nii", "data/labelsTr/a.nii", "data/predictions/a.nii", "data/split.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


class Trainings:
    """Stands for the trainings: records them, and leaves weights and a record that follow from what they were given."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.fails: dict[str, str] = {}  # stage to where: early, late, resume; silent returns without an error

    def __call__(self, root: Path, stage: Stage, given: dict, log: Path) -> None:
        self.calls.append({"stage": stage.name, **given})
        folder, fails = root / given["run_dir"], self.fails.get(stage.name)
        if fails == "early":
            raise RuntimeError("failed early")
        if fails == "resume" and given.get("resume"):
            raise RuntimeError("Cause: ValueError: --resume True: not the configuration of the run: num_workers")
        weights = json.dumps(sorted(str(value) for name, value in given.items() if name != "resume")).encode()
        (folder / "model.pt").write_bytes(weights)
        finished = fails not in ("late", "silent")
        record = {"status": "finished" if finished else "running", "network": {"weights_sha256": sha256(weights)}}
        (folder / "run.json").write_text(json.dumps(record))
        if fails == "late":
            raise RuntimeError("failed late")

    @property
    def again(self) -> list[tuple[str, bool]]:
        """Stage, and whether it went on, of all after the first two."""
        return [(call["stage"], call.get("resume", False)) for call in self.calls[2:]]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def trained(monkeypatch) -> Trainings:
    trainings = Trainings()
    monkeypatch.setattr(module, "_execute", trainings)
    return trainings


@pytest.fixture
def runs(bundle: Path) -> Path:
    return bundle / "runs/stages"


def test_a_stage_runs_in_a_real_process_and_takes_the_weights_of_another(bundle, runs, capfd):
    (runs / "teacher").mkdir(parents=True)
    (runs / "teacher/model.pt").write_bytes(b"weights")
    record = {"status": "finished", "network": {"weights_sha256": sha256(b"weights")}}
    (runs / "teacher/run.json").write_text(json.dumps(record))
    assert run_stages(bundle, only=["student"], overrides={"value": 3}) == [runs / "student"]
    assert (runs / "student/model.pt").read_text() == "3runs/stages/teacher/model.pt"
    run_stages(bundle, only=["student"], overrides={"value": "3"})  # the training reads a number
    assert "student: finished already" in capfd.readouterr().out


def test_a_failed_process_is_told_with_the_end_of_its_output_and_the_log_keeps_all(tmp_path, monkeypatch, capfd):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    log = tmp_path / "student.txt"
    log.write_text("earlier\n")
    with pytest.raises(RuntimeError, match=r"(?s)stage 'student' failed with code 3 .*:\nout of memory$"):
        module._execute(tmp_path, Stage("student", ("train.yaml",)), {"value": 1}, log)
    assert log.read_text().startswith("earlier\n---")
    assert log.read_text().endswith("\nout of memory\n")


def test_stages_run_in_their_order_and_finished_ones_are_passed_over(bundle, runs, trained, capsys):
    assert run_stages(bundle) == [runs / "teacher", runs / "student"]
    run_stages(bundle)
    assert [call["stage"] for call in trained.calls] == ["teacher", "student"]
    assert trained.calls[1]["teacher_path"] == "runs/stages/teacher/model.pt"
    assert "student: finished already" in capsys.readouterr().out


@pytest.mark.parametrize("fails", ["early", "late", "silent"])
def test_a_failed_call_costs_no_earlier_run(bundle, runs, trained, fails):
    run_stages(bundle, overrides={"seed": 0})
    trained.fails = {"student": fails}
    before = (runs / "student/model.pt").read_bytes()
    for _ in range(2):  # the second must not take what the first left for finished
        with pytest.raises(RuntimeError, match="stage 'student' ended without" if fails == "silent" else "failed"):
            run_stages(bundle, only=["student"], overrides={"seed": 1})
    assert (runs / "student/model.pt").read_bytes() == before
    run_stages(bundle, overrides={"seed": 0})
    assert trained.again == [("student", False), ("student", fails != "early")]
    trained.fails = {}
    run_stages(bundle, only=["student"], overrides={"seed": 1})
    assert trained.again[2:] == [("student", fails != "early")]
    assert [path.name.partition("-")[0] for path in (runs / "previous").iterdir()] == ["student"]


def test_an_interrupted_stage_goes_on_where_it_stopped(bundle, runs, trained):
    trained.fails = {"student": "late"}
    with pytest.raises(RuntimeError):
        run_stages(bundle)
    trained.fails = {}
    run_stages(bundle)
    assert trained.again == [("student", True)]
    assert not (runs / "previous").exists()
    assert not (runs / "unfinished/student").exists()


def test_an_interrupted_stage_with_other_inputs_is_trained_anew_and_kept_aside(bundle, runs, trained, capsys):
    trained.fails = {"student": "late"}
    with pytest.raises(RuntimeError):
        run_stages(bundle)
    trained.fails = {"student": "early"}
    for _ in range(2):  # the state of the other run must not come into this one
        with pytest.raises(RuntimeError):
            run_stages(bundle, only=["student"], overrides={"value": 7})
    assert trained.again == [("student", False)] * 2
    assert "student: value changed since it was trained; what was begun is kept aside" in capsys.readouterr().out
    assert len(list((runs / "previous").iterdir())) == 1


def test_a_stage_that_cannot_go_on_is_trained_anew(bundle, runs, trained, capsys):
    trained.fails = {"student": "late"}
    with pytest.raises(RuntimeError):
        run_stages(bundle)
    trained.fails = {"student": "resume"}
    run_stages(bundle, overrides={"num_workers": 2})
    assert trained.again == [("student", True), ("student", False)]
    assert "cannot go on (not the configuration of the run: num_workers); anew" in capsys.readouterr().out
    assert len(list((runs / "previous").iterdir())) == 1


def test_a_call_that_dies_between_training_and_renaming_loses_nothing(bundle, runs, trained):
    run_stages(bundle)
    (runs / "student").rename(runs / "unfinished/student")
    run_stages(bundle)
    assert trained.again == []
    assert (runs / "student/model.pt").is_file()


ANEW = {  # what changes: why the teacher is trained anew
    "overlay": "configs/teacher.yaml changed since it was trained; anew",
    "override": "seed changed since it was trained; anew",
    "split": "split_file changed since",
    "cases": "dataset_dir changed since",
    "environment": "MONAI_KD_DATA changed since",
    "weights": "its weights are not those of its record",
    "no_weights": "its weights are missing",
    "status": "its run is not finished",
}


@pytest.mark.parametrize("change", ANEW)
def test_a_stage_with_other_inputs_or_a_damaged_run_is_trained_anew(bundle, runs, trained, change, monkeypatch, capsys):
    run_stages(bundle, overrides={"seed": 0})
    files = {"overlay": (bundle / "configs/teacher.yaml", "value: 5\n"), "split": (bundle / "data/split.json", "{}")}
    files |= {"cases": (bundle / "data/imagesTr/b.nii", ""), "status": (runs / "teacher/run.json", "{}")}
    files |= {"weights": (runs / "teacher/model.pt", "other")}
    if change in files:
        files[change][0].write_text(files[change][1])
    if change == "no_weights":
        (runs / "teacher/model.pt").unlink()
    if change == "environment":
        monkeypatch.setenv("MONAI_KD_DATA", "elsewhere")
    run_stages(bundle, overrides={"seed": int(change == "override")})
    # the others concern the teacher alone, and its weights come out as before
    behind = [("student", False)] if change in ("override", "split", "cases", "environment") else []
    assert trained.again == [("teacher", False), *behind]
    assert f"teacher: {ANEW[change]}" in capsys.readouterr().out


def test_other_weights_of_an_earlier_stage_are_other_inputs(bundle, trained):
    run_stages(bundle)
    run_stages(bundle, only=["teacher"], overrides={"value": 5})
    run_stages(bundle, only=["student"])
    assert trained.again == [("teacher", False), ("student", False)]


def test_comments_hardware_and_places_are_no_inputs(bundle, trained):
    run_stages(bundle)
    (bundle / "configs" / "teacher.yaml").write_text("# a comment\nvalue:   2\nnum_workers: 2\n")
    (bundle / "data/predictions/b.nii").write_text("a prediction is no case")
    (bundle / "data").rename(bundle.parent / "moved")
    places = {"dataset_dir": str(bundle.parent / "moved"), "device": "cpu", "num_workers": 2, "ckpt_dir": "x"}
    run_stages(bundle, overrides=places)
    assert trained.again == []


def test_one_stage_alone_takes_what_finished_stages_left(bundle, runs, trained):
    with pytest.raises(FileNotFoundError, match=r"'student' needs teacher_path of stage 'teacher', .*run.json' is mis"):
        run_stages(bundle, only=["student"])
    run_stages(bundle, only=["teacher"])
    assert run_stages(bundle, only=["student"]) == [runs / "student"]
    assert [call["stage"] for call in trained.calls] == ["teacher", "student"]
    (runs / "teacher/model.pt").write_text("other")
    with pytest.raises(FileNotFoundError, match="its weights are not those of its record"):
        run_stages(bundle, only=["student"])
    record = json.loads((runs / "teacher/run.json").read_text())
    (runs / "teacher/run.json").write_text(json.dumps({**record, "status": "stopped by KeyboardInterrupt"}))
    with pytest.raises(FileNotFoundError, match=r"run.json' says 'stopped by KeyboardInterrupt'"):
        run_stages(bundle, only=["student"])
    assert len(trained.calls) == 2


def test_two_calls_do_not_work_in_one_folder(bundle, runs, trained):
    runs.mkdir(parents=True)
    held = set(module.held_locks)  # by other tests of this process
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    command = [sys.executable, "-S", "-c", code, str(runs / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(FileExistsError, match=r"another process works in '.*runs/stages'.*choose another --out"):
            run_stages(bundle)
        other.communicate(b"\n")
    run_stages(bundle)
    assert set(module.held_locks) == held


def test_relative_paths_of_the_caller_are_made_absolute(bundle, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "word").mkdir()
    given = {"dataset_dir": "mine", "split_file": "data/split.json", "value": "word", "name_mapping": "none/x.csv"}
    run_stages("bundle", overrides=given)
    assert trained.calls[0] == {"stage": "teacher", **given, "dataset_dir": str(tmp_path / "mine")} | {
        "run_dir": "runs/stages/unfinished/teacher"
    }


def test_overrides_that_the_stages_set_are_refused(bundle, trained):
    for name in ("run_dir", "resume", "bundle_root", "teacher_path", "config_file", "+run_dir"):
        wrong = rf"overrides \['{re.escape(name)}'\] are not free: the stages set run_dir, .*, teacher_path themselves"
        with pytest.raises(ValueError, match=wrong):
            run_stages(bundle, overrides={name: "x"})
    assert trained.calls == []


def test_the_error_of_a_failed_stage_is_its_cause_and_not_its_traceback(bundle, monkeypatch):
    child = "import sys; sys.stderr.write('Traceback\\nCause: ValueError: label has 7\\n'); sys.exit(1)"
    popen = subprocess.Popen
    monkeypatch.setattr(module.subprocess, "Popen", lambda _, **given: popen([sys.executable, "-c", child], **given))
    with pytest.raises(
        RuntimeError, match=r"stage 'teacher' failed with code 1 \('.*teacher.txt'\): ValueError: label has 7$"
    ):
        run_stages(bundle)


def test_what_cannot_be_run_is_told_before_anything_is(bundle, trained):
    with pytest.raises(FileNotFoundError, match=r"bundle '.*none' is not a folder"):
        run_stages(bundle / "none")
    with pytest.raises(ValueError, match=r"unknown stages \['distil'\]; the bundle has teacher, student"):
        run_stages(bundle, only=["distil"])
    (bundle / "configs/teacher.yaml").write_text("value: [1\n")
    with pytest.raises(ValueError, match=r"stage 'teacher': .*configs/teacher.yaml' cannot be read"):
        run_stages(bundle)
    (bundle / "configs/stages.json").unlink()
    with pytest.raises(FileNotFoundError, match="this bundle has no stages; train it by"):
        run_stages(bundle)
    assert trained.calls == []


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"last": {"configs": ["none.yaml"]}}, r"stage 'last' has configs \['none.yaml'\], which are no files in"),
        ({"student": STAGES["student"]}, r"stage 'student' needs \['teacher_path'\], which no earlier stage gives"),
        (
            {"a": {"configs": ["train.yaml"], "give": "x"}},
            r"stage 'a' has the keys \['give'\]; known: configs, needs, g",
        ),
        ({"a": {"configs": "train.yaml"}}, r"stage 'a' has configs 'train.yaml'; it must be a list of texts"),
        ({"a": {"configs": []}}, "stage 'a' has no configs"),
        ({"a": {"needs": []}}, "stage 'a' has no configs"),
        ({"a": {"configs": ["train.yaml"], "gives": ["x"]}}, r"stage 'a' has gives \['x'\]; it must be a text"),
        ({"a": ["train.yaml"]}, r"stage 'a' is \['train.yaml'\]; it must be an object"),
        ({"previous": STAGES["teacher"]}, "stage 'previous' has a name that cannot be its folder's"),
        ({"../a": STAGES["teacher"]}, "stage '../a' has a name that cannot be its folder's"),
        ({}, "lists no stages"),
        ([], "lists no stages"),
    ],
)
def test_a_wrong_list_names_the_file_the_stage_and_the_problem(bundle, entry, problem):
    (bundle / "configs/stages.json").write_text(json.dumps(entry))
    with pytest.raises(ValueError, match=rf"configs/stages.json'.*{problem}"):
        read_stages(bundle)


def test_a_torn_list_and_a_doubled_stage_are_refused(bundle):
    path = bundle / "configs/stages.json"
    path.write_text('{"a": {"configs": ["train.yaml"]}, "a": {"configs": ["train.yaml"]}}')
    with pytest.raises(ValueError, match=r"configs/stages.json': stage 'a' is listed twice"):
        read_stages(bundle)
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"configs/stages.json' is no JSON"):
        read_stages(bundle)


def test_overlays_stand_behind_the_first_file_of_every_stage(bundle, runs, trained):
    (bundle / "configs" / "other.yaml").write_text("value: 5\n")
    assert [stage.configs for stage in read_stages(bundle, ["other.yaml"])] == [
        ("train.yaml", "other.yaml", "teacher.yaml"),
        ("train.yaml", "other.yaml"),
    ]
    run_stages(bundle)
    run_stages(bundle, overlays=["other.yaml"])
    assert [call["stage"] for call in trained.calls] == ["teacher", "student"] * 2
    with pytest.raises(ValueError, match=r"stage 'teacher' has configs \['gone.yaml'\], which are no files"):
        run_stages(bundle, overlays=["gone.yaml"])
