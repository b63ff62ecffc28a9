"""Run a function in two processes of one gloo group, as DDP on CPUs does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["in_two_processes"]


def in_two_processes(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Return what ``work(rank)`` returns in each process; a function of a module, whose DDP ends with it."""
    torch.multiprocessing.spawn(_one_process, (work, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def _one_process(rank: int, work: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    torch.save(work(rank), f"{folder}/{rank}.pt")
    dist.barrier()  # gloo's threads let go of earlier work while this one waits
    dist.destroy_process_group()
