"""Which exchange a network has in its blocks, and how it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from monai_kd.networks.layers.depth_shift import DepthShift, DistillDepthShift, SliceExchange, check_settings

__all__ = ["EXCHANGES", "ExchangeSettings", "Norm"]

Norm = str | tuple[str, dict[str, Any]]
EXCHANGES = ("distill", "plain", "residual", "none")


@dataclass(frozen=True)
class ExchangeSettings:
    """What all exchanges of a network share; out of range is refused also where a kind does not read it.

    Attributes:
        exchange: ``distill``, ``plain``, ``residual`` or ``none``.
        alpha, kernel_size, norm, act: of :class:`DistillDepthShift`.
        fraction: of :class:`DepthShift`, for ``plain`` and ``residual``.
        ends, causal: of both.
    """

    exchange: str = "distill"
    alpha: float = 0.5
    ends: str = "zero"
    causal: bool = False
    fraction: float = 0.25
    kernel_size: int = 3
    norm: Norm | None = None
    act: Norm | None = None

    def __post_init__(self) -> None:
        if self.exchange not in EXCHANGES:
            raise ValueError(f"exchange is {self.exchange!r}; known: {', '.join(EXCHANGES)}")
        check_settings(self.alpha, self.kernel_size)
        DepthShift(self.fraction, self.ends)

    @property
    def residual(self) -> bool:
        """Whether an identity path leads round the shift."""
        return self.exchange == "residual"

    def make(self, channels: int, inplace: bool) -> SliceExchange | None:
        """Return the exchange of features with so many channels.

        Args:
            channels: of the features.
            inplace: whether nobody else reads the features, so that they may be overwritten without gradients.

        Raises:
            ValueError: too few channels.
        """
        if self.exchange == "none":
            return None
        if self.exchange == "distill":
            settings: dict[str, Any] = {"kernel_size": self.kernel_size, "norm": self.norm, "act": self.act}
            return DistillDepthShift(channels, self.alpha, inplace, self.ends, causal=self.causal, **settings)
        shift = DepthShift(self.fraction, self.ends, causal=self.causal)
        shift.split(torch.empty(1, channels, 1, 1))  # refuses too few channels
        return shift
