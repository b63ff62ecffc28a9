"""Files that are whole or not there, and the one process that writes them."""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed as dist

__all__ = ["is_main_process", "write_whole"]


def is_main_process() -> bool:
    """Tell whether this process writes: the only one, or the first of several."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all, also if the process or the machine stops meanwhile."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
