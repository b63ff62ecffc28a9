"""export.json: what the exports of a folder were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["RECORD", "read_record", "recorded_export"]

RECORD = "export.json"
_KEYS = {"files", "weights_sha256", "parameters"}


def read_record(folder: Path) -> dict[str, Any]:
    """Return a folder's export.json, one entry per format; empty if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is no JSON ({error}); delete it and export again") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"'{path}' holds a {type(content).__name__}, not entries by format; delete it and export again"
        )
    for name, entry in content.items():
        if not isinstance(entry, dict) or not entry.keys() >= _KEYS or not entry["files"]:
            raise ValueError(f"the entry '{name}' of '{path}' is incomplete; delete the file and export again")
    return content


def recorded_export(file: Path) -> dict[str, Any] | None:
    """Return the entry of an export in the export.json beside it; None if there is none.

    Raises:
        ValueError: the record is damaged.
    """
    entries = read_record(file.parent).values()
    return next((entry for entry in entries if entry["files"][0]["name"] == file.name), None)
