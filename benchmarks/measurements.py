"""What the benchmarks share at their ends: the data they run on, and how a record is shown and kept."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_kd.data import make_phantoms
from monai_kd.handlers.provenance import write_json


def add_data_options(parser: argparse.ArgumentParser, out: Path) -> None:
    """Let a benchmark run on real data, or on phantoms whose record is kept apart."""
    parser.add_argument("--phantoms", action="store_true", help="made-up data; needs an --out of its own")
    parser.add_argument("--out", type=Path, default=out)


def check_data_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if not arguments.phantoms and not os.environ.get("MONAI_KD_DATA"):
        parser.error("set MONAI_KD_DATA to the folder that holds Task04_Hippocampus and splits, or give --phantoms")
    if arguments.phantoms and arguments.out == parser.get_default("out"):
        parser.error("--phantoms needs an --out of its own")


def data_overrides(phantoms: bool, folder: Path) -> dict[str, Any]:
    """Return the overrides that send a configuration to phantoms, made in the folder; none for the real data."""
    if not phantoms:
        return {}
    data = make_phantoms(folder / "phantoms", num_train=6, num_test=0, progress=False)
    return {"dataset_dir": str(data), "split_file": ""}


def publish(record: Mapping[str, Any], text: str, out: Path | None) -> None:
    """Print a record as text and write it, if it has a place."""
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, record)
        print(f"\nwritten: {out}")
