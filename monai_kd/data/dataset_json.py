"""What ``dataset.json`` of an MSD-layout folder says about channels and classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["channel_names", "class_names", "label_names", "read_dataset_json"]


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Return the content of the file; empty if there is none, or if it holds no mapping.

    Raises:
        ValueError: the file is no JSON.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is no valid JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def channel_names(path: Path) -> list[str]:
    """Return the entries of ``modality`` in the order of the channels; empty if there are none.

    Raises:
        ValueError: it is neither a list nor a mapping of the channels 0, 1, ... to names.
    """
    names = read_dataset_json(path).get("modality")
    if not names:
        return []
    if isinstance(names, dict) and sorted(map(str, names)) == sorted(map(str, range(len(names)))):
        names = [names[channel] for channel in sorted(names, key=int)]
    if not isinstance(names, list):
        raise ValueError(f"'{path}': modality is {names!r}; it must name the channels 0, 1, ... or list their names")
    return [str(name) for name in names]


def label_names(path: Path) -> dict[int, str]:
    """Return the names in ``labels`` by value, from the form of MSD (value: name) or nnU-Net (name: value).

    Empty if there are none, or if a name stands for several values (regions).
    """
    labels = read_dataset_json(path).get("labels")
    if not isinstance(labels, dict):
        return {}
    if not all(str(value).isdigit() for value in labels):
        if not all(isinstance(value, (int, str)) for value in labels.values()):
            return {}
        labels = {value: name for name, value in labels.items()}
    return {int(value): str(name) for value, name in labels.items() if str(value).isdigit()}


def class_names(path: Path) -> list[str]:
    """Return the names of the classes 0, 1, ... in ``labels``; empty if there are none, or gaps between the values."""
    labels = label_names(path)
    return [labels[value] for value in range(len(labels))] if set(labels) == set(range(len(labels))) else []
