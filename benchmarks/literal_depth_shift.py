"""The Distill Depth Shift Module and its U-Net as the paper's formula reads, left to autograd.

They are what ``benchmarks/depth_shift.py`` holds monai_kd's layer and network against: the same values, no care for
speed. With X the first ``s = alpha * C`` channels of a slice and U the others,

    F = conv3x3(X) to s / 4    B = conv3x3(X) to s / 4    R = conv3x3(X) to s / 2
    out_i = concat(F_{i-1}, B_{i+1}, R_i, U_i), zero where there is no neighbor

Slices are folded, ``(B * D, C, H, W)``, in the default layout. Source: Maheshwari et al. 2021, "Distill DSM".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kd.networks.layers import DistillDepthShift
from monai_kd.networks.nets import DSMUNet

WIDTHS = (16, 32, 64, 128, 128)
PARTS = ("onward", "back", "retain")  # the convolutions, in the order in which ours holds them


class LiteralDepthShift(nn.Module):
    """Three convolutions on the same input; each shifted group is padded and cut, and all channels are put together."""

    def __init__(self, channels: int, alpha: float) -> None:
        super().__init__()
        self.width = int(alpha * channels)
        if self.width % 4:
            raise ValueError(f"alpha {alpha:g} of {channels} channels is {self.width}; it must be a multiple of 4")
        quarter = self.width // 4
        self.onward = nn.Conv2d(self.width, quarter, 3, padding=1)
        self.back = nn.Conv2d(self.width, quarter, 3, padding=1)
        self.retain = nn.Conv2d(self.width, 2 * quarter, 3, padding=1)

    def forward(self, slices: Tensor, depth: int) -> Tensor:
        """Exchange between slices ``(B * D, C, H, W)`` of volumes of ``depth`` slices."""
        selected, untouched = slices[:, : self.width], slices[:, self.width :]
        onward, back, retain, rest = (
            maps.reshape(len(maps) // depth, depth, *maps.shape[1:])  # (B, D, c, H, W)
            for maps in (self.onward(selected), self.back(selected), self.retain(selected), untouched)
        )
        received = F.pad(onward, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
        returned = F.pad(back, (0, 0, 0, 0, 0, 0, 0, 1))[:, 1:]
        return torch.cat([received, returned, retain, rest], dim=2).reshape(slices.shape)

    def take_over(self, ours: DistillDepthShift) -> None:
        """Copy the weights of our layer: its one convolution holds the three, in this order."""
        self.load_state_dict(_separated({f"conv.{name}": value for name, value in ours.conv.state_dict().items()}))


class LiteralUNet(nn.Module):
    """The five-level 2-D U-Net whose blocks, but the first, exchange between slices.

    Shape:
        ``(B, in_channels, D, H, W)`` to ``(B, out_channels, D, H, W)``, H and W of at least 16.
    """

    def __init__(self, in_channels: int, out_channels: int, alpha: float) -> None:
        super().__init__()
        stem, low, middle, high, bottom = WIDTHS
        self.stem = nn.Sequential(_unit(in_channels, stem), _unit(stem, stem))
        self.down = nn.ModuleList(
            [
                _Block(stem, low, low, alpha),
                _Block(low, middle, middle, alpha),
                _Block(middle, high, high, alpha),
                _Block(high, bottom, bottom, alpha),
            ]
        )
        self.up = nn.ModuleList(
            [
                _Block(high + bottom, high, middle, alpha),
                _Block(middle + middle, middle, low, alpha),
                _Block(low + low, low, stem, alpha),
                _Block(stem + stem, stem, stem, alpha),
            ]
        )
        self.head = nn.Conv2d(stem, out_channels, 1)

    def forward(self, volume: Tensor) -> Tensor:
        batch, channels, depth, height, width = volume.shape
        features = volume.permute(0, 2, 1, 3, 4).reshape(batch * depth, channels, height, width)
        levels = [self.stem(features)]
        for block in self.down:
            levels.append(block(F.max_pool2d(levels[-1], 2), depth))
        features = levels.pop()
        for block in self.up:
            skip = levels.pop()
            raised = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)
            rows, columns = skip.shape[2] - raised.shape[2], skip.shape[3] - raised.shape[3]
            raised = F.pad(raised, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            features = block(torch.cat([skip, raised], dim=1), depth)
        return self.head(features).reshape(batch, depth, -1, height, width).permute(0, 2, 1, 3, 4)

    def take_over(self, ours: DSMUNet) -> None:
        """Copy the weights and the running statistics of our network, whose parts have the same names."""
        self.load_state_dict(_separated(ours.network.state_dict()))


class _Block(nn.Module):
    """Two units with an exchange between them."""

    def __init__(self, entry: int, middle: int, exit_: int, alpha: float) -> None:
        super().__init__()
        self.first = _unit(entry, middle)
        self.exchange = LiteralDepthShift(middle, alpha)
        self.second = _unit(middle, exit_)

    def forward(self, features: Tensor, depth: int) -> Tensor:
        result: Tensor = self.second(self.exchange(self.first(features), depth))
        return result


def _unit(entry: int, exit_: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(entry, exit_, 3, padding=1), nn.BatchNorm2d(exit_), nn.ReLU(inplace=True))


def _separated(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state of ours in which each convolution of an exchange has become three."""
    found = {}
    for name, value in state.items():
        owner, is_exchange, kind = name.rpartition("conv.")
        if not is_exchange:
            found[name] = value
            continue
        quarter = len(value) // 4
        rows = value.split([quarter, quarter, 2 * quarter])
        found.update({f"{owner}{part}.{kind}": some for part, some in zip(PARTS, rows, strict=True)})
    return found


def joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo that, for weights as for their gradients; a state of ours stays as it is."""
    found = dict(state)
    for name in [name for name in state if f"{PARTS[0]}." in name]:
        rows = [found.pop(name.replace(f"{PARTS[0]}.", f"{part}.")) for part in PARTS]
        found[name.replace(f"{PARTS[0]}.", "conv.")] = torch.cat(rows)
    return found


def flat_gradient(module: nn.Module) -> Tensor:
    """Return the gradients of all parameters in one vector, of a literal form in the order of ours."""
    found = {name.removeprefix("network."): value.grad for name, value in module.named_parameters()}
    lacks = [name for name, value in found.items() if value is None]
    if lacks:
        raise RuntimeError(f"no gradient for {', '.join(lacks)}")
    ours = joined({name: value for name, value in found.items() if value is not None})
    return torch.cat([ours[name].flatten() for name in sorted(ours)])
