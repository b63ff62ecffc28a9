"""Every export of the released networks, measured: size, parity, Dice on the test cases, and time.

    MONAI_KD_DATA=DIR python benchmarks/exports.py [--threads 2] [--cases 2 --out DIR]

Each format is exported and checked on training cases, which also calibrate INT8; then it is scored against PyTorch in
float32 on the published test cases, both in turn on each case, with an equal number of CPU threads. Numbers go to
docs/results/exports.json; `make tables` puts them into docs/how_to/openvino.md. With --cases (a trial) only so many
test cases are scored and nothing outside --out is written. Formats that need a GPU, or are no faster than PyTorch by
design (Slicer's zip), are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from bundle_runs import REPOSITORY

from monai_kd.export import export_bundle
from monai_kd.export.exporter import RECORD
from monai_kd.handlers.provenance import environment, write_json
from monai_kd.hub.compare import Comparison, compare_cases
from monai_kd.visualize.exports import exports_table

FORMATS = ("torchscript", "torch-export", "onnx", "openvino", "openvino-f16", "openvino-int8")


def short_split(split_file: Path, cases: int, folder: Path) -> Path:
    """Write a split with only so many test cases."""
    content = json.loads(split_file.read_text(encoding="utf-8"))
    path = folder / "split.json"
    path.write_text(json.dumps({**content, "test": content["test"][:cases]}), encoding="utf-8")
    return path


def measure(bundle: Path, out: Path, data: Path, split_file: Path, threads: int) -> dict[str, Any]:
    """Export a bundle's network in every format and score each file against PyTorch."""
    results: dict[str, Any] = {}
    exports = export_bundle(bundle, FORMATS, out, images=data / "imagesTr")
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    for export in exports:
        weights = bundle / "models" / "model.pt"
        comparison = compare_cases(bundle, weights, export.path, data, split_file, "test", threads)
        results[export.format] = {**row(comparison), **record[export.format]}
        print(f"{bundle.name} {export.format}:\n{comparison.table()}\n", flush=True)
    return results


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
    parser.add_argument("--bundles", default="teacher,student,distill-dsm")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "results")
    arguments = parser.parse_args()
    if not os.environ.get("MONAI_KD_DATA"):
        parser.error("set MONAI_KD_DATA to the folder that holds Task04_Hippocampus and splits")
    if arguments.cases and arguments.out.resolve() == REPOSITORY / "docs" / "results":
        parser.error("a trial needs an --out of its own")
    torch.set_num_threads(arguments.threads)
    root = Path(os.environ["MONAI_KD_DATA"])
    data, split_file = root / "Task04_Hippocampus", root / "splits" / "hippocampus.json"
    results: dict[str, Any] = {**environment("cpu", REPOSITORY), "threads": arguments.threads, "bundles": {}}
    with tempfile.TemporaryDirectory() as work:
        if arguments.cases:
            split_file = short_split(split_file, arguments.cases, Path(work))
        for name in arguments.bundles.split(","):
            folder = REPOSITORY / "bundles" / name
            results["bundles"][name] = measure(folder, Path(work) / name, data, split_file, arguments.threads)
    write_json(arguments.out / "exports.json", results)
    print(exports_table(arguments.out / "exports.json"))


if __name__ == "__main__":
    main()
