"""Run a method that takes several trainings, one after the other, as its bundle lists them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from monai_kd.handlers.provenance import file_sha256, write_json
from monai_kd.handlers.run_dir import LOCK_FILE, held_locks, lock_folder, read_record
from monai_kd.hub.stage_inputs import stage_inputs, stage_overrides
from monai_kd.hub.stage_list import STAGES_FILE, Stage, read_stages

__all__ = ["STAGES_FILE", "Stage", "read_stages", "run_stages"]

_INPUTS, _WEIGHTS = "inputs.json", "model.pt"  # what a stage was trained from, and what it gave
_TAIL = 25  # lines of a failed stage's output that the message repeats
_CAUSE = "Cause: "  # how handlers.check_overrides lets a failed training end
_RESUME_REFUSED = "--resume True: "  # how every refusal to go on begins


@dataclass(frozen=True)
class _Place:
    """Where one stage lies: its folder holds finished runs only, so that a failed call leaves it as it was."""

    root: Path
    out: str
    name: str

    @property
    def folder(self) -> Path:
        return self.root / self.out / self.name

    @property
    def begun_dir(self) -> str:  # as the training is told, relative to the bundle
        return Path(self.out, "unfinished", self.name).as_posix()

    @property
    def begun(self) -> Path:
        return self.root / self.begun_dir

    @property
    def weights_path(self) -> str:  # likewise
        return Path(self.out, self.name, _WEIGHTS).as_posix()

    @property
    def log(self) -> Path:
        return self.root / self.out / f"{self.name}.txt"


def run_stages(
    bundle: str | Path,
    out: str = "runs/stages",
    only: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    overlays: Sequence[str] = (),
) -> list[Path]:
    """Train the stages of a bundle in their order, each in a process of its own, and return their run folders.

    A stage that is finished (its record says so, and its weights have the record's sha256) is passed over. One that
    was interrupted goes on with its last whole epoch, unless the training refuses to, as on another device. What has
    other inputs than before is trained anew; the earlier run is kept in ``<out>/previous``. A run lies in
    ``<out>/unfinished`` until it is finished, so a call that fails costs no earlier result.

    Inputs are the parsed configurations, overrides, weights of earlier stages, the split file, names and sizes of the
    data's files and the value of ``MONAI_KD_DATA``; not device, ``num_workers`` and where things lie. Not seen are
    contents of images and labels, code, versions, and files that a configuration names itself.

    Args:
        bundle: the bundle's folder.
        out: folder of the runs, one below it for each stage; relative to the bundle. ``<stage>.txt`` there has the
            output of all tries.
        only: names of stages; the others must be finished where these need them, whatever their inputs. Empty takes
            all.
        overrides: ids of the configuration for every stage, e.g. ``{"dataset_dir": ..., "seed": 1}``. They reach the
            training as text that fire parses: ``"1"`` is a number, ``"None"`` is None, ``""`` stays a text. Relative
            paths are seen from the bundle's folder, where the training runs; one that exists in the current folder
            alone is made absolute.
        overlays: configuration files for every stage, behind its first and before its own; other data, say.

    Raises:
        ValueError: an unknown stage, an override that the stages set themselves, an unreadable configuration.
        FileNotFoundError: a stage needs weights of one that is not finished.
        FileExistsError: another call works in ``out``.
        RuntimeError: a stage failed; repeats the end of what it said. The next call goes on there.
    """
    root = Path(bundle)
    stages = read_stages(root, overlays)
    unknown = sorted(set(only) - {stage.name for stage in stages})
    if unknown:
        raise ValueError(f"unknown stages {unknown}; the bundle has {', '.join(stage.name for stage in stages)}")
    handed_on = [stage.gives for stage in stages if stage.gives]
    given = stage_overrides(root, overrides or {}, handed_on)
    places = {stage.name: _Place(root, out, stage.name) for stage in stages}
    with _alone(root / out):
        needs = _needs(stages, places, only)
        for name, found in needs.items():
            _run(places[name], next(stage for stage in stages if stage.name == name), found, given)
    return [places[name].folder for name in needs]


def _needs(stages: Sequence[Stage], places: Mapping[str, _Place], only: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return what each wanted stage takes, id to weights; those of other stages must be there before anything runs."""
    givers: dict[str, str] = {}
    needs: dict[str, dict[str, str]] = {}
    for stage in stages:
        if not only or stage.name in only:
            for name in stage.needs:
                problem = "" if givers[name] in needs else _problem(places[givers[name]].folder)
                if problem:
                    raise FileNotFoundError(
                        f"stage '{stage.name}' needs {name} of stage '{givers[name]}', and {problem}: train that before"
                    )
            needs[stage.name] = {name: places[givers[name]].weights_path for name in stage.needs}
        if stage.gives:
            givers[stage.gives] = stage.name
    return needs


def _run(place: _Place, stage: Stage, needs: Mapping[str, str], overrides: Mapping[str, Any]) -> None:
    try:
        inputs = stage_inputs(place.root, stage.configs, needs, overrides)
    except ValueError as error:
        raise ValueError(f"stage '{stage.name}': {error}") from error
    problem = _problem(place.folder) or _changes(place.folder, inputs)
    if not problem:
        print(f"{stage.name}: finished already", flush=True)
        return
    if place.folder.exists():
        print(f"{stage.name}: {problem}; anew", flush=True)
    if _problem(place.begun) or _changes(place.begun, inputs):  # else the call that trained it died just then
        _train(place, stage, inputs, {**overrides, **needs, "run_dir": place.begun_dir})
    if place.folder.exists():
        with _alone(place.folder):
            _set_aside(place, place.folder)
    os.replace(place.begun, place.folder)


def _train(place: _Place, stage: Stage, inputs: Mapping[str, str], given: Mapping[str, Any]) -> None:
    """Train in the folder of the unfinished run, from where that stopped if it had these inputs."""
    resume = _open(place, inputs)
    print(f"{stage.name}: {'going on' if resume else 'training'} in {place.begun}", flush=True)
    try:
        _execute(place.root, stage, {**given, **({"resume": True} if resume else {})}, place.log)
    except RuntimeError as error:
        if not resume or _RESUME_REFUSED not in str(error):
            raise
        why = str(error).rpartition(_RESUME_REFUSED)[2].partition("\n")[0]
        print(f"{stage.name}: cannot go on ({why}); anew", flush=True)
        _open(place, inputs, anew=True)
        _execute(place.root, stage, given, place.log)
    if problem := _problem(place.begun):
        raise RuntimeError(f"stage '{stage.name}' ended without an error, but {problem} ('{place.log}')")


def _open(place: _Place, inputs: Mapping[str, str], anew: bool = False) -> bool:
    """Make the folder of the unfinished run; tell whether it holds a run with these inputs that can go on."""
    place.begun.mkdir(parents=True, exist_ok=True)
    with _alone(place.begun):  # a training may outlive the call that started it
        status = read_record(place.begun).get("status")
        changes = _changes(place.begun, inputs)
        if status and (anew or changes or status == "finished"):
            if not anew:
                print(f"{place.name}: {changes or _problem(place.begun)}; what was begun is kept aside", flush=True)
            _set_aside(place, place.begun)
            status = None
        write_json(place.begun / _INPUTS, inputs)
    return bool(status)


def _set_aside(place: _Place, folder: Path) -> None:
    aside = place.root / place.out / "previous" / f"{place.name}-{datetime.now():%Y%m%d-%H%M%S-%f}"
    aside.parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder, aside)


def _problem(folder: Path) -> str:
    """Say why a folder holds no finished run with its own weights, or return an empty text."""
    record, weights = read_record(folder), folder / _WEIGHTS
    if record.get("status") != "finished":
        found = f"says '{record.get('status')}'" if record else "is missing or torn"
        return f"its run is not finished ('{folder / 'run.json'}' {found})"
    if not weights.is_file():
        return f"its weights are missing ('{weights}')"
    if file_sha256(weights) != record.get("network", {}).get("weights_sha256"):
        return f"its weights are not those of its record ('{weights}' has another sha256)"
    return ""


def _changes(folder: Path, inputs: Mapping[str, str]) -> str:
    """Say which inputs differ from those that a folder's run had, or return an empty text."""
    try:
        before = json.loads((folder / _INPUTS).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return f"what it was trained from is not known (no '{folder / _INPUTS}')"
    changed = sorted(name for name in inputs.keys() | before.keys() if inputs.get(name) != before.get(name))
    return f"{', '.join(changed)} changed since it was trained" if changed else ""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder against other processes, and release it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / LOCK_FILE).resolve()
    try:
        lock_folder(folder)
    except FileExistsError:
        raise FileExistsError(f"another process works in '{folder}'; wait for it or choose another --out") from None
    try:
        yield
    finally:
        if path in held_locks:
            held_locks.pop(path).close()


def _execute(root: Path, stage: Stage, given: Mapping[str, Any], log: Path) -> None:
    files = "[" + ",".join(f"'configs/{name}'" for name in stage.configs) + "]"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, "--bundle_root", "."]
    for name, value in given.items():
        command += [f"--{name}", "''" if value == "" else str(value)]
    with open(log, "ab") as file:
        file.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S} {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        with subprocess.Popen(command, cwd=root, stdout=file, stderr=subprocess.PIPE) as process:
            for piece in iter(lambda: process.stderr.read1(), b""):  # type: ignore[union-attr]
                file.write(piece)
                file.flush()
                sys.stderr.write(piece.decode(errors="replace"))  # the progress bar
    if process.returncode:
        said = log.read_bytes()[start:].decode(errors="replace").splitlines()
        causes = [line.removeprefix(_CAUSE) for line in said if line.startswith(_CAUSE)]
        why = f" {causes[-1]}" if causes else "\n" + "\n".join(said[-_TAIL:])
        raise RuntimeError(f"stage '{stage.name}' failed with code {process.returncode} ('{log}'):{why}")
