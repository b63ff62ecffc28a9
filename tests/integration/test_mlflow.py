"""``monai.bundle run --tracking mlflow`` with the real MLflow: what is in its store is what the run recorded."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from integration.consumer_venv import run_in, venv_bin

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def student(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ignore = shutil.ignore_patterns("runs", "eval", "previous", "exported", "*.onnx", "*.ts")
    target = tmp_path_factory.mktemp("mlflow") / "student"
    return shutil.copytree(repository / "bundles" / "student", target, ignore=ignore)


def run(student: Path, phantoms: Path, *files: str, overrides: tuple[str, ...] = (), **environment: str) -> None:
    configs = str([f"configs/{name}" for name in files])
    command = ["python", "-m", "monai.bundle", "run", "--config_file", configs, "--bundle_root", "."]
    data = ["--dataset_dir", str(phantoms), "--split_file", "''", "--cpu_bfloat16", "False"]
    run_in(venv_bin("mlflow"), [*command, "--tracking", "mlflow", *data, *overrides], student, **environment)


@pytest.fixture(scope="module")
def trained(student: Path, phantoms: Path) -> dict:
    """Train 2 epochs, tracked; return run.json."""
    run(student, phantoms, "train.yaml", overrides=("--epochs", "2", "--patch_size", "[16,24,16]"))
    (path,) = student.glob("runs/*/run.json")
    return json.loads(path.read_text())


def stored(database: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def metric(database: Path, name: str) -> list[tuple[int, float]]:
    return stored(database, f"SELECT step, value FROM metrics WHERE key = '{name}' ORDER BY step")


def test_training_is_one_finished_mlflow_run_with_the_name_of_its_run_folder(student, trained):
    database = student / "eval" / "mlruns.db"
    assert stored(database, "SELECT name, status FROM runs") == [(trained["run_id"], "FINISHED")]
    experiments = {name for (name,) in stored(database, "SELECT name FROM experiments")}
    assert "monai_experiment" in experiments


def test_the_stored_losses_are_those_of_the_record(student, trained):
    losses = metric(student / "eval" / "mlruns.db", "train_loss")
    per_epoch = trained["protocol"]["n_train"]
    assert [step for step, _ in losses] == list(range(1, 2 * per_epoch + 1)), "one a step, batch size 1"
    values = [value for _, value in losses]
    means = [sum(part) / per_epoch for part in (values[:per_epoch], values[per_epoch:])]
    assert means == pytest.approx(trained["curves"]["loss"], rel=1e-5)
    rates = metric(student / "eval" / "mlruns.db", "lr_group_0")
    assert len(rates) == len(losses)


def test_the_stored_validation_dice_is_that_of_the_record(student, trained):
    dice = metric(student / "eval" / "mlruns.db", "val_mean_dice")
    assert [step for step, _ in dice] == trained["curves"]["val_epoch"] == [1, 2]
    assert [value for _, value in dice] == pytest.approx(trained["curves"]["val_mean_dice"], rel=1e-6)


def test_the_executed_configuration_is_kept(student, trained):
    (path,) = (student / "eval").glob("config_*.json")
    executed = json.loads(path.read_text())
    assert (executed["epochs"], executed["patch_size"]) == (2, [16, 24, 16])
    assert any(file.name == path.name for file in (student / "eval" / "mlruns").rglob("*.json"))


def test_mlflow_prints_the_runs_as_a_table(student, trained):
    command = ["mlflow", "experiments", "csv", "--experiment-id", "1"]
    table = run_in(venv_bin("mlflow"), command, student, MLFLOW_TRACKING_URI="sqlite:///eval/mlruns.db").stdout
    (row,) = csv.DictReader(io.StringIO(table))
    assert float(row["metrics.val_mean_dice"]) == pytest.approx(trained["curves"]["val_mean_dice"][-1], rel=1e-6)


def test_an_evaluation_goes_to_the_store_that_the_environment_names(student, trained, phantoms, tmp_path):
    database = tmp_path / "other.db"
    run(student, phantoms, "train.yaml", "evaluate.yaml", MLFLOW_TRACKING_URI=f"sqlite:///{database}")
    (path,) = student.glob("runs/evaluate-*/run.json")
    record = json.loads(path.read_text())
    ((_, dice),) = metric(database, "val_mean_dice")
    assert dice == pytest.approx(record["summary"]["dice"]["mean"], rel=1e-5)
    assert stored(database, "SELECT status FROM runs") == [("RUNNING",)]
