"""Every command of docs/how_to/unseen_cameras.md, on made-up photographs, and its lists of overlays and defaults."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from commands import TINY, page_commands, run_page_command
from monai.bundle import ConfigParser
from vessels import vessel_photographs

from monai_kd.handlers.provenance import file_sha256
from monai_kd.hub import read_stages

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLE = REPOSITORY / "bundles" / "gkd"
PAGE = (REPOSITORY / "docs" / "how_to" / "unseen_cameras.md").read_text(encoding="utf-8")
COMMANDS = page_commands(PAGE)
QUICK = {"epochs": 1, "patch_size": [32, 32], "num_samples": 1, "cpu_bfloat16": False}


def execute(words: list[str], home: Path) -> str:
    """Run a command of the page on small images; trainings are cut short."""
    places = {"DIR": home / "DIR", "OTHER_CAMERA": home / "DIR", "OUT": home / "OUT"}
    settings = {**TINY["gkd"], **(QUICK if "stages" in words else {})}
    return run_page_command(words, places, home / "bundle", settings).stdout


def check_records(out: Path) -> None:
    """The student's record says what it came from: the weights of the stages before."""
    names = [stage.name for stage in read_stages(BUNDLE)]
    records = {name: json.loads((out / name / "run.json").read_text()) for name in names}
    weights = {name: file_sha256(out / name / "model.pt") for name in names}
    assert all(records[name]["network"]["weights_sha256"] == weights[name] for name in names)
    *_, student = records.values()
    assert student["start"] == {"student": weights["scratch"]}
    assert student["teacher"]["networks"]["teacher"]["weights_sha256"] == weights["teacher"]
    assert {facts["weights_sha256"] for facts in student["teacher"]["helpers"].values()} == {weights["alignment"]}


@pytest.mark.slow
def test_the_commands_run_in_the_order_of_the_page(tmp_path):
    stages, evaluate, infer = COMMANDS
    shutil.copytree(BUNDLE / "configs", tmp_path / "bundle" / "configs")
    data, images = vessel_photographs(tmp_path / "made")
    shutil.copytree(data, tmp_path / "DIR")
    trained = execute(stages, tmp_path)
    assert [line for line in trained.splitlines() if line.startswith("trained:")] == [
        f"trained: runs/stages/{stage.name}" for stage in read_stages(BUNDLE)
    ]
    check_records(tmp_path / "bundle" / "runs" / "stages")
    assert execute(stages, tmp_path).count("finished already") == len(read_stages(BUNDLE))
    scored = execute(evaluate, tmp_path)
    assert "mean Dice" in scored
    assert "cldice" in scored
    (tmp_path / "bundle" / "models").mkdir(exist_ok=True)
    shutil.copyfile(tmp_path / "bundle/runs/stages/gkd/model.pt", tmp_path / "bundle/models/model.pt")
    shutil.rmtree(tmp_path / "DIR")
    shutil.copytree(images, tmp_path / "DIR")
    execute(infer, tmp_path)
    assert len(list((tmp_path / "OUT").glob("*_seg.png"))) == 2


def test_the_page_lists_every_overlay_and_the_defaults_of_the_configuration():
    config = ConfigParser.load_config_file(str(BUNDLE / "configs" / "train.yaml"))
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in PAGE.splitlines() if line.startswith("|")
    ]
    overlays = {name for row in rows for cell in row[:-1] for name in re.findall(r"`(\w+\.yaml)`", cell)}
    apart = {"train.yaml", "evaluate.yaml", "inference.yaml", "multi_gpu_train.yaml"}
    assert overlays - apart == {path.name for path in (BUNDLE / "configs").glob("*.yaml")} - apart
    stages = [row[0].strip("`") for row in rows if len(row) == 3 and row[1] in ("none", *(f"`{o}`" for o in overlays))]
    assert stages == [stage.name for stage in read_stages(BUNDLE)]
    defaults = {name: row[1] for row in rows for name in re.findall(r"`([\w:]+)`", row[0])}
    for name, term in config["terms"].items():
        if name != "seg":
            assert float(defaults[f"terms::{name}::weight"]) == term["weight"], name
    for name in ("latent_channels", "latent_length", "grid"):
        values = dict(zip(("latent_channels", "latent_length", "grid"), defaults[name].split(", "), strict=True))
        assert float(values[name]) == config[name]
    assert float(defaults["diameter"]) == config["diameter"]
    assert float(defaults["views"]) == len(config["views"])
    assert defaults["graph_form"] == f"`{config['graph_form']}`, `{config['graph_scope']}`, {config['graph_tau']:g}"
