"""A 2-D network that runs on every slice of a volume, and whose layers may exchange features between slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from monai_kd.networks.layers.depth_shift import SliceExchange
from monai_kd.networks.layers.slice_count import SliceCount, fold_slices, unfold_slices
from monai_kd.networks.shapes import plain_tensor

__all__ = ["SliceStack"]

LAYOUTS = ("auto", "channels_last", "contiguous")


class SliceStack(nn.Module):
    """Run a 2-D network on all slices of a volume at once, folded into the batch.

    Layers of the network that exchange features between slices (:class:`monai_kd.networks.layers.SliceExchange`) learn
    from here where a volume ends. Depth, height and width come from the input: any depth works, also a single slice.

    Args:
        network: maps slices ``(N, C, H, W)`` to ``(N, K, H, W)``.
        depth_axis: spatial axis of the slices, 0 to 2; None takes that of the largest spacing.
        spacing: voxel spacing along the three spatial axes, e.g. in mm, for ``depth_axis`` None: slices are stacked
            along the coarsest axis, the last of equals. Without both it is the last axis, as in MONAI's volumes.
        layout: memory layout of the slices. ``channels_last`` is what ``auto`` takes, except for an exporter, whose
            runtime has layouts of its own; ``contiguous`` leaves it as it comes. The result is the same.

    Shape:
        ``(B, C, *spatial)`` with three spatial axes, to ``(B, K, *spatial)``; of stacked heads ``(N, heads, K, H, W)``,
        as DynUNet's deep supervision gives them in training, to ``(B, heads, K, *spatial)``.

    Attributes:
        depth_axis: the spatial axis of the slices.
        halo: how many slices away an input slice can change an output slice, at most.

    Raises:
        ValueError: a setting out of range, or layers that belong to another stack; on use, an input that is no such
            volume.
        TypeError: on use, the network returns something else than one tensor.
    """

    def __init__(
        self,
        network: nn.Module,
        depth_axis: int | None = None,
        spacing: Sequence[float] | None = None,
        layout: str = "auto",
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}; known: {', '.join(LAYOUTS)}")
        self.depth_axis = _slice_axis(depth_axis, spacing)
        self.layout = layout
        self.network = network
        self.training = network.training
        self.count = SliceCount()
        self.count.owned = True
        if any(exchange.count.owned for exchange in self.exchanges):
            raise ValueError(
                f"the exchanges of this {type(network).__name__} belong to another SliceStack, which would no longer "
                "know its slices; give a copy of the network"
            )
        for exchange in self.exchanges:
            exchange.count = self.count

    @property
    def exchanges(self) -> list[SliceExchange]:
        """The layers that exchange features between slices, in the order of the network's modules."""
        return [module for module in self.network.modules() if isinstance(module, SliceExchange)]

    @property
    def halo(self) -> int:
        return len(self.exchanges)

    def forward(self, volume: Tensor) -> Tensor:
        if volume.ndim != 5 or 0 in volume.shape[2:]:
            raise ValueError(
                f"{type(self).__name__} got {tuple(volume.shape)}; it takes a volume (B, C, *spatial) with three "
                f"spatial axes, none of them empty, slices along spatial axis {self.depth_axis}"
            )
        count = volume.shape[2 + self.depth_axis]
        self.count.slices = count
        plain = plain_tensor(volume)  # metadata are of the volume
        output = self.network(self.laid_out(fold_slices(plain, self.depth_axis)))
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{type(self.network).__name__} returned a {type(output).__name__}; a network of slices must return "
                "one tensor (several heads stacked along axis 1)"
            )
        if output.ndim < 4:
            raise ValueError(
                f"{type(self.network).__name__} returned {tuple(output.shape)}; a network of slices must return maps "
                "(N, K, H, W)"
            )
        result = unfold_slices(output, count, self.depth_axis)
        return convert_to_dst_type(result, volume)[0] if isinstance(volume, MetaTensor) else result

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.count.owned = True  # a copy owns its layers as well

    def laid_out(self, slices: Tensor) -> Tensor:
        """Return slices ``(N, C, H, W)`` in the memory layout in which the network runs."""
        if self.layout == "contiguous" or (self.layout == "auto" and _is_exported()):
            return slices
        if slices.shape[1] > 1:
            return slices.contiguous(memory_format=torch.channels_last)
        # one channel has the same memory in both layouts; convolutions go by the strides, which a copy sets
        empty = torch.empty(slices.shape, dtype=slices.dtype, device=slices.device, memory_format=torch.channels_last)
        return empty.copy_(slices)

    def as_volume(self, features: Tensor) -> Tensor:
        """Return the features of slices as those of the volumes of the last forward pass, as a view.

        Raises:
            ValueError: they are no maps ``(N, C, H, W)``, or there was no forward pass.
        """
        if features.ndim < 4 or self.count.slices is None:
            raise ValueError(f"{tuple(features.shape)} are no maps of the slices of a volume that was passed")
        return unfold_slices(features, self.count.slices, self.depth_axis)


def _is_exported() -> bool:
    return bool(torch.compiler.is_exporting() or torch.jit.is_tracing())


def _slice_axis(depth_axis: int | None, spacing: Sequence[float] | None) -> int:
    if spacing is not None and (len(spacing) != 3 or not all(value > 0 for value in spacing)):
        raise ValueError(f"spacing is {spacing!r}; it must be three numbers above 0, one for each spatial axis")
    if depth_axis is None:
        coarsest = max(spacing) if spacing is not None else None
        return 2 if spacing is None else max(axis for axis in range(3) if spacing[axis] == coarsest)
    if isinstance(depth_axis, bool) or depth_axis not in (0, 1, 2):
        raise ValueError(f"depth_axis is {depth_axis!r}; it must be 0, 1 or 2, a spatial axis of the volume, or None")
    return int(depth_axis)
