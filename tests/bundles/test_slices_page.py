"""Every command of docs/how_to/slices.md, on phantoms with a tiny network."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import TINY
from monai.bundle import ConfigParser

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "how_to" / "slices.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
BUNDLE = REPOSITORY / "bundles" / "distill-dsm"
CHANNELS = {key.partition("::")[2]: value for key, value in TINY["distill-dsm"].items()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """The bundle with a tiny network of random weights, and a tiny teacher beside it."""
    root = tmp_path_factory.mktemp("page")
    bundle = root / "bundles" / "distill-dsm"
    shutil.copytree(BUNDLE / "configs", bundle / "configs")
    shutil.copytree(tiny_teacher, root / "bundles" / "teacher")
    for name in ("train.yaml", "inference.yaml"):
        path = bundle / "configs" / name
        text = path.read_text()
        assert "  exchange: distill\n" in text
        path.write_text(
            text.replace("  exchange: distill\n", f"  exchange: distill\n  channels: {CHANNELS['channels']}\n")
        )
    definition = json.loads((bundle / "configs" / "infer.json").read_text())
    definition["network_def"] |= CHANNELS
    (bundle / "configs" / "infer.json").write_text(json.dumps(definition))
    (bundle / "models").mkdir()
    torch.manual_seed(0)
    network = ConfigParser(definition).get_parsed_content("network_def")
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    return root


def execute(words: list[str], home: Path, phantoms: Path) -> str:
    """Run a command of the page, with the phantoms as DIR; a training is cut short."""
    places = {"DIR": str(phantoms), "OUT": str(home / "out")}
    command = [sys.executable, *(re.sub(r"^(DIR|OUT)\b", lambda found: places[found[0]], word) for word in words[1:])]
    trains = "monai.bundle" in words and "evaluate" not in " ".join(words) and "train.yaml" in " ".join(words)
    if trains:
        command += ["--epochs", "1", "--patch_size", "[16,16,8]", "--cpu_bfloat16", "False"]
    folder = home / "bundles" / "distill-dsm" if "monai.bundle" in words else home
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_page_has_the_commands_that_are_tested_here():
    found = [(words[2:4], re.findall(r"configs/(\w+)\.yaml", " ".join(words))) for words in COMMANDS]
    run = ["monai.bundle", "run"]
    assert found == [
        (run, ["train"]),
        (run, ["train", "evaluate"]),
        (run, ["inference"]),
        (run, ["train", "from_teacher"]),
        (run, ["inference", "streaming"]),
        (["monai_kd", "export"], []),
        (["monai_kd", "predict"], []),
    ]


@pytest.mark.slow
def test_the_commands_run_in_the_order_of_the_page(home, phantoms):
    bundle, out = home / "bundles" / "distill-dsm", home / "out"
    train, evaluate, infer, taught, stream, export, predict = COMMANDS
    execute(train, home, phantoms)
    assert json.loads((bundle / "models" / "model.json").read_text())["method"] == "distill_dsm"
    assert "mean Dice" in execute(evaluate, home, phantoms)
    execute(infer, home, phantoms)
    assert len(list(out.iterdir())) == 2
    execute(taught, home, phantoms)
    (run,) = bundle.glob("runs/distill_dsm_from_teacher*")
    assert json.loads((run / "run.json").read_text())["teacher"]["source"] == "live"
    shutil.rmtree(out)
    execute(stream, home, phantoms)
    assert len(list(out.iterdir())) == 2
    printed = execute(export, home, phantoms)
    assert [line.split(" ")[0] for line in printed.splitlines() if "Dice" in line] == ["exported:"] * 3
    shutil.rmtree(out)
    execute(predict, home, phantoms)
    assert len(list(out.iterdir())) == 2
