"""The network part of ``benchmarks/depth_shift.py``: a forward pass and a training step of whole networks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from depth_shift_trials import PASSES, Trial, Volume
from interleaved import check_same, interleave, medians, paired
from literal_depth_shift import LiteralUNet
from monai.networks.nets import BasicUNet

from monai_kd.networks.nets import DSMUNet

ALPHAS = (1.0, 0.5)
MAIN = "literal, alpha 0.5"  # of the paper's main model
# MONAI's BasicUNet with widths that are kind to vector units and bring it near the 4,288,208 parameters of the paper's
SPACE_WIDTHS = (32, 32, 64, 120, 192, 32)
FULL = Volume(24, 128)
QUICK = Volume(16, 32)


def make_trials(size: Volume, device: str) -> dict[str, tuple[Trial, str]]:
    """Return the networks, each with the name of the one that its time is compared with."""
    torch.manual_seed(0)
    volume = torch.randn(size.shape, device=device)
    trials: dict[str, tuple[Trial, str]] = {}
    for alpha in ALPHAS:
        reference = f"literal, alpha {alpha:g}"
        ours = {layout: _ours(alpha, "distill", layout) for layout in ("contiguous", "channels_last")}
        literal = LiteralUNet(1, 1, alpha)
        for network in ours.values():
            network.load_state_dict(ours["contiguous"].state_dict())
        literal.take_over(ours["contiguous"])
        trials[reference] = Trial(literal.to(device), volume), reference
        for layout, network in ours.items():
            trials[f"ours, alpha {alpha:g}, {layout}"] = Trial(network.to(device), volume), reference
    for layout in ("contiguous", "channels_last"):
        trials[f"2-D U-Net, {layout}"] = Trial(_ours(1.0, "none", layout).to(device), volume), MAIN
    for layout, memory in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last_3d)):
        space = BasicUNet(spatial_dims=3, in_channels=1, out_channels=1, features=SPACE_WIDTHS)
        space = space.to(device, memory_format=memory)
        trials[f"3-D U-Net, {layout}"] = Trial(space, volume.contiguous(memory_format=memory)), MAIN
    return trials


def _ours(alpha: float, exchange: str, layout: str) -> DSMUNet:
    return DSMUNet(1, 1, alpha=alpha, exchange=exchange, depth_axis=0, layout=layout)


def check(trials: dict[str, tuple[Trial, str]]) -> None:
    """Refuse a network of ours whose output or gradients are not the literal network's.

    In float64, where the order of sums in batch normalization does not show.
    """
    references = {reference for _, reference in trials.values()}
    compared = {
        name: Trial(copy.deepcopy(trial.network).double(), trial.volume.double())
        for name, (trial, _) in trials.items()
        if name in references or name.startswith("ours")
    }
    # each once, the output first: a gradient moves the running statistics
    results = {name: (trial.output(), trial.gradient()) for name, trial in compared.items()}
    for name, found in results.items():
        for what, own, expected in zip(("output", "gradient"), found, results[trials[name][1]], strict=True):
            check_same(f"{name}: the {what}", own, expected)


def measure_trials(trials: dict[str, tuple[Trial, str]], rounds: int, device: str) -> dict[str, Any]:
    """Check all networks and time them in turn."""
    check(trials)
    timers = {name: trial.timers(device) for name, (trial, _) in trials.items()}
    found: dict[str, Any] = {
        name: {"parameters": sum(value.numel() for value in trial.network.parameters()), "reference": reference}
        for name, (trial, reference) in trials.items()
    }
    for which in PASSES:
        times = interleave({name: each[which] for name, each in timers.items()}, rounds, f"networks, {which}")
        for name, (_, reference) in trials.items():
            found[name][which] = {**medians(times[name]), "speedup": paired(times[reference], times[name])}
    return found


def measure_networks(size: Volume, rounds: int, device: str) -> dict[str, Any]:
    return {
        "shape": list(size.shape),
        "space_network": f"MONAI BasicUNet, features {', '.join(map(str, SPACE_WIDTHS))}",
        "networks": measure_trials(make_trials(size, device), rounds, device),
    }
