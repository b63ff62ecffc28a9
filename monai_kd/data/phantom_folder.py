"""A folder of phantoms is marked as ours, so that phantoms replace phantoms and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

__all__ = ["claim_folder"]

_MARK = "phantoms.json"  # tells our folders from others


def claim_folder(folder: Path, files: Sequence[str], made_by: str) -> None:
    """Mark a folder as ours before anything is written; removes earlier phantoms, refuses anything else.

    Args:
        folder: created if missing.
        files: relative paths that will be written.
        made_by: module that writes them; only its own phantoms are replaced.

    Raises:
        FileExistsError: it is a file, or holds something that ``made_by`` did not write.
    """
    if folder.is_file():
        raise FileExistsError(f"output_dir '{folder}' is a file; give a new or empty directory")
    mark = folder / _MARK
    if folder.is_dir() and any(folder.iterdir()):
        try:
            content = json.loads(mark.read_text(encoding="utf-8"))
            stale = [folder / path for path in content["files"]] if content["made_by"] == made_by else None
        except (OSError, ValueError, KeyError, TypeError):
            stale = None
        if stale is None:
            raise FileExistsError(
                f"output_dir '{folder}' is not empty and holds no phantoms of {made_by}; give a new or empty directory"
            )
        _remove(folder, stale)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps({"made_by": made_by, "files": list(files)}, indent=1) + "\n", encoding="utf-8")


def _remove(folder: Path, stale: Sequence[Path]) -> None:
    """Remove files and the folders that they leave empty."""
    for path in stale:
        path.unlink(missing_ok=True)
    parents = {parent for path in stale for parent in path.parents if folder in parent.parents}
    for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
