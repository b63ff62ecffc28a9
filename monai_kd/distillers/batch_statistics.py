"""Passes through a training network that are no training data: nothing remembers them, and nothing is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from monai.networks.layers.drop_path import DropPath
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # of 1 to 3 axes, synchronized and lazy ones
from torch.nn.modules.dropout import _DropoutNd  # of elements or channels, alpha dropout
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["keep_running_statistics", "without_dropout"]


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


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Inside the context, dropout layers (torch's, and MONAI's ``DropPath``) hand everything on, as in evaluation.

    Two passes of one image then say the same, so that views differ by what the network makes of them alone. Contexts
    may be nested; afterwards, also by an exception, all layers are in the mode that they were in. ``F.dropout`` within
    a forward is not found.

    Args:
        module: anything that holds such layers, or none.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, (_DropoutNd, DropPath)) and layer.training]
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer in layers:
            layer.training = True


def _refuse_instance_norm(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, _InstanceNorm) and layer.training and layer.running_mean is not None:
            raise ValueError(
                f"'{name}' is an {type(layer).__name__} with track_running_stats=True, whose statistics cannot be "
                "kept; build it without"
            )
