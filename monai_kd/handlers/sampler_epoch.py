"""Tell a sampler which epoch begins, so that its order is the same in a resumed training."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events

__all__ = ["SamplerEpoch"]


class SamplerEpoch:
    """Call ``sampler.set_epoch(epoch)`` before each epoch, counted from 1.

    Args:
        sampler: one with ``set_epoch``, e.g. :class:`monai_kd.data.MixedSampler`.

    Raises:
        TypeError: the sampler has no ``set_epoch``.
    """

    def __init__(self, sampler: Any) -> None:
        if not callable(getattr(sampler, "set_epoch", None)):
            raise TypeError(f"sampler is a {type(sampler).__name__}, which has no set_epoch")
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.sampler.set_epoch(engine.state.epoch))
