"""Let several handlers see the error that ends an engine."""

from __future__ import annotations

from collections.abc import Callable

from ignite.engine import Engine, Events

__all__ = ["on_failure"]


def on_failure(engine: Engine, action: Callable[[Engine, BaseException], None]) -> None:
    """Call ``action(engine, error)`` when the engine fails; after the last such action the error is raised again.

    An ignite handler that raises by itself keeps the ones behind it from being called, and one that does not raise
    swallows the error.
    """
    if engine.has_event_handler(_raise_again, Events.EXCEPTION_RAISED):
        engine.remove_event_handler(_raise_again, Events.EXCEPTION_RAISED)
    engine.add_event_handler(Events.EXCEPTION_RAISED, action)
    engine.add_event_handler(Events.EXCEPTION_RAISED, _raise_again)


def _raise_again(_engine: Engine, error: BaseException) -> None:
    raise error
