"""Every command of docs/how_to/one_modality.md, on made-up brain tumors with a tiny network."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from brain_tumors import brain_tumors
from commands import TINY, page_commands, run_page_command
from monai.bundle import ConfigParser

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "how_to" / "one_modality.md").read_text(encoding="utf-8")
COMMANDS = page_commands(PAGE)
BUNDLE = REPOSITORY / "bundles" / "mtcm-kd"
QUICK = {"epochs": 1, "patch_size": [16, 16, 16], "roi_size": [32, 32, 32], "cpu_bfloat16": False}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's configurations, and data in both layouts."""
    root = tmp_path_factory.mktemp("page")
    shutil.copytree(BUNDLE / "configs", root / "bundle" / "configs")
    brain_tumors(root / "DIR")
    brain_tumors(root / "TASK01", "msd")
    return root


def execute(words: list[str], home: Path) -> str:
    """Run a command of the page with a tiny network; a training is cut short."""
    settings = dict(TINY["mtcm-kd"])
    if "train.yaml" in " ".join(words):
        settings |= QUICK if "evaluate" not in " ".join(words) else {"roi_size": QUICK["roi_size"]}
    places = {name: home / name for name in ("DIR", "TASK01", "OUT")}
    return run_page_command(words, places, home / "bundle", settings).stdout


def test_the_page_has_the_commands_that_are_tested_here():
    assert all(words[:4] == ["python", "-m", "monai.bundle", "run"] for words in COMMANDS)
    assert [re.findall(r"configs/(\w+)\.yaml", " ".join(words)) for words in COMMANDS] == [
        ["train"],
        ["train", "missing_modalities"],
        ["train"],
        ["train", "evaluate"],
        ["inference", "inference_brats"],
    ]


@pytest.mark.slow
def test_the_commands_run_in_the_order_of_the_page(home):
    stacked, missing, train, evaluate, infer = COMMANDS
    execute(stacked, home)
    for path in (home / "DIR").glob("*_1/*_flair.nii.gz"):
        path.unlink()
        break
    execute(missing, home)
    shutil.rmtree(home / "DIR")
    shutil.rmtree(home / "DIR_images")
    brain_tumors(home / "DIR")
    execute(train, home)
    record = json.loads((home / "bundle" / "runs" / "mine" / "run.json").read_text())
    assert (record["status"], record["method"]) == ("finished", "mtcm_kd")
    assert "mean Dice" in execute(evaluate, home)
    execute(infer, home)
    assert len(list((home / "OUT").iterdir())) == 6


def test_the_page_lists_every_overlay_and_the_defaults_of_the_configuration():
    config = ConfigParser.load_config_file(str(BUNDLE / "configs" / "train.yaml"))
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|(?: |$)", PAGE, flags=re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+\.yaml)`", row[0])}
    apart = {"evaluate.yaml", "inference.yaml", "inference_brats.yaml", "multi_gpu_train.yaml"}
    assert listed == {path.name for path in (BUNDLE / "configs").glob("*.yaml")} - apart
    defaults = {row[0]: row[1].replace("`", "") for row in rows}
    for name in ("teacher_mode", "performance", "performance_tau", "performance_source", "temperature"):
        assert float_or_text(defaults[f"`{name}`"]) == config[name], name
    weights = {f"terms::{name}::weight": term["weight"] for name, term in config["terms"].items()}
    for ids, values in defaults.items():
        for name, value in zip(re.findall(r"`(terms::\w+::weight)`", ids), values.split(", "), strict=False):
            assert float(value) == weights[name], name


def float_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
