"""What the Distill Depth Shift Module costs, beside its formula written down literally and beside plain convolutions.

    python benchmarks/depth_shift.py [--threads 2] [--rounds 15] [--device cpu] [--only block,network,variants]
    python benchmarks/depth_shift.py --quick

- block: one exchange, in the literal form (benchmarks/literal_depth_shift.py), ours in four memory layouts, and plain
  2-D and 3-D convolutions of the same width, forward and forward + backward;
- network: 24 slices of 128 x 128 through the literal U-Net, ours, a 2-D U-Net without exchange and a 3-D U-Net, a
  forward pass and a training step;
- variants: our network with bfloat16, torch.compile, memory that is not given back, folded batch norms, and a volume of
  145 slices in chunks or slice by slice, each with its error against float32.

Ours is checked to equal the literal form, in values and gradients, before anything is timed. All run in turn (a, b, c,
..., a, b, c, ...), so that a drift of the machine's speed hits all; a ratio is taken round by round, and its median and
10th to 90th percentile are kept. Each is timed on the clock and by the CPU time of its threads: on a busy machine only
the latter tells much, and only with OMP_WAIT_POLICY=PASSIVE in the environment, or threads that wait would count.

The aims for one exchange, as geometric means over the sizes: twice as fast as the literal form in forward, 1.8 times in
forward + backward, and at most 1.15 times a 2-D convolution in the same layout where all channels take part.

The whole of it takes about half an hour. The record goes to docs/results/depth_shift.json (depth_shift_cuda.json), from
which the tables in the documents are made. --quick takes tiny sizes; with it, or with --only, nothing is written unless
--out is given.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import depth_shift_block as block
import depth_shift_networks as networks
import depth_shift_variants as variants
import torch
from bundle_runs import REPOSITORY
from measurements import publish

from monai_kd.handlers.provenance import environment
from monai_kd.visualize.depth_shift_costs import depth_shift_markdown

RESULTS = REPOSITORY / "docs" / "results"


def measure_blocks(quick: bool, rounds: int, device: str) -> list[dict[str, Any]]:
    return [block.measure_block(size, rounds, device) for size in (block.QUICK if quick else block.SIZES)]


def measure_networks(quick: bool, rounds: int, device: str) -> dict[str, Any]:
    return networks.measure_networks(networks.QUICK if quick else networks.FULL, rounds, device)


def measure_variants(quick: bool, rounds: int, device: str) -> list[dict[str, Any]]:
    return variants.measure_variants(variants.QUICK if quick else variants.FULL, rounds, device)


PARTS: dict[str, Callable[[bool, int, str], Any]] = {
    "block": measure_blocks,
    "network": measure_networks,
    "variants": measure_variants,
}


def parts(text: str) -> list[str]:
    """Read --only."""
    named = text.split(",")
    unknown = [name for name in named if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    return [name for name in PARTS if name in named]


def measure(chosen: list[str], quick: bool, rounds: int, device: str) -> dict[str, Any]:
    """Return the record."""
    settings = {
        "rounds": rounds,
        "quick": quick,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }
    found = {name: PARTS[name](quick, rounds, device) for name in chosen}
    return {**environment(device, REPOSITORY), **settings, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, help="timed runs of each; 15, or 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a trial of the machinery")
    parser.add_argument("--only", type=parts, default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="the record; by default in docs/results")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 15)
    kind = torch.device(arguments.device).type
    out = arguments.out
    if out is None and not arguments.quick and arguments.only == list(PARTS):
        out = RESULTS / ("depth_shift.json" if kind == "cpu" else f"depth_shift_{kind}.json")
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is meant
    record = measure(arguments.only, arguments.quick, rounds, arguments.device)
    publish(record, depth_shift_markdown(record), out)


if __name__ == "__main__":
    main()
