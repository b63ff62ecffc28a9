"""What an exchange between slices is worth where a slice alone does not tell: a made-up task.

    python benchmarks/depth_learning.py [--seeds 3]

A tube drifts through the slices among blobs that look the same in each of them (depth_learning_task.py). The same
small U-Net is trained without an exchange, with a plain shift and with the learned one; Dice on 8 other volumes goes to
docs/results/depth_learning.json, one of them to docs/results/depth_learning.png. About 2 minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bundle_runs import REPOSITORY
from depth_learning_task import dice, held_out_volumes, predicted, trained
from measurements import publish
from torch import Tensor
from tqdm import tqdm

from monai_kd.handlers.provenance import environment
from monai_kd.visualize import save_overlay
from monai_kd.visualize.depth_learning import depth_learning_markdown

EXCHANGES = ("none", "plain", "distill")


def draw(path: Path, image: Tensor, label: Tensor, found: dict[str, Tensor]) -> None:
    """Draw the first volume: image, truth, and what each network found, errors filled."""
    predictions = {f"exchange: {name}": one[0, 0].numpy() for name, one in found.items()}
    save_overlay(path, image[0, 0].numpy(), label[0, 0].numpy(), predictions, (1.0, 1.0, 1.0), {1: "tube"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "results" / "depth_learning.json")
    arguments = parser.parse_args()
    image, label = held_out_volumes()
    scores: dict[str, list[float]] = {name: [] for name in EXCHANGES}
    first: dict[str, Tensor] = {}
    for seed, name in tqdm([(seed, name) for seed in range(arguments.seeds) for name in EXCHANGES], unit="training"):
        found = predicted(trained(name, seed), image)
        scores[name].append(dice(found, label))
        first.setdefault(name, found)
    record: dict[str, Any] = {**environment("cpu", REPOSITORY), "volumes": len(image), "dice": scores}
    publish(record, depth_learning_markdown(record), arguments.out)
    draw(arguments.out.with_suffix(".png"), image, label, first)


if __name__ == "__main__":
    main()
