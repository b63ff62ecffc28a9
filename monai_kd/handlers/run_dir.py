"""The folder of a run: its name, its lock, and what an earlier run left there."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from monai_kd.handlers.files import is_main_process

__all__ = ["STATE_DIR", "clear_run_dir", "new_run_name", "open_run_dir", "require_free_space", "run_name"]

STATE_DIR = "state"  # below the run folder: what a training needs to go on
LOCK_FILE, _RECORD = ".lock", "run.json"
_RUN_FILES = (_RECORD, "split.json", "metrics.csv", "*.pt", "events.out.tfevents.*", STATE_DIR)  # what runs write
_logger = logging.getLogger("monai_kd")
held_locks: dict[Path, IO[str]] = {}  # held until the process ends
_found: dict[Path, list[Path]] = {}  # what an earlier run left in a folder that was opened


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
    records = Path(runs_dir).glob(f"{method}-seed{seed}-*/{_RECORD}")
    found = [path.parent for path in records if not _finished(path.parent)]
    if not found:
        raise FileNotFoundError(
            f"--resume True: no interrupted run '{method}-seed{seed}-...' in '{runs_dir}'; "
            "name its folder by --run_dir, or start without --resume"
        )
    return max(found, key=lambda path: path.name).name


def open_run_dir(run_dir: str, resume: bool = False, kind: str = "training") -> None:
    """Make a run's folder and lock it against other processes; refuse a folder that is something else.

    Nothing in it changes yet, except that remains of interrupted writing go: see :func:`clear_run_dir`.

    Args:
        run_dir: folder of the run.
        resume: the folder holds an interrupted run that is to go on.
        kind: ``training`` or ``evaluation``; a folder keeps to one kind.

    Raises:
        TypeError: ``resume`` is not a bool.
        FileNotFoundError: ``resume``, and the folder holds no run.
        FileExistsError: the folder is a bundle's, holds a run of the other kind, or weights that are not a run's; or
            ``resume``, and the run in it is finished; or another process works in it.
    """
    if not isinstance(resume, bool):
        raise TypeError(f"resume is {resume!r}; it must be True or False")
    folder = Path(run_dir)
    if resume:
        _require_interrupted(folder)
    _refuse_foreign(folder, kind)
    if is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        lock_folder(folder)
        for draft in (*folder.glob(".*.tmp"), *(folder / STATE_DIR).glob(".*.tmp")):
            draft.unlink(missing_ok=True)
        _found[folder.resolve()] = [path for pattern in _RUN_FILES for path in sorted(folder.glob(pattern))]


def clear_run_dir(run_dir: str, resume: bool = False) -> None:
    """Move what :func:`open_run_dir` found of an earlier run to ``<run_dir>/previous/<time>/``, unless it is to go on.

    Call it when all else has been checked, so that a mistake costs no earlier result. Files that are not a run's stay.
    """
    if is_main_process() and not resume:
        _set_aside(Path(run_dir))
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


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record in a folder; empty if there is none, or if it was torn by a stop of the machine."""
    path = folder / _RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        _logger.warning("'%s' cannot be read and is taken for that of an interrupted run", path)
        return {}
    return content if isinstance(content, dict) else {}


def _finished(folder: Path) -> bool:
    return read_record(folder).get("status") == "finished"


def _require_interrupted(folder: Path) -> None:
    if not (folder / _RECORD).is_file() and not (folder / LOCK_FILE).is_file():
        raise FileNotFoundError(f"--resume True: '{folder}' holds no run (no run.json); start without --resume")
    if _finished(folder):
        raise FileExistsError(
            f"--resume True: the run in '{folder}' is finished; there is nothing to resume, its weights are "
            f"'{folder / 'model.pt'}'"
        )


def _refuse_foreign(folder: Path, kind: str) -> None:
    if (folder / "configs" / "metadata.json").is_file():
        raise FileExistsError(
            f"run_dir '{folder}' is a bundle's folder; give the run a folder of its own, such as runs/x"
        )
    found = read_record(folder).get("kind", kind)
    if found != kind:
        raise FileExistsError(f"run_dir '{folder}' holds a run of kind '{found}'; give this {kind} another run_dir")
    marked = any((folder / name).exists() for name in (_RECORD, LOCK_FILE, "previous"))
    if not marked and any(folder.glob("*.pt")):
        raise FileExistsError(
            f"run_dir '{folder}' holds weights but no run.json, so they are not a run's; give the run a folder of its "
            "own"
        )


def lock_folder(folder: Path) -> None:
    """Hold a lock that the system drops when this process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    path = (folder / LOCK_FILE).resolve()
    if path in held_locks:
        return
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the process lives)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # some network disks have no locks
            _logger.warning("'%s' cannot be locked (%s): see to it that no other run uses it", folder, error)
            return
        raise FileExistsError(f"another process works in '{folder}'; wait for it or choose another --run_dir") from None
    held_locks[path] = file


def _set_aside(folder: Path) -> None:
    left = [path for path in _found.pop(folder.resolve(), []) if path.exists()]
    if not left:
        return
    aside = folder / "previous" / f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    aside.mkdir(parents=True)
    for path in left:
        os.replace(path, aside / path.name)
    _logger.info("the earlier run in this folder was moved to %s", aside)
