"""`make demo` in small: the main job from phantoms to report, through the bundles' own configurations."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def released_files(repository: Path) -> dict[str, str]:
    """Return the sha256 of every file below the bundles that git tracks."""
    tracked = subprocess.run(["git", "ls-files", "bundles"], cwd=repository, capture_output=True, text=True, check=True)
    paths = [repository / name for name in tracked.stdout.splitlines()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


@pytest.fixture(scope="module")
def demo(repository, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    before = released_files(repository)
    command = [sys.executable, "benchmarks/demo.py", "--output_dir", str(out), "--num_cases", "8", "--epochs", "2"]
    finished = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert "| distilled |" in finished.stdout  # the table is printed
    assert released_files(repository) == before
    return out


def test_results_cover_the_three_models_and_the_export(demo):
    results = json.loads((demo / "results.json").read_text())
    assert set(results["models"]) == {"teacher", "baseline", "distilled"}
    assert results["models"]["baseline"]["parameters"] == results["models"]["distilled"]["parameters"]
    assert results["models"]["teacher"]["parameters"] > 5 * results["models"]["distilled"]["parameters"]
    assert 0 <= results["onnx"]["max_logit_difference"] < 1e-3
    assert results["n_test_cases"] == 2


def test_arms_share_split_and_schedule(demo):
    baseline, distilled = (
        json.loads((demo / "runs" / arm / "run.json").read_text()) for arm in ("baseline", "distilled")
    )
    assert baseline["schedule_hash"] == distilled["schedule_hash"]
    assert baseline["protocol"]["split_hash"] == distilled["protocol"]["split_hash"]
    teacher_sha256 = json.loads((demo / "runs" / "teacher" / "run.json").read_text())["network"]["weights_sha256"]
    assert distilled["teacher"]["networks"]["teacher"]["weights_sha256"] == teacher_sha256
    assert set(distilled["curves"]["terms"]) == {"seg", "soft"}
    assert set(baseline["curves"]["terms"]) == {"seg"}


def test_report_and_student_folder_are_there(demo):
    report = (demo / "report.html").read_text()
    assert report.count("data:image/") >= 4
    assert (demo / "student" / "models" / "model.onnx").stat().st_size > 1e5
    assert (demo / "student" / "configs" / "inference.yaml").is_file()
    assert not (demo / "student" / "models" / "teacher").exists()


def test_a_folder_that_no_demo_wrote_is_left_alone(repository, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    command = [sys.executable, "benchmarks/demo.py", "--output_dir", str(tmp_path)]
    finished = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert finished.returncode != 0
    assert "holds files that no demo wrote" in finished.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"
