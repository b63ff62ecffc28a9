"""Rows of all processes, where there are several."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__: list[str] = []


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of all processes, this one's first, without a graph; the processes may have different numbers.

    Every process has to call it. Without a process group they are the rows themselves.

    Args:
        rows: ``(n, ...)``; all but ``n`` is the same everywhere.
    """
    world = process_count()
    if world == 1:
        return rows.detach()
    rank = dist.get_rank()
    counts = torch.zeros(world, dtype=torch.int64, device=rows.device)
    counts[rank] = len(rows)
    dist.all_reduce(counts)
    most = int(counts.max())
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    order = [rank, *(other for other in range(world) if other != rank)]
    return torch.cat([parts[other][: int(counts[other])] for other in order])


def process_count() -> int:
    """Return how many processes work together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without a graph. Every process has to call it."""
    total = value.detach().clone()
    if process_count() > 1:
        dist.all_reduce(total)
    return total
