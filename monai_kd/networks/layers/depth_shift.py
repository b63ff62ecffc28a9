"""Layers of 2-D networks that exchange features between slices (Lin et al. 2019; Maheshwari et al. 2021)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import Tensor, nn

from monai_kd.networks.layers.slice_count import SliceCount
from monai_kd.networks.layers.slice_shift import ENDS, shift_slices

__all__ = ["DepthShift", "DistillDepthShift", "ResidualDepthShift", "Shares", "SliceExchange"]


class Shares(NamedTuple):
    """What a slice gives, ``(1, c, H, W)`` each, when slices come one at a time.

    Attributes:
        onward: goes to the next slice.
        back: goes to the previous slice; no channels if causal.
        stay: remains.
    """

    onward: Tensor
    back: Tensor
    stay: Tensor


class SliceExchange(nn.Module, ABC):
    """Base of layers through which a slice of a volume meets its neighbors.

    Args:
        ends: what the first and the last slice receive where they have no neighbor: ``zero``, ``replicate`` (their own
            share) or ``circular`` (that of the other end).
        depth_axis: spatial axis of the slices in a volume, 0 to 2.

    Shape:
        ``(B, C, *spatial)`` with three spatial axes; or slices ``(B * D, C, H, W)`` inside a network that folds its
        volumes, which sets ``count`` (see :class:`SliceCount`). Returns the same shape.
    """

    causal: bool = False  # whether no slice waits for a later one

    def __init__(self, ends: str, depth_axis: int) -> None:
        super().__init__()
        if ends not in ENDS:
            raise ValueError(f"ends is {ends!r}; known: {', '.join(ENDS)}")
        if isinstance(depth_axis, bool) or depth_axis not in (0, 1, 2):
            raise ValueError(f"depth_axis is {depth_axis!r}; it must be 0, 1 or 2, a spatial axis of the volume")
        self.ends = ends
        self.depth_axis = depth_axis
        self.count = SliceCount()

    @abstractmethod
    def split(self, features: Tensor) -> Shares:
        """Return what one slice ``(1, C, H, W)`` gives; for slices that come one at a time."""

    def join(self, onward: Tensor, back: Tensor, stay: Tensor) -> Tensor:
        """Return the features of a slice from what it received and kept."""
        return torch.cat([onward, back, stay], dim=1)

    def _slices(self, features: Tensor) -> int | None:
        """Return D of folded slices, None of a volume; refuse anything else."""
        if features.ndim == 5:
            return None
        if features.ndim != 4:
            raise ValueError(
                f"{type(self).__name__} got {tuple(features.shape)}; it takes a volume (B, C, *spatial) with three "
                "spatial axes, or slices (B * D, C, H, W) inside a network that folds them"
            )
        if self.count.slices is None:
            raise ValueError(
                f"{type(self).__name__} got slices {tuple(features.shape)} and does not know how many make a volume; "
                "put its network into monai_kd.networks.nets.SliceStack, or give a volume with three spatial axes"
            )
        return self.count.slices


def _moved(features: Tensor, axis: int, slices: int | None) -> Tensor:
    """Bring the slices of a volume to the first spatial axis, or back."""
    return features if slices is not None or axis == 0 else features.movedim(2 + axis, 2)


class DepthShift(SliceExchange):
    """Shift some channels to the next and as many to the previous slice; no parameters (temporal shift).

    Args:
        fraction: of the channels that move in each direction, above 0 and at most 1/2; 1/4 as in the code of Distill
            DSM, 1/8 as in TSM.
        ends, depth_axis: see :class:`SliceExchange`.
        causal: both shares go to the next slice, so that no slice waits for a later one.

    Raises:
        ValueError: a setting out of range; on use, fewer channels than one for each direction.

    Source: Lin, Gan, Han, ICCV 2019, "TSM: Temporal Shift Module"; "DSM" in the tables of Maheshwari et al. 2021.
    """

    def __init__(self, fraction: float = 0.25, ends: str = "zero", depth_axis: int = 0, causal: bool = False) -> None:
        super().__init__(ends, depth_axis)
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 0.5:
            raise ValueError(f"fraction is {fraction!r}; it must be above 0 and at most 0.5, e.g. 0.25")
        self.fraction = float(fraction)
        self.causal = causal

    def forward(self, features: Tensor) -> Tensor:
        slices = self._slices(features)
        moved = _moved(features, self.depth_axis, slices)
        shares = self._shares(features.shape[1])
        # the features may be needed by the backward pass of the layer before, so the shift gets memory of its own
        values, rest = moved[:, : sum(shares)], moved[:, sum(shares) :]
        result = shift_slices(values, slices, shares, self.ends, rest)
        return result if moved is features else result.movedim(2, 2 + self.depth_axis)

    def split(self, features: Tensor) -> Shares:
        onward, back = self._shares(features.shape[1])
        return Shares(features[:, :onward], features[:, onward : onward + back], features[:, onward + back :])

    def extra_repr(self) -> str:
        return f"fraction={self.fraction:g}, ends={self.ends!r}, depth_axis={self.depth_axis}, causal={self.causal}"

    def _shares(self, channels: int) -> tuple[int, int]:
        size = math.floor(self.fraction * channels + 1e-9)  # 0.29 of 100 falls short by a rounding
        if size < 1:
            raise ValueError(
                f"DepthShift got {channels} channels, of which fraction {self.fraction:g} is none; give at least "
                f"{math.ceil(1 / self.fraction)}"
            )
        return (2 * size, 0) if self.causal else (size, size)


class ResidualDepthShift(nn.Module):
    """A unit behind a shift, with an identity path round both that keeps what the shift takes from a slice.

    ``features + body(shift(features))``. Where the body changes the number of channels there is no identity path: the
    variant has no parameters of its own.

    Args:
        body: a unit ``(N, C, H, W) -> (N, K, H, W)``.
        shift: the exchange in front of it; not one that overwrites its features, which the identity path reads.

    Raises:
        ValueError: such an exchange.

    Source: "residual shift" of Lin et al. 2019; "Residual DSM" in the tables of Maheshwari et al. 2021, whose published
    code lacks it.
    """

    def __init__(self, body: nn.Module, shift: SliceExchange) -> None:
        super().__init__()
        if getattr(shift, "inplace", False):
            raise ValueError(
                "the shift of ResidualDepthShift has inplace=True and would overwrite what the identity path reads"
            )
        self.shift = shift
        self.body = body

    def forward(self, features: Tensor) -> Tensor:
        return self.add(features, self.body(self.shift(features)))

    @staticmethod
    def add(features: Tensor, result: Tensor) -> Tensor:
        """Add the identity path where there can be one."""
        return features + result if features.shape == result.shape else result


class DistillDepthShift(SliceExchange):
    """Exchange learned maps between neighboring slices: the Distill Depth Shift Module.

    From the first ``s = alpha * channels`` channels a 3x3 convolution makes three groups: ``s / 4`` maps for the next
    slice, ``s / 4`` for the previous one and ``s / 2`` to retain. Slice i then holds
    ``[F_{i-1}, B_{i+1}, R_i, untouched_i]``: as many channels as before. The published module's three convolutions
    are one here, with the same parameters, and nothing is copied that need not be.

    Args:
        channels: C of the features.
        alpha: share of the channels that take part, above 0 and at most 1. ``alpha * channels`` is rounded down to a
            multiple of 4 (see ``width``), and must reach 4.
        inplace: without gradients, write the result into the features that are given. Only for a network that owns them
            and needs them no more; saves a copy of the untouched channels.
        ends: what the end slices receive: ``zero`` as in the paper (after the convolution: not even its bias),
            ``replicate`` (a single slice then acts as in a 2-D network) or ``circular``.
        depth_axis: spatial axis of the slices in a volume, 0 to 2.
        kernel_size: in-plane, odd; 1 costs a ninth.
        norm, act: optional normalization (2-D, so that slices stay apart) and activation behind the convolution. The
            paper has none, by which its convolution and the next one are a single linear map on these channels.
        causal: nothing goes back: ``s / 2`` maps go to the next slice, and none waits for a later one.

    Shape:
        ``(B, C, *spatial)`` with three spatial axes; or slices ``(B * D, C, H, W)`` inside a network that folds them.
        Returns the same shape.

    Attributes:
        width: the channels that take part, s.

    Raises:
        ValueError: a setting out of range, or features with other channels; names what was got.

    Source: Maheshwari et al. 2021, "Distill DSM", section 3. Its published code, besides being three times as slow to
    read its input, shifts in place what the activation before needs for its gradient, cuts a depth that is a multiple
    of its own into volumes, and takes ``alpha = 1`` where the paper's main model has 1/2.
    """

    def __init__(
        self,
        channels: int,
        alpha: float = 0.5,
        inplace: bool = False,
        ends: str = "zero",
        depth_axis: int = 0,
        kernel_size: int = 3,
        norm: str | tuple[str, dict[str, Any]] | None = None,
        act: str | tuple[str, dict[str, Any]] | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__(ends, depth_axis)
        self.channels = channels
        self.alpha = alpha
        check_settings(alpha, kernel_size)
        self.width = _width(channels, alpha)
        self.inplace = inplace
        self.causal = causal
        self.conv = nn.Conv2d(self.width, self.width, kernel_size, padding=kernel_size // 2)
        self.norm = None if norm is None else get_norm_layer(norm, spatial_dims=2, channels=self.width)
        self.act = None if act is None else get_act_layer(act)

    @property
    def shares(self) -> tuple[int, int]:
        """How many channels move to the next and to the previous slice."""
        return (self.width // 2, 0) if self.causal else (self.width // 4, self.width // 4)

    def forward(self, features: Tensor) -> Tensor:
        slices = self._slices(features)
        self._check_channels(features)
        moved = _moved(features, self.depth_axis, slices)
        taken = moved[:, : self.width]
        maps = self._maps(taken, slices)
        rest = moved[:, self.width :] if self.width < self.channels else None
        may_write = self.inplace and not torch.is_grad_enabled() and maps.dtype == moved.dtype
        into = moved if may_write and rest is not None else None
        result = shift_slices(maps, slices, self.shares, self.ends, rest, into)
        return result if moved is features else result.movedim(2, 2 + self.depth_axis)

    def split(self, features: Tensor) -> Shares:
        self._check_channels(features)
        maps, (onward, back) = self._maps(features[:, : self.width], 1), self.shares
        stay = torch.cat([maps[:, onward + back :], features[:, self.width :]], dim=1)
        return Shares(maps[:, :onward], maps[:, onward : onward + back], stay)

    def start_as_plain_shift(self) -> None:
        """Set the weights so that the layer is :class:`DepthShift` with ``fraction = alpha / 4``.

        For networks whose other weights were trained on single slices: they meet their own features, shifted.

        Raises:
            ValueError: the layer has a normalization or an activation behind its convolution.
        """
        if self.norm is not None or self.act is not None:
            raise ValueError("a layer with norm or act behind its convolution cannot start as a plain shift")
        with torch.no_grad():
            nn.init.dirac_(self.conv.weight)
            if self.conv.bias is not None:
                self.conv.bias.zero_()

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, alpha={self.alpha:g}, width={self.width}, ends={self.ends!r}, "
            f"depth_axis={self.depth_axis}, inplace={self.inplace}, causal={self.causal}"
        )

    def _check_channels(self, features: Tensor) -> None:
        if features.shape[1] != self.channels:
            raise ValueError(
                f"DistillDepthShift of {self.channels} channels got {tuple(features.shape)}, "
                f"{features.shape[1]} channels"
            )

    def _maps(self, taken: Tensor, slices: int | None) -> Tensor:
        """Return the learned maps in memory of their own."""
        if slices is not None:
            maps = self.conv(taken)
            maps = maps if self.norm is None else self.norm(maps)
            if self.act is None:
                return maps
            active = self.act(maps)
            # the shift of all channels reuses their memory, and an activation needs its result for the gradient
            return active.clone() if self.width == self.channels else active
        if self.norm is not None or self.act is not None:  # they are 2-D
            folded = self._maps(taken.movedim(2, 1).flatten(0, 1), taken.shape[2])
            return folded.unflatten(0, (-1, taken.shape[2])).movedim(1, 2)
        size = self.conv.kernel_size[0] // 2
        return F.conv3d(taken, self.conv.weight.unsqueeze(2), self.conv.bias, padding=(0, size, size))


def check_settings(alpha: float, kernel_size: int) -> None:
    """Refuse settings of :class:`DistillDepthShift` that are out of range for any number of channels."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= 1:
        raise ValueError(f"alpha is {alpha!r}; it must be above 0 and at most 1")
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size!r}; it must be an odd whole number, 3 or 1")


def _width(channels: int, alpha: float) -> int:
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ValueError(f"channels is {channels!r}; it must be a whole number of at least 1")
    width = 4 * math.floor(alpha * channels / 4 + 1e-9)  # a product such as 0.1 * 40 may fall short by a rounding
    if width < 4:
        raise ValueError(
            f"alpha {alpha:g} of {channels} channels is {alpha * channels:g}; the module needs at least 4: take alpha "
            f"{min(1.0, 4 / channels):g} or more" + ("" if channels >= 4 else ", and at least 4 channels")
        )
    return width
