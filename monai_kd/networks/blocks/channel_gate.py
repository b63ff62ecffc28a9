"""The channel branch of CBAM: each channel weighed by what its mean and its maximum say (Woo et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_kd.networks.blocks.steady_norm import steady_mean

__all__ = ["ChannelGate"]


class ChannelGate(nn.Module):
    """Multiply every channel by a number from 0 to 1 that a small network reads from its mean and its maximum.

    ``gate = sigmoid(g(mean) + g(max))`` with one network ``g`` of two linear layers for both; the hidden layer has
    ``channels // reduction`` units.

    Args:
        channels: C.
        reduction: by which the hidden layer is smaller, a whole number above 0; at least one unit is left.

    Shape:
        ``(B, C, *spatial)`` to the same, any number of spatial axes.

    Raises:
        ValueError: ``channels`` or ``reduction`` is no whole number above 0.

    In a training on a CPU the gradient is taken in place, and has no derivative of its own.

    Source: Woo et al. 2018, "CBAM: Convolutional Block Attention Module", section 3, with the LeakyReLU of MTCM-KD
    (Ahmad et al. 2024). MONAI's ``ChannelSELayer`` reads the mean alone.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("reduction", reduction)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} of a ChannelGate is {value!r}; it must be a whole number above 0")
        hidden = max(1, channels // reduction)
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.LeakyReLU(0.01), nn.Linear(hidden, channels))

    def gate(self, features: Tensor) -> Tensor:
        """Return the number of each channel, ``(B, C)``."""
        return self._gate(*_mean_and_max(features))

    def forward(self, features: Tensor) -> Tensor:
        if _is_plain_training(features):
            features, mean, highest = _Pooled.apply(features)
        else:
            mean, highest = _mean_and_max(features)
        gate = self._gate(mean, highest)
        return features * gate.reshape(*gate.shape, *[1] * (features.ndim - 2))

    def _gate(self, mean: Tensor, highest: Tensor) -> Tensor:
        both = torch.stack([mean, highest])  # (2, B, C)
        gate: Tensor = self.layers(both).sum(dim=0).sigmoid()
        return gate


class _Pooled(torch.autograd.Function):
    """Features as they are, their mean and their maximum, with the sum of the three gradients taken in place.

    Autograd makes several maps for it. The sums are taken in its order, so that the bits are the same: what comes from
    the features, from the maximum (shared evenly where it is reached more than once), from the mean.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, highest = _mean_and_max(features)
        ctx.save_for_backward(features, highest)
        return features.view_as(features), mean, highest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_mean: Tensor, of_highest: Tensor) -> Tensor:
        features, highest = ctx.saved_tensors
        spread = [*highest.shape, *[1] * (features.ndim - 2)]
        places = (features == highest.reshape(spread)).nonzero(as_tuple=True)
        channels = places[:2]  # sample and channel of each place
        reached = torch.zeros_like(highest, dtype=torch.int64)  # half precision counts no further than 256
        reached.index_put_(channels, torch.ones_like(channels[0]), accumulate=True)
        # in place: the product with the gate is the only reader of the features, and has just made this gradient
        gradient.index_put_(places, (of_highest / reached)[channels], accumulate=True)
        return gradient.add_((of_mean / features[0, 0].numel()).reshape(spread))


def _mean_and_max(features: Tensor) -> tuple[Tensor, Tensor]:
    spatial = tuple(range(2, features.ndim))
    if torch.compiler.is_exporting():
        return steady_mean(features, 2).flatten(1), features.amax(dim=spatial)
    return features.mean(dim=spatial), features.amax(dim=spatial)


def _is_plain_training(features: Tensor) -> bool:
    """Tell whether autograd itself will ask for a gradient, on a CPU: a GPU would wait for the places to be found."""
    exported = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return features.requires_grad and torch.is_grad_enabled() and features.device.type == "cpu" and not exported
