"""A list of teachers on the command line trains the student with their mean, and the record names it."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from commands import TINY, bundle_run

from monai_kd.teachers.weights import file_sha256


@pytest.mark.slow
def test_an_ensemble_teaches_from_the_command_line(tmp_path, repository, phantoms):
    student = tmp_path / "student"
    shutil.copytree(repository / "bundles" / "student", student, ignore=shutil.ignore_patterns("runs"))
    teacher = student / "models" / "teacher"
    accept = {"teacher::accept": "['intensity', 'modality']"}
    settings = {"teacher_root": f"['{teacher}','{teacher}']", "teacher::spacing_mm": "[1.0,1.0,1.0]", **accept}
    data = {"dataset_dir": phantoms, "split_file": "", "run_name": "ensemble", "epochs": 1}
    bundle_run(student, ["train.yaml"], tmp_path / "elsewhere", **data, **settings, **TINY["student"])
    record = json.loads((student / "runs" / "ensemble" / "run.json").read_text())["teacher"]["networks"]["teacher"]
    digest = file_sha256(teacher / "models" / "model.pt")
    assert record["weights_sha256"] == hashlib.sha256(f"{digest}\n{digest}".encode()).hexdigest()
