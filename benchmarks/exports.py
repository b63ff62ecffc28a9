"""Every export of the released networks, measured: size, parity, Dice on the test cases, and time.

    MONAI_KD_DATA=DIR python benchmarks/exports.py [--task retina] [--threads 2] [--cases 2 --out DIR]

Each format is exported and checked on training cases, which also calibrate INT8; then it is scored against PyTorch in
float32 on the published test cases, both in turn on each case, with an equal number of CPU threads. Numbers go to
docs/results/exports.json, or docs/results/gkd/exports.json for the task of photographs, where the teacher stands beside
the student; `make tables` puts them into docs/how_to. With --cases (a trial) only so many test cases are scored and
nothing outside --out is written. Formats that need a GPU, or are no faster than PyTorch by design (Slicer's zip), are
left out. The teacher of photographs is the bundle's models/stages/teacher.pt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bundle_runs import REPOSITORY
from monai.bundle import ConfigParser

from monai_kd.export import export_bundle
from monai_kd.export.exporter import RECORD
from monai_kd.handlers.provenance import environment, write_json
from monai_kd.hub.compare import Comparison, compare_cases
from monai_kd.teachers import load_teacher
from monai_kd.visualize.exports import exports_table


@dataclass(frozen=True)
class Task:
    """The data of some bundles, below MONAI_KD_DATA, and where their results go, below docs/results."""

    data: str
    images: str
    split: str
    bundles: tuple[str, ...]
    results: str
    teacher: str = ""  # weights of the bundle's teacher_def, in its folder


TASKS = {
    "hippocampus": Task(
        "Task04_Hippocampus", "imagesTr", "hippocampus.json", ("teacher", "student", "distill-dsm"), "exports.json"
    ),
    "retina": Task("CHASE_DB1", "images", "retina.json", ("gkd",), "gkd/exports.json", "models/stages/teacher.pt"),
}
FORMATS = ("torchscript", "torch-export", "onnx", "openvino", "openvino-f16", "openvino-int8")


def short_split(split_file: Path, cases: int, folder: Path) -> Path:
    """Write a split with only so many test cases."""
    content = json.loads(split_file.read_text(encoding="utf-8"))
    path = folder / "split.json"
    path.write_text(json.dumps({**content, "test": content["test"][:cases]}), encoding="utf-8")
    return path


def measure(bundle: Path, out: Path, data: Path, images: str, split_file: Path, threads: int) -> dict[str, Any]:
    """Export a bundle's network in every format and score each file against PyTorch."""
    results: dict[str, Any] = {}
    exports = export_bundle(bundle, FORMATS, out, images=data / images)
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    for export in exports:
        weights = bundle / "models" / "model.pt"
        comparison = compare_cases(bundle, weights, export.path, data, split_file, "test", threads)
        results[export.format] = {**row(comparison), **record[export.format]}
        print(f"{bundle.name} {export.format}:\n{comparison.table()}\n", flush=True)
    return results


def teacher_folder(bundle: Path, weights: str, out: Path) -> Path:
    """Write the bundle folder of a teacher that the bundle's train.yaml defines."""
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / "train.yaml"))
    definition = {
        name: config.get_parsed_content(f"teacher_def::{name}") if str(value).startswith("@") else value
        for name, value in config["teacher_def"].items()
    }
    (out / "configs").mkdir(parents=True)
    (out / "models").mkdir()
    shutil.copyfile(bundle / weights, out / "models" / "model.pt")
    shutil.copyfile(bundle / "configs" / "metadata.json", out / "configs" / "metadata.json")
    write_json(out / "configs" / "infer.json", {"bundle_root": ".", "network_def": definition})
    load_teacher(out)  # now, and not after the exports
    return out


def measure_teacher(bundle: Path, folder: Path, data: Path, split_file: Path, threads: int) -> dict[str, Any]:
    """Score a teacher against the bundle's student, both in PyTorch."""
    comparison = compare_cases(bundle, bundle / "models" / "model.pt", folder, data, split_file, "test", threads)
    print(f"{bundle.name}, its teacher:\n{comparison.table()}\n", flush=True)
    return {**row(comparison), "size": comparison.b.size, "parameters": comparison.b.parameters}


def row(comparison: Comparison) -> dict[str, Any]:
    """Return what the page shows of a comparison."""
    interval = comparison.interval
    differences = comparison.differences
    names = comparison.class_names
    return {
        "n_cases": len(comparison.a.cases),
        "dice": {name: comparison.b.dice(name) for name in names},
        "pytorch_dice": {name: comparison.a.dice(name) for name in names},
        "dice_difference": sum(differences) / len(differences),
        "dice_difference_interval": list(interval) if interval else None,
        "label_agreement": comparison.label_agreement,
        "ms_per_case": 1000 * comparison.b.seconds_per_case,
        "pytorch_ms_per_case": 1000 * comparison.a.seconds_per_case,
        "times_faster": comparison.time_ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", type=int, default=0, help="a trial on so many test cases; 0 measures all")
    parser.add_argument("--task", default="hippocampus", choices=list(TASKS))
    parser.add_argument("--bundles", default="", help="of the task, comma separated; all if empty")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "results")
    arguments = parser.parse_args()
    if not os.environ.get("MONAI_KD_DATA"):
        parser.error("set MONAI_KD_DATA to the folder that holds the data and splits")
    wanted = arguments.bundles.split(",") if arguments.bundles else list(TASKS[arguments.task].bundles)
    if other := set(wanted) - set(TASKS[arguments.task].bundles):
        parser.error(f"no bundle of the task {arguments.task}: {', '.join(sorted(other))}")
    if arguments.cases and arguments.out.resolve() == REPOSITORY / "docs" / "results":
        parser.error("a trial needs an --out of its own")
    torch.set_num_threads(arguments.threads)
    root = Path(os.environ["MONAI_KD_DATA"])
    task = TASKS[arguments.task]
    data, split_file = root / task.data, root / "splits" / task.split
    results: dict[str, Any] = {**environment("cpu", REPOSITORY), "threads": arguments.threads, "bundles": {}}
    with tempfile.TemporaryDirectory() as work:
        if arguments.cases:
            split_file = short_split(split_file, arguments.cases, Path(work))
        for name in wanted:
            folder, out = REPOSITORY / "bundles" / name, Path(work) / name
            found = {}
            if task.teacher:
                teacher = teacher_folder(folder, task.teacher, out.with_name("its_teacher"))
                found["teacher"] = measure_teacher(folder, teacher, data, split_file, arguments.threads)
            found |= measure(folder, out, data, task.images, split_file, arguments.threads)
            results["bundles"][name] = found
    path = arguments.out / task.results
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, results)
    print(exports_table(path))


if __name__ == "__main__":
    main()
