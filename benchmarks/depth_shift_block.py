"""The block part of ``benchmarks/depth_shift.py``: one exchange between the slices of a volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from interleaved import Timer, check_same, interleave, medians, paired, timer
from literal_depth_shift import LiteralDepthShift, flat_gradient
from torch import Tensor, nn

from monai_kd.networks.layers import DistillDepthShift

PASSES = ("forward", "forward_backward")
# layout -> the plain 2-D convolution it is compared with; a channels-last volume of one case is the same memory as its
# channels-last slices
LAYOUTS = {
    "NCHW": "NCHW",
    "channels-last": "channels-last",
    "volume": "NCHW",
    "volume channels-last": "channels-last",
}


class Size(NamedTuple):
    """Features of one volume, and the share of their channels that is exchanged."""

    depth: int
    channels: int
    in_plane: int
    alpha: float


SIZES = (
    Size(16, 64, 64, 1.0),
    Size(32, 64, 64, 1.0),
    Size(64, 32, 128, 1.0),
    Size(32, 64, 64, 0.5),
    Size(64, 32, 128, 0.5),
    Size(32, 128, 32, 0.5),
)
QUICK = (Size(3, 8, 8, 1.0), Size(3, 16, 8, 0.5))


class Form(NamedTuple):
    """A module, what it is called with, and the layout of that."""

    module: nn.Module
    call: Callable[[Tensor], Tensor]
    layout: str


def laid_out(slices: Tensor, layout: str) -> Tensor:
    """Return slices ``(D, C, H, W)`` of one volume in a layout."""
    if layout == "NCHW":
        return slices
    if layout == "channels-last":
        return slices.contiguous(memory_format=torch.channels_last)
    volume = slices.movedim(0, 1).unsqueeze(0)
    return volume.contiguous(memory_format=torch.contiguous_format if layout == "volume" else torch.channels_last_3d)


def as_slices(features: Tensor) -> Tensor:
    """Undo :func:`laid_out`, but for the memory format."""
    return features if features.ndim == 4 else features[0].movedim(1, 0)


def make_forms(size: Size, device: str) -> dict[str, Form]:
    """Return the literal form first, then ours, with its weights, in each layout, then plain convolutions."""
    torch.manual_seed(0)
    ours = DistillDepthShift(size.channels, size.alpha, inplace=True).to(device)
    ours.count.slices = size.depth
    literal = LiteralDepthShift(size.channels, size.alpha).to(device)
    literal.take_over(ours)
    forms = {"literal": Form(literal, lambda slices: literal(slices, size.depth), "NCHW")}
    forms |= {f"ours {layout}": Form(ours, ours, layout) for layout in LAYOUTS}
    plane = nn.Conv2d(size.channels, size.channels, 3, padding=1).to(device)
    space = nn.Conv3d(size.channels, size.channels, 3, padding=1).to(device)
    forms |= {f"conv2d {layout}": Form(plane, plane, layout) for layout in ("NCHW", "channels-last")}
    return forms | {f"conv3d {layout}": Form(space, space, layout) for layout in ("volume", "volume channels-last")}


class Block:
    """All forms of one size, on the same random features and gradient."""

    def __init__(self, size: Size, device: str) -> None:
        self.device = device
        self.forms = make_forms(size, device)
        shape = (size.depth, size.channels, size.in_plane, size.in_plane)
        features, gradient = torch.randn(shape, device=device), torch.randn(shape, device=device)
        layouts = {form.layout for form in self.forms.values()}
        self.features = {layout: laid_out(features, layout) for layout in layouts}
        self.gradient = {layout: laid_out(gradient, layout) for layout in layouts}

    def prepared(self, form: Form, trains: bool) -> Tensor:
        """Return features of the form's own: ours may write into them."""
        form.module.zero_grad()
        return self.features[form.layout].clone().requires_grad_(trains)

    @torch.no_grad()
    def forward(self, form: Form, features: Tensor) -> Tensor:
        return form.call(features)

    def forward_backward(self, form: Form, features: Tensor) -> Tensor:
        result = form.call(features)
        result.backward(self.gradient[form.layout])
        return result.detach()

    def check(self) -> None:
        """Refuse a form of ours whose values or gradients are not the literal form's."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, form in self.forms.items():
            if "conv" in name:
                continue
            features = self.prepared(form, trains=True)
            values = {
                "the output": self.forward(form, self.prepared(form, trains=False)),
                "the output with gradients": self.forward_backward(form, features),
            }
            assert features.grad is not None
            found[name] = {what: as_slices(value) for what, value in values.items()}
            found[name]["the gradient of the input"] = as_slices(features.grad)
            found[name]["the gradient of the weights"] = flat_gradient(form.module)
            for what, value in found[name].items():
                check_same(f"{name}: {what}", value, found["literal"][what])

    def timers(self, which: str) -> dict[str, Timer]:
        """Return a timer of each form; which is one of :data:`PASSES`."""
        run, trains = getattr(self, which), which != "forward"
        return {
            name: timer(
                lambda features, form=form: run(form, features),
                lambda form=form: self.prepared(form, trains),
                self.device,
            )
            for name, form in self.forms.items()
        }


def measure_block(size: Size, rounds: int, device: str) -> dict[str, Any]:
    """Check all forms of one size and time them in turn."""
    block = Block(size, device)
    block.check()
    found: dict[str, Any] = {**size._asdict()}
    for which in PASSES:
        times = interleave(block.timers(which), rounds, f"D{size.depth} C{size.channels} {which}")
        found[which] = {}
        for name, own in times.items():
            entry: dict[str, Any] = {**medians(own), "speedup": paired(times["literal"], own)}
            if name.startswith("ours "):
                entry["to_conv2d"] = paired(own, times[f"conv2d {LAYOUTS[name.removeprefix('ours ')]}"])
            found[which][name] = entry
    return found
