"""Keep the gradient of each network within a norm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from torch import nn

from monai_kd.handlers.accumulation import optimizer_stepped

__all__ = ["ClipGradients"]


class ClipGradients:
    """Scale the gradient of each module down to a largest norm, before the optimizer's step.

    Each module has a norm of its own, so that networks that train side by side do not depend on each other's gradients.
    Under AMP the gradients are brought to their own scale first. With gradient accumulation it acts on what has come
    together before the step.

    Args:
        modules: by name, e.g. ``{"student": network, "teachers": teachers}``; one without gradients is passed over.
        max_norm: largest L2 norm, > 0.

    Raises:
        ValueError: ``max_norm`` is not above 0, or no module.
    """

    def __init__(self, modules: Mapping[str, nn.Module], max_norm: float = 12.0) -> None:
        if isinstance(max_norm, bool) or not isinstance(max_norm, (int, float)) or not max_norm > 0:
            raise ValueError(f"max_norm is {max_norm!r}; it must be a number above 0")
        if not modules:
            raise ValueError("modules is empty; give at least one module whose gradient to clip")
        self.modules, self.max_norm = dict(modules), float(max_norm)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if not optimizer_stepped(engine):
            return
        if getattr(engine, "scaler", None) is not None:
            engine.scaler.unscale_(engine.optimizer)  # type: ignore[attr-defined]
        for module in self.modules.values():
            held = [parameter for parameter in module.parameters() if parameter.grad is not None]
            if held:
                torch.nn.utils.clip_grad_norm_(held, self.max_norm)
