"""Teachers that see other images or name other classes than the student, made to fit: one small module a difference.

Each wrapper takes what the student's network takes, hands the teacher what the teacher was trained on, and brings the
logits back. They nest in any order; ``network`` is what is wrapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MapClasses", "PadToMultiple", "Reorient", "Resample", "RescaleIntensity", "SelectChannels", "unwrap"]

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


class _Wrapper(nn.Module):
    """Holds the wrapped network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def wrappers_of(network: nn.Module) -> Iterator[nn.Module]:
    """The wrappers around a network, the outermost first."""
    while isinstance(network, _Wrapper):
        yield network
        network = network.network


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network inside all wrappers; an ensemble and any other network are returned as they are."""
    while isinstance(network, _Wrapper):
        network = network.network
    return network


class SelectChannels(_Wrapper):
    """Give the teacher some of the student's image channels, in the teacher's order.

    Args:
        network: the teacher.
        channels: for each of the teacher's channels the index of the student's.
    Shape:
        image: ``(B, C, *spatial)``, C above every index; logits as the teacher gives them.
    """

    def __init__(self, network: nn.Module, channels: Sequence[int]) -> None:
        super().__init__(network)
        if not channels or min(channels) < 0:
            raise ValueError(
                f"channels are {list(channels)}; give the student's channel, from 0, for each of a teacher's"
            )
        self.channels = list(channels)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1] <= max(self.channels):
            raise ValueError(f"the teacher takes channels {self.channels} of an image with {image.shape[1]} channels")
        return self.network(image[:, self.channels])


class RescaleIntensity(_Wrapper):
    """Turn the student's intensities into the teacher's: ``image * scale + shift``, then cut to ``clip``.

    Fixed numbers only. The statistics of a patch are not those of its image, so a normalization by mean and standard
    deviation of each image cannot be made up for here: the student's preprocessing must do it.

    Args:
        network: the teacher.
        scale, shift: one number, or one for each channel.
        clip: lowest and highest value that the teacher gets; None cuts nothing. One pair, or one for each channel.
    """

    scale: Tensor
    shift: Tensor
    clip: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        scale: float | Sequence[float] = 1.0,
        shift: float | Sequence[float] = 0.0,
        clip: Sequence[float] | Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__(network)
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32).reshape(-1), persistent=False)
        self.register_buffer("shift", torch.as_tensor(shift, dtype=torch.float32).reshape(-1), persistent=False)
        pairs = None if clip is None else torch.as_tensor(clip, dtype=torch.float32).reshape(-1, 2)
        self.register_buffer("clip", pairs, persistent=False)
        if (self.scale == 0).any():
            raise ValueError(f"scale is {scale}; 0 would make every image constant")
        if pairs is not None and (pairs[:, 0] >= pairs[:, 1]).any():
            raise ValueError(f"clip is {clip}; give the lower value first")

    def forward(self, image: Tensor) -> Tensor:
        image = image.float() * _by_channel(self.scale, image) + _by_channel(self.shift, image)
        if self.clip is not None:
            image = torch.clamp(image, _by_channel(self.clip[:, 0], image), _by_channel(self.clip[:, 1], image))
        return self.network(image)


def _by_channel(values: Tensor, image: Tensor) -> Tensor:
    if len(values) not in (1, image.shape[1]):
        raise ValueError(f"intensity has numbers for {len(values)} channels, the image has {image.shape[1]}")
    return values.reshape(1, -1, *[1] * (image.ndim - 2))


class Reorient(_Wrapper):
    """Turn the image's axes into the teacher's and the logits back; nothing is interpolated.

    Args:
        network: the teacher.
        axis_order: for each of the teacher's spatial axes the index of the student's; ``[2, 1, 0]`` turns MONAI's
            (x, y, z) into the (z, y, x) of SimpleITK.
        flip: for each of the teacher's spatial axes whether it runs the other way.
    """

    def __init__(self, network: nn.Module, axis_order: Sequence[int], flip: Sequence[bool] | None = None) -> None:
        super().__init__(network)
        if sorted(axis_order) != list(range(len(axis_order))):
            raise ValueError(f"axis_order is {list(axis_order)}; give each axis of 0 to {len(axis_order) - 1} once")
        self.axis_order = list(axis_order)
        self.flipped = [axis for axis, reverse in enumerate(flip or []) if reverse]

    def forward(self, image: Tensor) -> Tensor:
        dims = [axis + 2 for axis in self.axis_order]
        flipped = [axis + 2 for axis in self.flipped]
        # contiguous: convolutions on a permuted view would take another, slower memory format
        turned = image.permute(0, 1, *dims).flip(flipped).contiguous()
        back = [dims.index(axis) + 2 for axis in range(2, image.ndim)]
        return self.network(turned).flip(flipped).permute(0, 1, *back).contiguous()


class Resample(_Wrapper):
    """Bring the patch to the teacher's spacing and the logits back, both by linear interpolation.

    The teacher's patch covers the same extent; its size is rounded to whole voxels, so the spacing that the teacher
    sees differs from its own by at most half a voxel over the patch. Fine detail that the teacher's grid cannot hold
    is lost: prefer a student at the teacher's spacing where both are free.

    Args:
        network: the teacher.
        factor: for each spatial axis, student spacing divided by teacher spacing; above 1 the teacher's grid is finer.
    """

    def __init__(self, network: nn.Module, factor: Sequence[float]) -> None:
        super().__init__(network)
        if min(factor) <= 0:
            raise ValueError(f"factor is {list(factor)}; spacings are positive")
        self.factor = [float(value) for value in factor]

    def forward(self, image: Tensor) -> Tensor:
        size = [max(1, round(length * factor)) for length, factor in zip(image.shape[2:], self.factor, strict=True)]
        mode = _INTERPOLATION[len(size)]
        seen = functional.interpolate(image.float(), size=size, mode=mode, align_corners=False)
        logits = self.network(seen)
        return functional.interpolate(logits.float(), size=list(image.shape[2:]), mode=mode, align_corners=False)


class PadToMultiple(_Wrapper):
    """Pad the patch at its far ends by its own border to the multiples that the teacher needs, and cut the logits.

    Args:
        network: the teacher.
        multiple: for each spatial axis, voxels: the total stride of the teacher.
    """

    def __init__(self, network: nn.Module, multiple: Sequence[int]) -> None:
        super().__init__(network)
        if min(multiple) < 1:
            raise ValueError(f"multiple is {list(multiple)}; give the teacher's total stride, 1 or more, of each axis")
        self.multiple = [int(value) for value in multiple]

    def forward(self, image: Tensor) -> Tensor:
        sizes = list(zip(image.shape[2:], self.multiple, strict=True))
        missing = [-length % multiple for length, multiple in sizes]
        padding = [side for extra in reversed(missing) for side in (0, extra)]
        padded = functional.pad(image, padding, mode="replicate") if any(missing) else image
        return self.network(padded)[(..., *[slice(length) for length, _ in sizes])]


class MapClasses(_Wrapper):
    """Put the teacher's classes into the student's order and merge those that are one class to the student.

    The probability of a merged class is the sum of its parts: logits are merged by log-sum-exp, in float32, so the
    softmax of the result is exactly the summed softmax. A class of one part keeps its logits.

    Args:
        network: the teacher, with exclusive classes.
        groups: for each of the student's classes the teacher's channels; every channel once.
    """

    def __init__(self, network: nn.Module, groups: Sequence[Sequence[int]]) -> None:
        super().__init__(network)
        listed = sorted(channel for group in groups for channel in group)
        if listed != list(range(len(listed))) or not all(groups):
            raise ValueError(
                f"groups are {[list(group) for group in groups]}; give each of the teacher's channels once and no "
                "empty group"
            )
        self.groups = [list(group) for group in groups]

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(image)
        known = sum(len(group) for group in self.groups)
        if logits.shape[1] != known:
            raise ValueError(f"class_map speaks of {known} classes of the teacher, which gives {logits.shape[1]}")
        merged = [
            logits[:, group[0]] if len(group) == 1 else torch.logsumexp(logits[:, group].float(), dim=1)
            for group in self.groups
        ]
        return torch.stack([channel.float() for channel in merged], dim=1)
