"""Which data sets a protocol keeps for testing only."""

from __future__ import annotations

import json
import os
from pathlib import Path

__all__ = ["target_dirs"]


def target_dirs(split_file: str) -> dict[str, str]:
    """Return the folders of a split file's ``targets``: data sets that are for testing only, by their name there.

    ``{"STARE": "/data/STARE"}`` for ``/data/splits/retina.json`` with ``"targets": ["STARE"]``: names are folders
    beside the one of the split file. Every case of a target counts: score its section ``all``.

    Raises:
        FileNotFoundError: the split file or a folder does not exist.
        ValueError: the file has no list ``targets``.
    """
    path = Path(split_file)
    if not path.is_file():
        raise FileNotFoundError(f"split_file '{path}' does not exist; targets are named in one")
    names = json.loads(path.read_text(encoding="utf-8")).get("targets")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"split_file '{path}' has no list 'targets' of folders, got {names!r}")
    found = {name: os.path.normpath(path.resolve().parent.parent / name) for name in names}
    if absent := [folder for folder in found.values() if not os.path.isdir(folder)]:
        raise FileNotFoundError(f"split_file '{path}' names the target '{absent[0]}', which is not a folder")
    return found
