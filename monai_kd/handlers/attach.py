"""A handler that stands elsewhere in the configuration."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine

__all__ = ["Attach"]


class Attach:
    """Attach a handler that has an id of its own, so that other parts of a configuration can refer to it.

    MONAI's checks read ``_target_`` of every entry of ``train::handlers``, so that a reference such as ``@averaged``
    cannot stand there by itself.

    Args:
        handler: has a method ``attach(engine)``.

    Raises:
        TypeError: it has none.
    """

    def __init__(self, handler: Any) -> None:
        if not callable(getattr(handler, "attach", None)):
            raise TypeError(f"Attach needs a handler with a method attach, got {type(handler).__name__}")
        self.handler = handler

    def attach(self, engine: Engine) -> None:
        self.handler.attach(engine)
