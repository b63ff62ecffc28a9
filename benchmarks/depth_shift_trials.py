"""What the network and the variants part of ``benchmarks/depth_shift.py`` time: networks with an input and a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from interleaved import Timer, timer
from literal_depth_shift import flat_gradient
from torch import Tensor, nn

from monai_kd.networks.nets import DSMUNet

PASSES = ("forward", "step")


class Volume(NamedTuple):
    """Slices and their voxels in plane, of one case with one channel."""

    slices: int
    in_plane: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 1, self.slices, self.in_plane, self.in_plane)


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


class Variant(NamedTuple):
    """A way to run the network: its results, what times each pass and counts its page faults, and what ends it."""

    results: dict[str, Callable[[], Tensor]]  # of the passes: output and gradient
    timers: dict[str, Timer]
    faults: dict[str, Callable[[], int | None]]
    close: Callable[[], None] = lambda: None


class Skipped(Exception):
    """A variant that this machine cannot run; the reason is its message."""


def make_trial(size: Volume, device: str, call: Callable[[nn.Module], Any] | None = None) -> Trial:
    """Build the same network and input each time, the running statistics of its norms taken from volumes."""
    torch.manual_seed(0)
    network = DSMUNet(1, 1, depth_axis=0).to(device)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn((1, 1, 4, 32, 32)).to(device))
    volume = torch.randn(size.shape).to(device)
    return Trial(network, volume, None if call is None else call(network))


def as_variant(trial: Trial, device: str, passes: tuple[str, ...] = PASSES) -> Variant:
    timers = trial.timers(device)
    results = {"forward": trial.output, "step": trial.gradient}
    return Variant(
        {which: results[which] for which in passes},
        {which: timers[which] for which in passes},
        {which: lambda which=which: page_faults(timers[which]) for which in passes},
    )


def page_faults(run: Callable[[], Any]) -> int | None:
    """Return how many pages are mapped anew in a run; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
