"""The network part of ``benchmarks/depth_shift.py``: a forward pass and a training step of whole networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from interleaved import Timer, check_same, interleave, medians, paired, timer
from literal_depth_shift import LiteralUNet, flat_gradient
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from monai_kd.networks.nets import DSMUNet

PASSES = ("forward", "step")
ALPHAS = (1.0, 0.5)
MAIN = "literal, alpha 0.5"  # of the paper's main model
# MONAI's BasicUNet with widths that are kind to vector units and bring it near the 4,288,208 parameters of the paper's
SPACE_WIDTHS = (32, 32, 64, 120, 192, 32)


class Volume(NamedTuple):
    """Slices and their voxels in plane, of one case with one channel."""

    slices: int
    in_plane: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 1, self.slices, self.in_plane, self.in_plane)


FULL = Volume(24, 128)
QUICK = Volume(16, 32)


class Trial:
    """A network with an input and a target: what is timed and compared.

    Args:
        network: whose parameters are trained.
        volume: its input; the target is of the same shape.
        call: how it is called, e.g. compiled; None calls it as it is.
    """

    def __init__(self, network: nn.Module, volume: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> None:
        self.network = network
        self.volume = volume
        self.call = network if call is None else call
        self.target = torch.linspace(0, 1, volume.numel(), device=volume.device).view_as(volume)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)

    @torch.no_grad()
    def forward(self, _ready: Any = None) -> Tensor:
        result: Tensor = self.call(self.volume)
        return result

    def step(self, _ready: Any = None) -> None:
        """Take one step on the mean square error."""
        self.optimizer.zero_grad()
        F.mse_loss(self.call(self.volume).float(), self.target).backward()
        self.optimizer.step()

    def output(self) -> Tensor:
        self.network.eval()
        return self.forward().float()

    def gradient(self) -> Tensor:
        """Return the gradients of a training step, without taking it, in one vector."""
        self.network.train()
        self.optimizer.zero_grad()
        F.mse_loss(self.call(self.volume).float(), self.target).backward()
        return flat_gradient(self.network)

    def timers(self, device: str) -> dict[str, Timer]:
        return {
            "forward": timer(self.forward, self.network.eval, device),
            "step": timer(self.step, self.network.train, device),
        }


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
    """Refuse a network of ours whose output or gradients are not the literal network's."""
    for name, (trial, reference) in trials.items():
        if name.startswith("ours"):
            literal = trials[reference][0]
            check_same(f"{name}: the output", trial.output(), literal.output())
            check_same(f"{name}: the gradient", trial.gradient(), literal.gradient())


def measure_networks(size: Volume, rounds: int, device: str) -> dict[str, Any]:
    """Check all networks and time them in turn."""
    trials = make_trials(size, device)
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
    return {
        "shape": list(size.shape),
        "space_network": f"MONAI BasicUNet, features {', '.join(map(str, SPACE_WIDTHS))}",
        "networks": found,
    }
