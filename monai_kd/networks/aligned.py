"""A network whose bottleneck goes through an alignment network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["AlignedNetwork"]


class AlignedNetwork(nn.Module):
    """Encode, bring the bottleneck into the latent space and back, decode: how much an alignment network keeps.

    Args:
        network: with ``encode(image) -> (features, skips)`` and ``decode(features, skips) -> logits``.
        alignment: maps features ``(B, C, *spatial)`` to ones of the same shape, e.g.
            :class:`monai_kd.networks.nets.AlignmentNetwork`.

    Shape:
        ``(B, in_channels, *spatial)`` to logits ``(B, K, *spatial)``, as the network itself.
    """

    def __init__(self, network: nn.Module, alignment: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.alignment = alignment

    def forward(self, image: Tensor) -> Tensor:
        halves: Any = self.network
        features, skips = halves.encode(image)
        logits: Tensor = halves.decode(self.alignment(features), skips)
        return logits
