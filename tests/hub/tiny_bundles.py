"""A copy of the student bundle with a tiny network and a tiny teacher, whole in every respect."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_kd.handlers.provenance import file_sha256
from monai_kd.hub.checksums import write_checksums
from monai_kd.hub.shared_blocks import infer_json

__all__ = ["OVERLAYS", "change_json", "command", "replace", "tiny_student"]

OVERLAYS = ("cwd.yaml", "kd.yaml")  # of the distillers: each check of a bundle evaluates every one


def tiny_student(repository: Path, root: Path) -> Path:
    """Write a student bundle whose networks are tiny and random; its name is the folder's."""
    ignore = shutil.ignore_patterns("runs", "eval", "previous", "exported", "*.pt", "*.ts", "checksums.sha256")
    shutil.copytree(repository / "bundles" / "student", root, ignore=ignore)
    for path in (root / "configs" / "distillers").iterdir():
        if path.name not in OVERLAYS:
            path.unlink()
    for name in ("train.yaml", "inference.yaml"):
        replace(root / "configs" / name, "channels: [16, 32, 64]", "channels: [4, 4, 8]")
    (root / "configs" / "infer.json").write_text(infer_json(root))
    change_json(root / "configs" / "metadata.json", name=root.name)
    teacher = root / "models" / "teacher"
    definition = json.loads((teacher / "configs" / "infer.json").read_text())
    definition["network_def"]["filters"] = [2, 2, 2, 2]
    (teacher / "configs" / "infer.json").write_text(json.dumps(definition))
    torch.manual_seed(0)
    for folder in (root, teacher):
        (folder / "models").mkdir(exist_ok=True)
        network = ConfigParser(json.loads((folder / "configs" / "infer.json").read_text()))
        torch.save(network.get_parsed_content("network_def").state_dict(), folder / "models" / "model.pt")
    change_json(teacher / "configs" / "metadata.json", provenance=named(teacher))
    record = {"kind": "training", "status": "finished", "best_metric": 0.9, **named(root)}
    (root / "models" / "model.json").write_text(json.dumps(record))
    write_checksums(root)
    return root


def named(folder: Path) -> dict[str, Any]:
    return {"network": {"weights_sha256": file_sha256(folder / "models" / "model.pt")}}


def change_json(path: Path, change: Callable[[dict[str, Any]], Any] | None = None, **values: Any) -> None:
    content = {**json.loads(path.read_text()), **values}
    if change is not None:
        change(content)
    path.write_text(json.dumps(content, indent=1))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path}: '{old}' stands there {text.count(old)} times"
    path.write_text(text.replace(old, new))


def command(*words: object, succeed: bool = True) -> subprocess.CompletedProcess[str]:
    """``python -m monai_kd WORDS`` in a process of its own."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "monai_kd", *map(str, words)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=1800)
    assert (done.returncode == 0) == succeed, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done
