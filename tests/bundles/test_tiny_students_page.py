"""Every command of docs/how_to/tiny_students.md, on phantoms, and its lists of overlays and defaults."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel
import pytest
from commands import TINY, page_commands, run_page_command
from monai.bundle import ConfigParser

from monai_kd.handlers.provenance import file_sha256
from monai_kd.hub import read_stages

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLE = REPOSITORY / "bundles" / "mtms-kd"
PAGE = (REPOSITORY / "docs" / "how_to" / "tiny_students.md").read_text(encoding="utf-8")
COMMANDS = page_commands(PAGE)
QUICK = {"epochs": 1, "num_samples": 2, "cpu_bfloat16": False}
# files that are not laid over train.yaml
APART = {"train.yaml", "evaluate.yaml", "inference.yaml", "inference_pictures.yaml", "multi_gpu_train.yaml"}


def execute(words: list[str], home: Path) -> str:
    """Run a command of the page on phantoms; trainings are cut short."""
    places = {"DIR": home / "DIR", "OUT": home / "OUT"}
    tiny = {"roi_size": TINY["mtms-kd"]["patch_size"]} if "configs/inference.yaml" in words else TINY["mtms-kd"]
    settings = {**tiny, **(QUICK if "stages" in words else {})}
    return run_page_command(words, places, home / "bundle", settings).stdout


@pytest.mark.slow
def test_the_commands_run_in_the_order_of_the_page(data_for, tmp_path):
    stages, evaluate, infer = COMMANDS[:3]
    shutil.copytree(BUNDLE / "configs", tmp_path / "bundle" / "configs")
    shutil.copytree(data_for("mtms-kd"), tmp_path / "DIR")
    trained = execute(stages, tmp_path)
    assert [line for line in trained.splitlines() if line.startswith("trained:")] == [
        f"trained: runs/stages/{stage.name}" for stage in read_stages(BUNDLE)
    ]
    out = tmp_path / "bundle" / "runs" / "stages"
    teacher, student = (json.loads((out / name / "run.json").read_text()) for name in ("teacher", "mtms_kd"))
    assert student["teacher"]["networks"]["teacher"]["weights_sha256"] == file_sha256(out / "teacher" / "model.pt")
    assert teacher["protocol"]["n_train"] == 2 * student["protocol"]["n_train"]
    assert "mean Dice" in execute(evaluate, tmp_path)
    (tmp_path / "bundle" / "models").mkdir(exist_ok=True)
    shutil.copyfile(out / "mtms_kd" / "model.pt", tmp_path / "bundle" / "models" / "model.pt")
    execute(infer, tmp_path)
    images = sorted((tmp_path / "DIR" / "imagesTs").iterdir())
    made = sorted((tmp_path / "OUT").glob("*_seg.nii.gz"))
    assert [nibabel.load(path).shape for path in made] == [nibabel.load(path).shape for path in images]


def test_the_page_lists_every_overlay_and_the_defaults_of_the_configuration():
    config = ConfigParser.load_config_file(str(BUNDLE / "configs" / "train.yaml"))
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in PAGE.splitlines() if line.startswith("|")
    ]
    overlays = {
        name
        for row in rows
        for cell in row[:-1]
        if "behind" not in cell
        for name in re.findall(r"`([\w/]+\.yaml)`", cell)
    }
    configs = BUNDLE / "configs"
    assert overlays - APART == {path.relative_to(configs).as_posix() for path in configs.rglob("*.yaml")} - APART
    stages = [row[0].strip("`") for row in rows if len(row) == 3 and row[1] in ("none", *(f"`{o}`" for o in overlays))]
    assert stages == [stage.name for stage in read_stages(BUNDLE)]
    named = [(re.findall(r"`([\w:]+)`", row[0]), row[1].split(", ")) for row in rows]
    values = {
        name: value
        for names, found in named
        if len(names) == len(found)
        for name, value in zip(names, found, strict=True)
    }
    for name, term in config["terms"].items():
        if name != "seg":
            assert float(values[f"terms::{name}::weight"]) == term["weight"], name
    assert values["contrast_mode"] == f"`{config['contrast_mode']}`"
    assert (values["head_hidden"], config["head_hidden"]) == ("none", None)
    numbers = ("temperature", "contrast_tau", "grid", "target_width", "queue_size", "neighbors", "labelled_fraction")
    numbers += ("labelled_seed", "unlabelled", "reconstruction_weight", "hidden_parts", "hidden_size", "hidden_share")
    for name in numbers:
        assert float(values[name]) == config[name], name
