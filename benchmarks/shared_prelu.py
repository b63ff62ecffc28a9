"""What PReLU of one slope costs in training, torch's and ours: the layer, and a training step of ENet.

    python benchmarks/shared_prelu.py [--threads 1] [--rounds 15] [--out FILE]

Forward and backward in float32, both in turn; values and gradients are held against each other first. The record goes
to docs/results/shared_prelu.json.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bundle_runs import REPOSITORY
from interleaved import check_same, interleave, medians, paired, timer
from measurements import publish
from torch import Tensor, nn

from monai_kd.handlers.provenance import environment
from monai_kd.networks.layers import SharedPReLU
from monai_kd.networks.nets import ENet

TORCH, OURS = "torch.nn.PReLU", "SharedPReLU"
LAYER_SHAPE, STEP_SHAPE = (32, 16, 64, 64), (32, 1, 128, 128)


def with_torchs(network: nn.Module) -> nn.Module:
    """Return the network with torch's layer in the place of each of ours."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, SharedPReLU):
                setattr(module, name, nn.PReLU(init=float(child.weight)))
    return network


def make_enet() -> nn.Module:
    torch.manual_seed(0)
    return ENet(1, 2, dropout=(0.0, 0.0)).train()


def run_of(network: nn.Module, values: Tensor) -> Callable[[Any], Tensor]:
    """Return a forward and backward pass, whose result is all gradients."""

    def run(_: Any) -> Tensor:
        network.zero_grad()
        values.grad = None
        network(values).square().mean().backward()
        found = [tensor.grad for tensor in (values, *network.parameters())]
        return torch.cat([gradient.flatten() for gradient in found if gradient is not None])

    return run


def measure(what: str, networks: dict[str, nn.Module], values: Tensor, rounds: int) -> dict[str, Any]:
    runs = {name: run_of(network, values) for name, network in networks.items()}
    check_same(what, runs[OURS](None), runs[TORCH](None))
    times = interleave({name: timer(run, lambda: None, "cpu") for name, run in runs.items()}, rounds, what)
    found = {name: medians(each) for name, each in times.items()}
    return {"shape": list(values.shape), **found, "times_as_fast": paired(times[TORCH], times[OURS])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "results" / "shared_prelu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    layer, image = (torch.randn(shape, generator=generator) for shape in (LAYER_SHAPE, STEP_SHAPE))
    record = {
        **environment("cpu", REPOSITORY),
        "rounds": arguments.rounds,
        "load_before": os.getloadavg()[0],
        "layer": measure(
            "layer", {TORCH: nn.PReLU(), OURS: SharedPReLU()}, layer.requires_grad_(True), arguments.rounds
        ),
        "step": measure("step", {TORCH: with_torchs(make_enet()), OURS: make_enet()}, image, arguments.rounds),
    }
    lines = [
        f"{part}: {found[TORCH]['wall_ms']:.1f} ms with torch's, {found[OURS]['wall_ms']:.1f} ms with ours, "
        f"{found['times_as_fast']['wall']['median']:.2f} times as fast"
        for part in ("layer", "step")
        if (found := record[part])
    ]
    publish(record, "\n".join(lines), arguments.out)


if __name__ == "__main__":
    main()
