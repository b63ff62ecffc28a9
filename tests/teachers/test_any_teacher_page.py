"""Every command of docs/how_to/any_teacher.md: each option line in a training of its own, in a bundle with phantoms."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from configparser import ConfigParser
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY, monai_bundle
from monai.networks.nets import UNet
from test_nnunet import add_fold, make_folder, make_plans

from monai_kd.__main__ import main
from monai_kd.teachers import load_report, load_teacher
from monai_kd.teachers.weights import file_sha256

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "how_to" / "any_teacher.md").read_text(encoding="utf-8")
CLASSES = ["background", "anterior", "posterior"]


def lines(language: str) -> list[str]:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


# ---- what stands in the working folder before a line is run, and what the record must say after it -------------------


def make_teacher(folder: Path, seed: int = 0, stated_outputs: int = 3, **stated: Any) -> Path:
    """A bundle with a tiny network of three classes; what is ``stated`` stands in its metadata. Returns the weights."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    network = {"spatial_dims": 3, "in_channels": 1, "channels": [4, 4], "strides": [2]}
    definition = {"network_def": {"_target_": "UNet", **network, "out_channels": stated_outputs}}
    (folder / "configs" / "infer.json").write_text(json.dumps(definition))
    classes = stated.pop("classes", CLASSES)
    formats = {
        "inputs": {"image": {"num_channels": 1, **stated}},
        "outputs": {"pred": {"channel_def": {str(number): name for number, name in enumerate(classes)}}},
    }
    (folder / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": formats}))
    torch.manual_seed(seed)
    path = folder / "models" / "model.pt"
    torch.save(UNet(out_channels=3, **network).state_dict(), path)
    return path


def digest(*files: Path) -> str:
    """The sha256 of a teacher's weights; of several that of their hashes."""
    hashes = [file_sha256(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def of_a_stated_difference(home: Path) -> str:
    path = make_teacher(home / "models" / "teacher", modality="CT", value_range=[-1000, 1000])
    refused(home, "was trained on CT, the student sees MR", accept=["intensity"])
    refused(home, "expects intensities in", accept=["modality"])
    return digest(path)


def of_an_ensemble(home: Path, second: list[str]) -> str:
    files = [make_teacher(home / "path" / "to" / "a"), make_teacher(home / "path" / "to" / "b", 1, classes=second)]
    return digest(*files)


def of_nnunet(home: Path) -> str:
    pytest.importorskip("dynamic_network_architectures", reason="pip install 'monai_kd[nnunet]'")
    root = home / "nnUNet_results" / "Dataset004_Hippocampus"
    folder = make_folder(root, make_plans(spacing=[1.0, 1.0, 1.0]))
    return digest(add_fold(folder, 0), add_fold(folder, 1))


def of_other_weights(home: Path) -> str:
    path = make_teacher(home / "models" / "teacher")
    other = make_teacher(home / "elsewhere", seed=1)
    assert digest(path) != digest(other)
    return digest(other.rename(path.with_name("other.pt")))


def of_an_override(home: Path) -> str:
    path = make_teacher(home / "models" / "teacher", stated_outputs=5)
    refused(home, "weights do not fit")
    return digest(path)


def refused(home: Path, match: str, **settings: Any) -> None:
    """Without all of the line the teacher does not fit."""
    metadata = json.loads((home / "configs" / "metadata.json").read_text())
    with pytest.raises((RuntimeError, ValueError), match=match):
        load_teacher(home / "models" / "teacher", class_names=CLASSES, student_metadata=metadata, **settings)


# how an option line begins: what it needs, and which weights then teach
OPTIONS: dict[str, Callable[[Path], str]] = {
    "--teacher::accept ": of_a_stated_difference,
    "--teacher_root \"['path/to/a', 'path/to/b']\"": partial(of_an_ensemble, second=CLASSES),
    "--teacher_root \"['path/to/a', {'bundle_root": partial(
        of_an_ensemble, second=["background", "posterior", "anterior"]
    ),
    "--teacher_root nnUNet_results/": of_nnunet,
    "--teacher::weights ": of_other_weights,
    "--teacher::overrides ": of_an_override,
}


# ---- the lines ------------------------------------------------------------------------------------------------------


def beginning_with(beginning: str) -> str:
    (line,) = [line for line in lines("bash") if line.startswith(beginning)]
    return line


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A copy of the student bundle without its teacher; the commands of the page are typed in it."""
    ignore = shutil.ignore_patterns("models", "runs", "eval", "docs")
    return Path(shutil.copytree(REPOSITORY / "bundles" / "student", tmp_path / "student", ignore=ignore))


def train(home: Path, phantoms: Path, line: str) -> dict[str, Any]:
    """One epoch with a line of the page; return what the record says of the run."""
    small = {"epochs": 1, "patch_size": "[16,16,16]", "roi_size": "[24,24,24]", "run_name": "mine", **TINY["student"]}
    words = ["run", "--config_file", "configs/train.yaml", "--bundle_root", "."]
    for name, value in {"dataset_dir": phantoms, "split_file": "''", **small}.items():
        words += [f"--{name}", str(value)]
    monai_bundle(home, *words, *shlex.split(line))
    record = json.loads((home / "runs" / "mine" / "run.json").read_text())
    assert record["status"] == "finished"
    return record


def test_every_line_of_the_page_has_a_case():
    kinds = {"--": len(OPTIONS), "python -m monai_kd teacher ": 1, "pip install ": 1}
    found = lines("bash")
    assert {kind: sum(line.startswith(kind) for line in found) for kind in kinds} == kinds
    assert len(found) == sum(kinds.values())


@pytest.mark.slow
@pytest.mark.parametrize("beginning", OPTIONS)
def test_an_option_line_trains_with_the_teacher_it_names(beginning: str, home: Path, phantoms: Path):
    expected = OPTIONS[beginning](home)
    teacher = train(home, phantoms, beginning_with(beginning))["teacher"]["networks"]["teacher"]
    assert teacher["weights_sha256"] == expected


@pytest.mark.slow
def test_the_teacher_command_makes_a_teacher_of_a_run(home: Path, phantoms: Path, monkeypatch, capsys):
    make_teacher(home / "models" / "teacher")
    record = train(home, phantoms, "")
    words = shlex.split(beginning_with("python -m monai_kd teacher"))
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["monai_kd", *words[3:]])
    main()
    assert "runs/mine/teacher" in capsys.readouterr().out
    report = load_report(load_teacher("runs/mine/teacher", class_names=CLASSES))
    assert report.sha256 == record["network"]["weights_sha256"]
    made = sorted(path.relative_to("runs/mine/teacher").as_posix() for path in Path("runs/mine/teacher").glob("*/*"))
    assert made == ["configs/infer.json", "configs/metadata.json", "models/model.pt"]


def test_the_extras_that_the_page_installs_exist():
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    named = re.findall(r"pip install 'monai_kd\[([\w,-]+)\]'", PAGE)
    assert set(named) == {"nnunet", "hub"}
    assert set(named) <= set(setup["options.extras_require"])
    (line,) = [line for line in lines("bash") if line.startswith("pip ")]
    assert shlex.split(line) == ["pip", "install", "monai_kd[nnunet]"]


def test_the_python_example_reports_what_was_loaded(tmp_path: Path, monkeypatch, capsys):
    path = make_teacher(tmp_path / "path" / "to" / "a_bundle")
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines("python")), {})
    printed = capsys.readouterr().out
    assert str(path) in printed
    assert file_sha256(path) in printed
