"""The channel branch of CBAM: each channel weighed by what its mean and its maximum say (Woo et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
        spatial = tuple(range(2, features.ndim))
        both = torch.stack([features.mean(dim=spatial), features.amax(dim=spatial)])  # (2, B, C)
        return self.layers(both).sum(dim=0).sigmoid()

    def forward(self, features: Tensor) -> Tensor:
        gate = self.gate(features)
        return features * gate.reshape(*gate.shape, *[1] * (features.ndim - 2))
