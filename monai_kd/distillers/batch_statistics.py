"""Passes through a training network that are no training data: batch normalization that does not remember them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # of 1 to 3 axes, synchronized and lazy ones
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["keep_running_statistics"]


@contextmanager
def keep_running_statistics(module: nn.Module) -> Iterator[None]:
    """Inside the context, batch normalization in training mode leaves its running statistics alone, to the last bit.

    It normalizes by the batch at hand as ever, and its weights get the same gradients. ``running_mean``,
    ``running_var`` and ``num_batches_tracked`` are neither read nor written. Layers in evaluation mode are not
    concerned. Contexts may be nested; after the outermost, also by an exception, all is as before.

    An activation checkpoint runs its layers again in the backward pass, which then belongs into the context too.

    Args:
        module: anything that holds such layers, or none.

    Raises:
        ValueError: an instance normalization in training mode tracks statistics, which this cannot stop.

    Source: to keep student and augmented views apart is a remedy of this project: without it views that the student
    merely compares cost about 3 Dice points in its own domain, since inference normalizes by what they left behind.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    _refuse_instance_norm(module)
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _refuse_instance_norm(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, _InstanceNorm) and layer.training and layer.running_mean is not None:
            raise ValueError(
                f"'{name}' is an {type(layer).__name__} with track_running_stats=True, whose statistics cannot be "
                "kept; build it without"
            )
