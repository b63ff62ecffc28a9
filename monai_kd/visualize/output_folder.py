"""A folder of results that is whole or not there, and that replaces nothing but an older one of its kind."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["RECORD", "whole_folder"]

RECORD = "view.json"  # lists under "files" what the folder holds


@contextmanager
def whole_folder(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a draft folder, renamed to ``out`` at the end; on any failure what stood there stays.

    Args:
        out: the folder; it must not exist, or be empty.
        overwrite: True replaces an older output: a folder whose record (:data:`RECORD`) lists all that it holds.

    Raises:
        FileExistsError: something stands there that is not replaced.
        TypeError: ``overwrite`` is not True or False.
    """
    target = Path(out).resolve()
    if not isinstance(overwrite, bool):
        raise TypeError(f"overwrite is {overwrite!r}; it must be True or False")
    _refuse_existing(target, out, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        draft, aside = Path(temporary) / target.name, Path(temporary) / "replaced"
        draft.mkdir()
        yield draft
        if target.exists():
            os.replace(target, aside)
        try:
            os.replace(draft, target)
        except OSError:
            if aside.exists():
                os.replace(aside, target)
            raise


def _refuse_existing(target: Path, out: str | Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir():
        raise FileExistsError(f"'{out}' is a file; give the name of a folder")
    if not overwrite:
        raise FileExistsError(
            f"'{out}' exists and is not empty; choose another name, or replace an older output by --overwrite True"
        )
    listed = _listed_files(target / RECORD)
    held = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if strange := sorted(held - listed):
        raise FileExistsError(f"'{out}' holds '{strange[0]}', which the viewer did not write; it is not overwritten")


def _listed_files(record: Path) -> set[str]:
    try:
        return {RECORD, *json.loads(record.read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
