"""The folder of a run: its name, its lock, and what an earlier run left there."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import IO

import torch.distributed as dist

__all__ = ["STATE_DIR", "new_run_name", "open_run_dir", "require_free_space", "run_name"]

STATE_DIR = "state"  # below the run folder: what a training needs to go on
_LOCK = ".lock"
_logger = logging.getLogger("monai_kd")
_locks: dict[Path, IO[str]] = {}  # held until the process ends


def new_run_name(method: str, seed: int) -> str:
    """Return a name for a run folder such as ``distilled-seed0-20261121-104400``; all processes get the same one."""
    names = [f"{method}-seed{seed}-{datetime.now():%Y%m%d-%H%M%S}"]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(names)  # the processes' clocks may stand on two sides of a second
    return names[0]


def run_name(method: str, seed: int, runs_dir: str, resume: bool = False) -> str:
    """Return the name of the run to go on with if ``resume``, else a new one.

    The run to go on with is the newest below ``runs_dir`` of this method and seed whose record is not finished.

    Raises:
        FileNotFoundError: there is no such run.
    """
    if not resume:
        return new_run_name(method, seed)
    found = [path.parent for path in Path(runs_dir).glob(f"{method}-seed{seed}-*/run.json") if not _finished(path)]
    if not found:
        raise FileNotFoundError(
            f"--resume True: no interrupted run '{method}-seed{seed}-...' in '{runs_dir}'; "
            "name its folder by --run_dir, or start without --resume"
        )
    return max(found, key=lambda path: path.name).name


def open_run_dir(run_dir: str, resume: bool = False) -> None:
    """Make a run's folder, lock it against other processes, and keep what an earlier run left in it.

    Without ``resume`` everything in the folder is moved to ``<run_dir>/previous/<time>/``.

    Raises:
        TypeError: ``resume`` is not a bool.
        FileNotFoundError: ``resume``, and the folder holds no run.
        FileExistsError: ``resume``, and the run in it is finished; or another process trains in it.
    """
    if not isinstance(resume, bool):
        raise TypeError(f"resume is {resume!r}; it must be True or False")
    folder, record = Path(run_dir), Path(run_dir) / "run.json"
    if resume and not record.is_file():
        raise FileNotFoundError(f"--resume True: '{folder}' holds no run (no run.json); start without --resume")
    if resume and _finished(record):
        raise FileExistsError(f"--resume True: the run in '{folder}' is finished; there is nothing to resume")
    if not (dist.is_available() and dist.is_initialized() and dist.get_rank() != 0):
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
        if not resume:
            _set_aside(folder)
    if dist.is_available() and dist.is_initialized():
        dist.barrier()  # nobody writes before the folder is clear


def require_free_space(folder: str | os.PathLike[str], num_bytes: int) -> None:
    """Raise OSError (ENOSPC) if the disk that holds a folder has less free space than a run will write."""
    path = Path(folder).resolve()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < num_bytes:
        raise OSError(
            errno.ENOSPC,
            f"a run writes about {num_bytes / 1e6:.0f} MB (weights and states), and the disk has {free / 1e6:.0f} MB "
            "free; make room, or choose another disk by --run_dir",
            str(folder),
        )


def _finished(record: Path) -> bool:
    return json.loads(record.read_text(encoding="utf-8")).get("status") == "finished"


def _lock(folder: Path) -> None:
    """Hold a lock that the system drops when this process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    path = (folder / _LOCK).resolve()
    if path in _locks:
        return
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the process lives)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise FileExistsError(
            f"another process trains in '{folder}'; wait for it or choose another --run_dir"
        ) from error
    _locks[path] = file


def _set_aside(folder: Path) -> None:
    left = [path for path in folder.iterdir() if path.name not in (_LOCK, "previous")]
    if not left:
        return
    aside = folder / "previous" / f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    aside.mkdir(parents=True)
    for path in left:
        os.replace(path, aside / path.name)
    _logger.info("the earlier run in this folder was moved to %s", aside)
