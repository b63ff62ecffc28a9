"""Exact inference slice by slice: a slice in, a slice out, in memory that does not depend on the depth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import optional_import
from torch import Tensor

from monai_kd.inferers.slice_pipeline import SlicePipeline
from monai_kd.inferers.slice_stacks import alike, check_exchanges, check_norms, check_windows, plain_volume, slice_stack
from monai_kd.inferers.slice_threads import SliceThreads

__all__ = ["StreamingDepthInferer"]

tqdm, _ = optional_import("tqdm", name="tqdm")
NAME = "StreamingDepthInferer"


class StreamingDepthInferer(Inferer):
    """Run a network of slices one slice at a time, equal to the pass of the whole volume.

    A slice waits at each exchange until its neighbors have reached the same one. At most ``halo + 1`` slices are in
    flight, each is computed once, and the output of slice i is there as soon as slice ``i + halo`` has come; at once in
    a causal network. Equal up to the rounding of convolutions of another batch size.

    As an inferer it takes whole volumes, one after the other. :meth:`stream` takes slices as an acquisition or a disk
    delivers them: their number need not be known, nor need the volume fit into memory.

    A network with ``slice_steps``, such as ``DSMUNet``, waits in generators; any other ``SliceStack``, such as a 2-D
    network with exchanges put in, in threads of which one runs at a time.

    Args:
        sw_device: where the slices run; None is the device on which they come.
        device: of the output; None is the device of the input for volumes, and that of the network for streams.
        progress: show a bar for each volume.
        windows: cuts volumes in plane, each window a stream of its own: a ``SlidingWindowInferer`` with -1 along the
            depth axis of its window and ``mode="constant"``; None takes slices as they are. Streams are not cut.

    Raises:
        TypeError: the network is no ``SliceStack``; names what it lacks. Or its output is no tensor, or there are
            further arguments, which a slice has no use for.
        ValueError: a network in train mode, or with circular ends, whose first slice needs the last; an input that is
            no volume; slices of different shapes; slices that do not all pass each exchange of the network once.
        RuntimeError: another stream has the network in use, if it runs in threads.
    """

    def __init__(
        self,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        windows: Inferer | None = None,
    ) -> None:
        super().__init__()
        self.windows = windows
        self.sw_device = sw_device
        self.device = device
        self.progress = progress

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Run volumes ``(B, C, *spatial)``; returns ``(B, K, *spatial)``."""
        if args or kwargs:
            given = ", ".join([*(type(value).__name__ for value in args), *kwargs])
            raise TypeError(f"{NAME} runs the network on slices and has no use for further arguments; got {given}")
        stack = _streamable(network)
        check_windows(self.windows, stack, NAME, constant=False)
        volume = plain_volume(inputs, stack, NAME)
        if self.windows is None:
            return alike(self._volumes(volume, stack, self.device or volume.device), inputs)
        # MONAI adds windows up where they are; only the whole goes elsewhere
        joined = self.windows(volume, lambda window: self._volumes(window, stack, window.device))
        return alike(joined if self.device is None else joined.to(self.device), inputs)

    def _volumes(self, volume: Tensor, stack: Any, device: torch.device | str) -> Tensor:
        axis = 2 + stack.depth_axis
        output: Tensor | None = None
        for index in range(len(volume)):
            slices = volume[index : index + 1].unbind(axis)
            with contextlib.closing(self._streamed(stack, slices)) as results:
                shown = tqdm(results, total=len(slices), unit="slice") if self.progress else results
                for number, result in enumerate(shown):
                    if output is None:
                        shape = [len(volume), *result.shape[1:]]
                        shape.insert(axis, len(slices))
                        output = torch.empty(shape, dtype=result.dtype, device=device)
                    output[index : index + 1].select(axis, number).copy_(result)
        assert output is not None  # a volume has at least one slice
        return output

    def stream(self, network: Callable[..., Any], slices: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """Run slices as they come.

        Closing the iterator, or dropping it, ends the pass of the slices in flight. Runs without gradients, and under
        the autocast that holds where the iterator is read; leave that the same for a whole stream.

        Args:
            network: a ``SliceStack`` in eval mode.
            slices: ``(1, C, H, W)`` each, first to last; their memory may be used again at once.

        Yields:
            ``(1, K, H, W)`` for each slice, in the same order.
        """
        return self._streamed(_streamable(network), slices)

    def _streamed(self, stack: Any, slices: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        with contextlib.ExitStack() as entered:
            waits_itself = hasattr(stack, "slice_steps")
            runner = stack if waits_itself else entered.enter_context(SliceThreads(stack))
            pipeline = SlicePipeline(stack, runner.slice_steps, self.sw_device)
            entered.callback(pipeline.close)
            for one in slices:
                yield from self._placed(pipeline.push(one))
            while pipeline.in_flight:
                yield from self._placed(pipeline.finish())

    def _placed(self, results: list[Tensor]) -> Generator[Tensor, None, None]:
        while results:
            result = results.pop(0)
            yield result if self.device is None else result.to(self.device)


def _streamable(network: Any) -> Any:
    stack = slice_stack(network, NAME)
    check_exchanges(stack, NAME, "ends", "split", "join")
    for number, exchange in enumerate(stack.exchanges):
        if exchange.ends == "circular":
            raise ValueError(
                f"{NAME} cannot run exchange {number} of {type(stack).__name__}: with ends 'circular' the first slice "
                "needs the last; take ChunkedDepthInferer"
            )
    if stack.training:
        raise ValueError(f"{NAME} runs networks in eval mode; call {type(stack).__name__}.eval()")
    check_norms(stack, NAME)
    return stack
