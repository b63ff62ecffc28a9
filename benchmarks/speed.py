"""How fast the released networks are, against the floor of their arithmetic: ``make bench``.

For teacher and student: parameters, MACs and time of one sliding-window inference on a hippocampus-sized volume, in
float32 and bfloat16, and of one training step. Runs are interleaved (teacher, student, teacher, ...) so that a drift of
the machine's speed hits both; the ratio is taken pair by pair. Nothing here is a test: figures go to the screen and to
docs/results/speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bundle_runs import REPOSITORY
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_kd.handlers.provenance import environment, network_facts
from monai_kd.inferers import AutocastInferer

VOLUME = (36, 50, 36)  # voxels, about the mean of Task04_Hippocampus
PATCH = (40, 56, 40)  # the student's training patch


def load_network(bundle: str) -> nn.Module:
    """Build a bundle's network with random weights: speed does not depend on them."""
    parser = ConfigParser()
    parser.read_config(str(REPOSITORY / "bundles" / bundle / "configs" / "inference.yaml"))
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, nn.Module)
    return network


def inference(network: nn.Module, bfloat16: bool) -> Callable[[], Any]:
    """Return one full-volume inference as the bundles do it."""
    window = SlidingWindowInferer(
        (40, 56, 40), sw_batch_size=1, overlap=0.25, mode="gaussian", padding_mode="replicate"
    )
    inferer = AutocastInferer(window, enabled=bfloat16)
    image = torch.randn(1, 1, *VOLUME)

    def run() -> Any:
        with torch.inference_mode():
            return inferer(image, network.eval())

    return run


def training_step(network: nn.Module) -> Callable[[], Any]:
    """Return one optimizer step on a batch of 2 patches, bfloat16 forward."""
    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    optimizer = torch.optim.AdamW(network.parameters())
    image, label = torch.randn(2, 1, *PATCH), torch.randint(0, 3, (2, 1, *PATCH)).float()

    def run() -> None:
        network.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(image)
        loss(logits.float(), label).backward()
        optimizer.step()

    return run


def interleaved(jobs: dict[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Time the jobs in turn, after one warm-up each; seconds."""
    for job in jobs.values():
        job()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - start)
    return times


def giga_macs(network: nn.Module) -> float:
    """Return the multiply-accumulates of one window of the sliding-window inference, in 10**9."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(torch.randn(1, 1, 40, 56, 40))
    return counter.get_total_flops() / 2 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "results" / "speed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    networks = {name: load_network(name) for name in ("teacher", "student")}
    jobs = {
        "inference float32": {name: inference(network, False) for name, network in networks.items()},
        "inference bfloat16": {name: inference(network, True) for name, network in networks.items()},
        "training step bfloat16": {name: training_step(network) for name, network in networks.items()},
    }
    results: dict[str, Any] = {
        **environment("cpu", REPOSITORY),
        "volume": VOLUME,
        "runs": arguments.runs,
        "networks": {n: {**network_facts(net), "giga_macs_per_window": giga_macs(net)} for n, net in networks.items()},
        "ms": {},
    }
    print(f"{'':<24}{'teacher ms':>12}{'student ms':>12}{'ratio':>8}{'min':>7}{'max':>7}")
    for title, pair in jobs.items():
        times = interleaved(pair, arguments.runs)
        ratios = [t / s for t, s in zip(times["teacher"], times["student"], strict=True)]
        medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
        results["ms"][title] = {
            **medians,
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
        print(
            f"{title:<24}{medians['teacher']:>12.1f}{medians['student']:>12.1f}{statistics.median(ratios):>8.1f}"
            f"{min(ratios):>7.1f}{max(ratios):>7.1f}"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
