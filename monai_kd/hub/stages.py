"""Run a method that takes several trainings, one after the other, as its bundle lists them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["STAGES_FILE", "Stage", "read_stages", "run_stages"]

STAGES_FILE = "configs/stages.json"
_INPUTS = "inputs.json"  # what a stage was trained from, beside its record
_TAIL = 25  # lines of a failed stage's output that the message repeats


@dataclass(frozen=True)
class Stage:
    """One training of several.

    Attributes:
        name: of the stage and of its folder.
        configs: files below ``configs/``, overlays last.
        needs: ids of the configuration that take weights of earlier stages.
        gives: the id by which later stages take this one's weights; None for the last.
    """

    name: str
    configs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    gives: str | None = None


def read_stages(bundle: str | Path) -> list[Stage]:
    """Return the stages that a bundle lists in ``configs/stages.json``, in their order.

    Raises:
        FileNotFoundError: the bundle has no such file: its method is one training, or it is no bundle.
        ValueError: a stage lacks its configurations, or needs what no earlier stage gives; names the stage.
    """
    path = Path(bundle) / STAGES_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"'{path}' does not exist: this bundle has no stages; train it by python -m monai.bundle run"
        )
    stages: list[Stage] = []
    for name, given in json.loads(path.read_text(encoding="utf-8")).items():
        stage = Stage(name, tuple(given["configs"]), tuple(given.get("needs", ())), given.get("gives"))
        missing = [file for file in stage.configs if not (path.parent / file).is_file()]
        unknown = sorted(set(stage.needs) - {earlier.gives for earlier in stages})
        if missing or unknown or not stage.configs:
            raise ValueError(
                f"'{path}': stage '{name}' has no file {missing}, or needs {unknown}, which no earlier one gives"
            )
        stages.append(stage)
    return stages


def run_stages(
    bundle: str | Path, out: str = "runs/stages", only: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> list[Path]:
    """Train the stages of a bundle in their order, each in a process of its own, and return their run folders.

    A stage that is finished is passed over, one that was interrupted goes on with its last whole epoch. What has other
    inputs than before (weights of an earlier stage, configurations, overrides) is trained anew; its earlier run is kept
    in the folder's ``previous``.

    Args:
        bundle: the bundle's folder.
        out: folder of the runs, one below it for each stage; relative to the bundle.
        only: names of stages; the others must be finished where these need them. Empty takes all.
        overrides: ids of the configuration for every stage, e.g. ``{"dataset_dir": ..., "seed": 1}``.

    Raises:
        ValueError: an unknown stage.
        FileNotFoundError: a stage needs weights of one that has not been trained.
        RuntimeError: a stage failed; repeats the end of what it said. The next call goes on there.
    """
    root = Path(bundle)
    stages = read_stages(root)
    unknown = sorted(set(only) - {stage.name for stage in stages})
    if unknown:
        raise ValueError(f"unknown stages {unknown}; the bundle has {', '.join(stage.name for stage in stages)}")
    weights: dict[str, str] = {}
    folders = []
    for stage in stages:
        folder = f"{out}/{stage.name}"
        if not only or stage.name in only:
            _run(root, stage, folder, {name: _found(root, name, weights) for name in stage.needs}, overrides or {})
            folders.append(root / folder)
        if stage.gives:
            weights[stage.gives] = f"{folder}/model.pt"
    return folders


def _found(root: Path, name: str, weights: Mapping[str, str]) -> str:
    if not (root / weights[name]).is_file():
        raise FileNotFoundError(f"'{root / weights[name]}' does not exist ({name}): train the stage before")
    return weights[name]


def _run(root: Path, stage: Stage, folder: str, needs: Mapping[str, str], overrides: Mapping[str, Any]) -> None:
    inputs = _inputs(root, stage, needs, overrides)
    before, status = _read(root / folder / _INPUTS), _read(root / folder / "run.json").get("status")
    known = before == inputs
    if known and status == "finished":
        print(f"{stage.name}: finished already", flush=True)
        return
    if before and not known:
        changed = sorted(name for name in inputs.keys() | before.keys() if inputs.get(name) != before.get(name))
        print(f"{stage.name}: {', '.join(changed)} changed since it was trained; anew", flush=True)
    print(f"{stage.name}: training in {root / folder}", flush=True)
    given = {**overrides, **needs, "run_dir": folder, **({"resume": True} if known and status else {})}
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / _INPUTS).write_text(json.dumps(inputs, indent=1), encoding="utf-8")
    _execute(root, stage, given, root / f"{folder}.txt")


def _execute(root: Path, stage: Stage, given: Mapping[str, Any], log: Path) -> None:
    files = "[" + ",".join(f"'configs/{name}'" for name in stage.configs) + "]"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, "--bundle_root", "."]
    for name, value in given.items():
        command += [f"--{name}", "''" if value == "" else str(value)]
    with open(log, "wb") as file, subprocess.Popen(command, cwd=root, stdout=file, stderr=subprocess.PIPE) as process:
        for piece in iter(lambda: process.stderr.read1(), b""):  # type: ignore[union-attr]
            file.write(piece)
            file.flush()
            sys.stderr.write(piece.decode(errors="replace"))  # the progress bar
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:])
        raise RuntimeError(f"stage '{stage.name}' failed with code {process.returncode} ('{log}'):\n{tail}")


def _inputs(root: Path, stage: Stage, needs: Mapping[str, str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the result of a stage depends on."""
    files = {f"configs/{name}": root / "configs" / name for name in stage.configs}
    files |= {name: root / path for name, path in needs.items()}
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return {**hashes, **{name: str(value) for name, value in overrides.items()}}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
