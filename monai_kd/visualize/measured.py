"""Read a benchmark's record and make its part of a document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monai_kd.visualize.tables import NO_RESULTS

__all__ = ["measured_markdown"]


def measured_markdown(path: str | Path, of: str, make: Callable[[Any], str]) -> str:
    """Return what ``make`` writes of a record; a sentence if there is none.

    Args:
        path: the JSON file.
        of: what was measured, for the message.
        make: turns the content of the record into Markdown.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    path = Path(path)
    if not path.is_file():
        return NO_RESULTS
    try:
        return make(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{path}' is no record of {of}: {type(error).__name__}: {error}") from error
