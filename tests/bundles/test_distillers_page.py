"""Every command and every piece of configuration of docs/how_to/distillers.md, on phantoms with tiny networks."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import TINY

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "how_to" / "distillers.md").read_text(encoding="utf-8")
OVERLAYS = REPOSITORY / "bundles" / "student" / "configs" / "distillers"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [shlex.split(block.replace("\\\n", " ")) for block in blocks("bash")]


@pytest.fixture
def home(phantoms: Path, tiny_teacher: Path, tmp_path: Path) -> Path:
    """A folder with the student bundle's configurations, from which `bundles/student` can be named."""
    shutil.copytree(REPOSITORY / "bundles" / "student" / "configs", tmp_path / "bundles" / "student" / "configs")
    shutil.copytree(tiny_teacher, tmp_path / "bundles" / "student" / "models" / "teacher")
    return tmp_path


def small(phantoms: Path) -> dict[str, object]:
    """The overrides that make a training take seconds."""
    return {
        **TINY["student"],
        "dataset_dir": phantoms,
        "split_file": "''",
        "patch_size": "[16, 16, 16]",
        "cpu_bfloat16": False,
    }


def execute(words: list[str], folder: Path, overrides: dict[str, object]) -> str:
    command = [sys.executable if words[0] == "python" else words[0], *words[1:]]
    for key, value in overrides.items():
        command += [f"--{key}", str(value)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def record(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text(encoding="utf-8"))


def test_the_page_has_the_commands_that_are_tested_here():
    assert [words[2:4] for words in COMMANDS] == [
        ["monai.bundle", "run"],
        ["monai.bundle", "run"],
        ["monai_kd", "taps"],
        ["monai_kd", "calibrate"],
        ["monai.bundle", "run"],
    ]
    assert len(blocks("yaml")) == 3
    assert "`--gradient_interval 50`" in PAGE


@pytest.mark.parametrize(
    ("number", "terms", "method"),
    [(0, {"seg", "cwd"}, "cwd"), (1, {"seg", "kd", "at"}, "kd_at"), (4, {"seg", "kd"}, "kd")],
)
def test_a_training_of_the_page_runs(home, phantoms, number, terms, method):
    run = {**small(phantoms), "epochs": 1, "run_dir": home / "run", "ckpt_dir": home / "models"}
    execute(COMMANDS[number], home / "bundles" / "student", run)
    found = record(home / "run")
    assert (found["status"], found["method"]) == ("finished", method)
    assert set(found["curves"]["terms"]) == set(found["curves"]["weighted"]) == terms


def test_a_ramp_and_a_stop_of_the_page_scale_the_term(home, phantoms):
    run = {**small(phantoms), "epochs": 10, "run_dir": home / "run", "ckpt_dir": home / "models"}
    execute(COMMANDS[4], home / "bundles" / "student", run)
    curves = record(home / "run")["curves"]
    share = [w / t for w, t in zip(curves["weighted"]["kd"], curves["terms"]["kd"], strict=True)]
    assert 0 < share[0] < 1
    assert share[4] == pytest.approx(1.0)
    assert share[9] < share[8] < 1.0


def test_the_stages_of_the_page_are_printed(home):
    text = execute(COMMANDS[2], home, {})
    assert "student/bottleneck" in text
    assert "image 1 x 1 x 40 x 56 x 40" in text


def test_the_calibration_of_the_page_suggests_a_weight(home, phantoms):
    text = execute(COMMANDS[3], home, {**small(phantoms), "batches": 2, "warmup": 2})
    assert re.search(r"--terms::cwd::weight \d", text)


def train_with(number: int | None, home: Path, phantoms: Path, *options: str) -> dict[str, Any]:
    """Train with one of the page's pieces of configuration, or without; the training's record."""
    files, run = ["configs/train.yaml"], home / f"run-{number}"
    if number is not None:
        files.append(str(home / "mine.yaml"))
        (home / "mine.yaml").write_text(blocks("yaml")[number])
    words = ["python", "-m", "monai.bundle", "run", "--config_file", str(files), "--bundle_root", ".", *options]
    given = {**small(phantoms), "epochs": 1, "run_dir": run, "ckpt_dir": home / "models", "method": "page"}
    text = execute(words, home / "bundles" / "student", given)
    return {**record(run), "text": text}


def test_features_of_several_stages_train_as_on_the_page(home, phantoms):
    found = train_with(0, home, phantoms, "--gradient_interval", "2")
    assert set(found["curves"]["terms"]) == {"seg", "soft", "hint"}
    assert re.search(r"gradient.*hint", found["text"])


def test_two_teachers_train_as_on_the_page(home, phantoms, tiny_teacher):
    shutil.copytree(tiny_teacher, home / "second")
    found = train_with(1, home, phantoms, "--second_root", str(home / "second"))
    assert found["teacher"]["networks"].keys() == {"teacher", "second"}
    assert min(found["curves"]["terms"]["soft"]) > 0


def test_a_map_of_weights_from_the_batch_changes_the_term_as_on_the_page(home, phantoms):
    with_map, without = (train_with(number, home, phantoms)["curves"]["terms"] for number in (2, None))
    assert with_map["seg"] == pytest.approx(without["seg"], rel=0.05)
    assert with_map["soft"][0] > 0
    assert with_map["soft"] != pytest.approx(without["soft"], rel=0.01)


def test_the_table_of_methods_is_the_folder_of_overlays():
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \|([^|\n]*)\|", PAGE, flags=re.MULTILINE))
    assert sorted(name for name in rows if (OVERLAYS / f"{name}.yaml").is_file()) == sorted(rows)
    assert sorted(rows) == sorted(path.stem for path in OVERLAYS.glob("*.yaml"))
    for name, weight in rows.items():
        content = yaml.safe_load((OVERLAYS / f"{name}.yaml").read_text())
        weights = [
            term["weight"] for key, term in content.items() if key.startswith("terms::") and isinstance(term, dict)
        ]
        if weight.strip():
            assert [float(weight)] == weights, name
        else:
            assert len(weights) > 1
