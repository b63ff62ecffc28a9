"""What the benchmarks share: the data they run on, memory at its peak, and how a record is shown and kept."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

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


def resident_mb(key: str) -> float:
    """Return VmRSS, the resident size, or VmHWM, the largest so far, in MB (10**6 bytes). Needs Linux."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {key}")


def reset_peak() -> None:
    """Let VmHWM begin anew. Needs Linux."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def allocated_peak(run: Callable[[], Any]) -> int:
    """Return the most bytes that a call holds at once beyond what was there, from the record of torch's allocator.

    Of a CPU. Unlike the resident size it does not depend on when memory is given back to the system.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def publish(record: Mapping[str, Any], text: str, out: Path | None) -> None:
    """Print a record as text and write it, if it has a place."""
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, record)
        print(f"\nwritten: {out}")


def matrix_gflops(edge: int = 2048) -> float:
    """Return the best rate of a float32 matrix product, 10**9 operations per second."""
    one, best = torch.randn(edge, edge), 0.0
    for _ in range(5):
        start = time.perf_counter()
        one @ one
        best = max(best, 2 * edge**3 / (time.perf_counter() - start) / 1e9)
    return best
