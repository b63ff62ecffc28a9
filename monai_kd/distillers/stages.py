"""The stages of a network with their shapes, measured by one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from monai_kd.distillers.heads import named_heads
from monai_kd.distillers.taps import FeatureTaps, stage_paths

__all__ = ["Stage", "feature_shapes", "network_stages"]


class Stage(NamedTuple):
    """One stage of a network.

    Attributes:
        name: as terms address it.
        path: of the module, as in ``named_modules()``.
        shape: of its output, ``(B, C, *spatial)``.
        stride: voxels of the image per voxel of the output, along each axis; empty for tokens.
    """

    name: str
    path: str
    shape: torch.Size
    stride: tuple[float, ...]


def network_stages(network: nn.Module, input_shape: Sequence[int]) -> list[Stage]:
    """Return the stages of a known network with their shapes, from one forward pass on zeros.

    The pass runs in evaluation mode without gradient; the network's mode is as before.

    Args:
        network: one that :func:`~monai_kd.distillers.stage_paths` knows; any other has no stages.
        input_shape: of an image, ``(B, C, *spatial)``.
    """
    return measured_stages(network, input_shape)[0]


def measured_stages(network: nn.Module, input_shape: Sequence[int]) -> tuple[list[Stage], dict[str, torch.Size]]:
    """Return the stages, and the shapes of their features and of the ``logits``, from one forward pass."""
    paths = stage_paths(network)
    shapes = feature_shapes(network, FeatureTaps(network, list(paths)), input_shape)
    stages = [Stage(name, path, shapes[name], _stride(input_shape, shapes[name])) for name, path in paths.items()]
    return stages, shapes


def feature_shapes(network: nn.Module, taps: FeatureTaps, input_shape: Sequence[int]) -> dict[str, torch.Size]:
    """Return the shape of each tapped feature and of the ``logits``, from one forward pass on zeros."""
    parameter = next(network.parameters(), None)
    image = torch.zeros(tuple(input_shape)) if parameter is None else parameter.new_zeros(tuple(input_shape))
    modes = {module: module.training for module in network.modules()}
    network.eval()  # batch statistics stay as they are
    try:
        with torch.no_grad(), taps as features:
            output = network(image)
    finally:
        for module, mode in modes.items():
            module.training = mode
    heads = named_heads(output, len(input_shape), type(network).__name__)
    return {name: value.shape for name, value in (*features.items(), *heads.items())}


def _stride(image: Sequence[int], feature: Sequence[int]) -> tuple[float, ...]:
    if len(feature) != len(image):
        return ()
    return tuple(size / own for size, own in zip(image[2:], feature[2:], strict=True))
