"""How much a network's output depends on its bottleneck."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["bottleneck_reliance"]


def bottleneck_reliance(network: nn.Module, images: Tensor, batch_size: int = 32) -> float:
    """Return by how much a prediction changes when the bottleneck is taken out: KL divergence, mean over voxels, nats.

    In place of the bottleneck map the decoder gets the map's mean over images and voxels; skip connections stay, also
    the places of maxima of :class:`~monai_kd.networks.nets.ENet`. A teacher with almost 0 segments by its skip
    connections: what is distilled through its bottleneck, such as GKD's graphs and exchanged decoders, has then little
    to do with what it finds. Measure it before hours of training.

    Args:
        network: with the halves ``encode`` and ``decode``, see :class:`monai_kd.networks.EncodeDecode`. It is used in
            evaluation mode; each module is left in the mode that it was in.
        images: ``(n, C, *spatial)``, at least two, on the network's device.
        batch_size: images at a time.

    Raises:
        TypeError: the network has no two halves.
        ValueError: fewer than two images, or a single logit channel, whose softmax is constant.

    Source: this project; with GKD, Qi et al. 2024, doi:10.1109/jbhi.2024.3385098, it tells a useful teacher.
    """
    halves: Any = network
    if not (callable(getattr(network, "encode", None)) and callable(getattr(network, "decode", None))):
        raise TypeError(
            f"{type(network).__name__} has no halves encode and decode; wrap it in monai_kd.networks.EncodeDecode"
        )
    if len(images) < 2:
        raise ValueError(f"bottleneck_reliance needs at least two images, got {len(images)}")
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.inference_mode():
            mean: Any = sum(_mean_map(halves.encode(part)[0]) for part in images.split(batch_size)) / len(images)
            total = sum(_divergences(halves, part, mean).sum().item() for part in images.split(batch_size))
    finally:
        for module, training in modes.items():
            module.training = training
    return total / len(images)


def _mean_map(features: Tensor) -> Tensor:
    """Return the sum over images of the mean over voxels, ``(1, C, 1, ...)``."""
    return features.mean(tuple(range(2, features.ndim)), keepdim=True).sum(0, keepdim=True)


def _divergences(network: Any, images: Tensor, mean: Tensor) -> Tensor:
    """Return the divergence of each image, ``(n,)``."""
    features, skips = network.encode(images)
    own, without = (network.decode(each, skips).double() for each in (features, mean.expand_as(features).contiguous()))
    if own.shape[1] < 2:
        raise ValueError(f"bottleneck_reliance needs logits of a softmax, got {own.shape[1]} channel")
    divergence = F.kl_div(without.log_softmax(1), own.log_softmax(1), reduction="none", log_target=True)
    return divergence.sum(1).flatten(1).mean(1)
