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
        start_as_plain_shift: let the learned exchange begin as a shift, see :class:`DistillDepthShift`.
    """

    exchange: str = "distill"
    alpha: float = 0.5
    ends: str = "zero"
    causal: bool = False
    fraction: float = 0.25
    kernel_size: int = 3
    norm: Norm | None = None
    act: Norm | None = None
    start_as_plain_shift: bool = False

    def __post_init__(self) -> None:
        if self.exchange not in EXCHANGES:
            raise ValueError(f"exchange is {self.exchange!r}; known: {', '.join(EXCHANGES)}")
        check_settings(self.alpha, self.kernel_size)
        DepthShift(self.fraction, self.ends)
        if self.start_as_plain_shift and (self.exchange != "distill" or self.norm or self.act):
            raise ValueError(
                f"start_as_plain_shift sets the learned exchange alone; got exchange={self.exchange!r}, "
                f"exchange_norm={self.norm!r}, exchange_act={self.act!r}, give 'distill', None and None"
            )

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
            layer = DistillDepthShift(channels, self.alpha, inplace, self.ends, causal=self.causal, **settings)
            if self.start_as_plain_shift:
                layer.start_as_plain_shift()
            return layer
        shift = DepthShift(self.fraction, self.ends, causal=self.causal)
        shift.split(torch.empty(1, channels, 1, 1))  # refuses too few channels
        return shift
