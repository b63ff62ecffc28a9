"""Memory and time of a whole pass, of chunks and of a stream as volumes get deeper.

    python benchmarks/depth_memory.py [--threads 2] [--rounds 3]
    python benchmarks/depth_memory.py --quick --out FILE

Each measurement runs in a process of its own: DSMUNet(1, 2) in float32 on slices of 128 x 128 along the last axis. The
memory is the largest resident size during inference less that just before, when network and libraries are loaded and
the volume of the whole pass and of the chunks lies in memory; their output counts. The stream makes its slices one by
one and keeps none. Least and median over the rounds go to docs/results/depth_memory.json. Needs Linux, whose
/proc can reset the high water mark of a process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measurements import publish, reset_peak, resident_mb
from torch import Tensor
from tqdm import tqdm

from monai_kd.handlers.provenance import environment, network_facts
from monai_kd.inferers import ChunkedDepthInferer, StreamingDepthInferer
from monai_kd.networks.nets import DSMUNet, SliceStack
from monai_kd.visualize.depth_memory import depth_memory_markdown

REPOSITORY = Path(__file__).resolve().parents[1]
CHUNK = 32


def made_slices(depth: int, size: int) -> Iterator[Tensor]:
    """Yield slices one by one, as an acquisition does."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(depth):
        yield torch.randn(1, 1, size, size, generator=generator)


def made_volume(depth: int, size: int) -> Tensor:
    volume = torch.empty(1, 1, size, size, depth)
    for index, one in enumerate(made_slices(depth, size)):
        volume[..., index] = one
    return volume


def whole(network: SliceStack, depth: int, size: int) -> Callable[[], Any]:
    volume = made_volume(depth, size)
    return lambda: network(volume)


def chunked(network: SliceStack, depth: int, size: int) -> Callable[[], Any]:
    volume, inferer = made_volume(depth, size), ChunkedDepthInferer(CHUNK)
    return lambda: inferer(volume, network)


def streamed(network: SliceStack, depth: int, size: int) -> Callable[[], Any]:
    def consume() -> None:
        for _ in StreamingDepthInferer().stream(network, made_slices(depth, size)):
            pass

    return consume


class Opaque(DSMUNet):
    """The same network as one that is no generator."""

    @property
    def slice_steps(self) -> Any:  # type: ignore[override]
        raise AttributeError("slice_steps")


def streamed_in_threads(_: SliceStack, depth: int, size: int) -> Callable[[], Any]:
    return streamed(Opaque(1, 2).eval(), depth, size)


WAYS = {"whole": whole, "chunked": chunked, "streamed": streamed, "streamed_in_threads": streamed_in_threads}


def measure(way: str, depth: int, size: int, threads: int) -> dict[str, float]:
    """Run one inference in this process; seconds per slice and MB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = DSMUNet(1, 2).eval()
    with torch.no_grad():
        run = WAYS[way](network, depth, size)
        network(torch.zeros(1, 1, 16, 16, 1))  # loads what torch loads at first use
        reset_peak()
        before, start = resident_mb("VmRSS"), time.perf_counter()
        run()
        seconds = time.perf_counter() - start
    return {"peak_mb": resident_mb("VmHWM") - before, "seconds_per_slice": seconds / depth}


def in_fresh_process(*arguments: Any) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    if found.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {found.returncode}:\n{found.stderr}")
    numbers: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return numbers


def summary(found: list[dict[str, float]]) -> dict[str, float]:
    return {
        f"{word}_{key}": pick([one[key] for one in found])
        for key in ("peak_mb", "seconds_per_slice")
        for word, pick in (("median", statistics.median), ("least", min))
    }


def measure_all(depths: list[int], size: int, threads: int, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Measure all ways at all depths, in turn, so that a drift of the machine's speed hits all."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {(way, depth): [] for way in WAYS for depth in depths}
    for way, depth in tqdm(list(found) * rounds, unit="process"):
        found[way, depth].append(in_fresh_process(way, depth, size, threads))
    return {way: {str(depth): summary(found[way, depth]) for depth in depths} for way in WAYS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="shallow and small; needs an --out of its own")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "results" / "depth_memory.json")
    parser.add_argument("--one", nargs=4, metavar=("WAY", "DEPTH", "SIZE", "THREADS"), help="measure in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], *map(int, arguments.one[1:]))))
        return
    if not Path("/proc/self/clear_refs").exists():
        parser.error("needs Linux: /proc/self/clear_refs resets the high water mark of a process")
    if arguments.quick and arguments.out == parser.get_default("out"):
        parser.error("--quick needs an --out of its own")
    depths, size = ([16, 64], 64) if arguments.quick else ([64, 256, 1024], 128)
    torch.set_num_threads(arguments.threads)
    ways = measure_all(depths, size, arguments.threads, arguments.rounds)
    first, last = str(depths[0]), str(depths[-1])
    record = {
        **environment("cpu", REPOSITORY),
        "network": network_facts(DSMUNet(1, 2)),
        "slice": [size, size],
        "chunk": CHUNK,
        "rounds": arguments.rounds,
        "ways": ways,
        "memory_ratio": {way: ways[way][last]["median_peak_mb"] / ways[way][first]["median_peak_mb"] for way in WAYS},
    }
    publish(record, depth_memory_markdown(record), arguments.out)


if __name__ == "__main__":
    main()
