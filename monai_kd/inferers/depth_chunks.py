"""Exact inference of a volume in chunks of slices."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from monai.utils import optional_import
from torch import Tensor

from monai_kd.inferers.slice_stacks import alike, check_exchanges, check_norms, check_windows, plain_volume, slice_stack

__all__ = ["ChunkedDepthInferer"]

tqdm, _ = optional_import("tqdm", name="tqdm")


class ChunkedDepthInferer(Inferer):
    """Run a network of slices on a volume in chunks along its depth, equal to the pass of the whole volume.

    Each chunk takes ``network.halo`` more slices on both sides, all that can reach it, and its middle is kept: no
    averaging, no seams. Equal up to the rounding of convolutions of another batch size. A causal network sees earlier
    slices only, so its chunks take none after them. At the ends of the volume stands what the network puts there; with
    circular ends the chunks wrap around. A volume of at most ``chunk`` slices runs at once.

    Costs ``(chunk + 2 * halo) / chunk`` of the whole pass, 1.25 times for 64 slices and a halo of 8, and the memory of
    ``chunk + 2 * halo`` slices besides the input and the output.

    Args:
        chunk: slices that are kept of each chunk, at least 1.
        halo: slices on each side, for an approximation with fewer than the network's own, which warns once; None is
            exact. More than the network's own are never taken.
        inferer: runs each chunk, e.g. ``AutocastInferer(SimpleInferer())``, or a ``SlidingWindowInferer`` in plane with
            -1 along the depth axis of its window and ``mode="constant"`` (or a ``sigma_scale`` of 100 along that axis);
            None calls the network.
        progress: show a bar.
        sw_device: where the chunks run; None is the device of the input.
        device: of the output; None is the device of the input. A volume in the CPU's memory with ``sw_device`` on a GPU
            takes no more of the GPU's memory than a chunk does.

    Raises:
        TypeError: the network is no ``SliceStack``; names what it lacks. Or its output is no tensor.
        ValueError: a setting out of range; an input that is no volume; a batch norm that takes its statistics from the
            slices of the chunk, as in train mode; ends of which some are circular and some not; an inner inferer whose
            windows cut along the depth, or weigh slices by their place in a chunk.

    Further arguments on use go to the inferer and the network as they are.
    """

    def __init__(
        self,
        chunk: int = 64,
        halo: int | None = None,
        inferer: Inferer | None = None,
        progress: bool = False,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise ValueError(f"chunk is {chunk!r}; it must be a whole number of at least 1, e.g. 64")
        if halo is not None and (isinstance(halo, bool) or not isinstance(halo, int) or halo < 0):
            raise ValueError(
                f"halo is {halo!r}; it must be a whole number of at least 0, or None for the network's own"
            )
        self.chunk = chunk
        self.halo = halo
        self.inferer = inferer
        self.progress = progress
        self.sw_device = sw_device
        self.device = device
        self._warned = False

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        stack = slice_stack(network, "ChunkedDepthInferer")
        check_exchanges(stack, "ChunkedDepthInferer", "causal", "ends")
        check_norms(stack, "ChunkedDepthInferer")
        check_windows(self.inferer, stack, "ChunkedDepthInferer", constant=True)
        volume, axis = plain_volume(inputs, stack, "ChunkedDepthInferer"), 2 + stack.depth_axis
        depth = volume.shape[axis]
        chunks = _chunks(depth, self.chunk, self._halos(stack), _is_circular(stack))
        output: Tensor | None = None
        for chunk in tqdm(chunks, desc="chunks", unit="chunk") if self.progress else chunks:
            part = chunk.taken(volume, axis).to(self.sw_device)
            found = self.inferer(part, network, *args, **kwargs) if self.inferer else network(part, *args, **kwargs)
            result = _checked(found, chunk.last - chunk.first, axis)
            if output is None:
                shape = [*result.shape[:axis], depth, *result.shape[axis + 1 :]]
                output = torch.empty(shape, dtype=result.dtype, device=self.device or volume.device)
            kept = result.narrow(axis, chunk.start - chunk.first, chunk.stop - chunk.start)
            output.narrow(axis, chunk.start, chunk.stop - chunk.start).copy_(kept)
            del part, found, result, kept  # or they would outlive the next chunk's pass
        assert output is not None  # a volume has at least one slice
        return alike(output, inputs)

    def _halos(self, stack: Any) -> tuple[int, int]:
        """Return how many slices before and after a chunk reach it."""
        before, after = stack.halo, stack.halo - sum(bool(exchange.causal) for exchange in stack.exchanges)
        if self.halo is None:
            return before, after
        if self.halo < before and not self._warned:
            self._warned = True
            warnings.warn(
                f"ChunkedDepthInferer has halo={self.halo}, but {type(stack).__name__} sees {before} slices away: its "
                "output is an approximation near the borders of the chunks",
                stacklevel=3,
            )
        return min(self.halo, before), min(self.halo, after)


class _Chunk(NamedTuple):
    """Slices ``first`` to ``last`` of a volume, around its ends if need be; ``start`` to ``stop`` are kept."""

    first: int
    start: int
    stop: int
    last: int

    def taken(self, volume: Tensor, axis: int) -> Tensor:
        depth = volume.shape[axis]
        if self.first >= 0 and self.last <= depth:
            return volume.narrow(axis, self.first, self.last - self.first)
        return volume.index_select(axis, torch.arange(self.first, self.last, device=volume.device) % depth)


def _chunks(depth: int, size: int, halos: tuple[int, int], circular: bool) -> list[_Chunk]:
    if depth <= size:
        return [_Chunk(0, 0, depth, depth)]
    chunks = []
    for start in range(0, depth, size):
        stop = min(start + size, depth)
        first, last = start - halos[0], stop + halos[1]
        chunks.append(
            _Chunk(first, start, stop, last) if circular else _Chunk(max(first, 0), start, stop, min(last, depth))
        )
    return chunks


def _is_circular(stack: Any) -> bool:
    circular = {exchange.ends == "circular" for exchange in stack.exchanges}
    if len(circular) > 1:
        found = ", ".join(sorted({str(exchange.ends) for exchange in stack.exchanges}))
        raise ValueError(
            f"ChunkedDepthInferer cannot cut a {type(stack).__name__} with ends {found}: all must be circular or none"
        )
    return circular == {True}


def _checked(result: Any, length: int, axis: int) -> Tensor:
    if not isinstance(result, Tensor):
        raise TypeError(f"ChunkedDepthInferer takes networks that return one tensor; it got a {type(result).__name__}")
    if result.ndim != 5 or result.shape[axis] != length:
        raise ValueError(
            f"ChunkedDepthInferer got {tuple(result.shape)} for a chunk of {length} slices; the network must return "
            f"(B, K, *spatial) with as many along spatial axis {axis - 2}"
        )
    return result
