"""Rows of all processes, where there are several."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__: list[str] = []


def gathered(rows: Tensor) -> tuple[Tensor, slice]:
    """Return the rows of all processes in their order, without a graph, and which of them are this process's.

    The processes may have different numbers of rows. Every process has to call it. Without a process group they are the
    rows themselves.

    Args:
        rows: ``(n, ...)``; all but ``n`` is the same everywhere.
    """
    world = process_count()
    if world == 1:
        return rows.detach(), slice(0, len(rows))
    rank = dist.get_rank()
    counts = torch.zeros(world, dtype=torch.int64, device=rows.device)
    counts[rank] = len(rows)
    dist.all_reduce(counts)
    numbers = counts.tolist()
    padded = rows.new_zeros(max(numbers), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    start = sum(numbers[:rank])
    together = torch.cat([part[:count] for part, count in zip(parts, numbers, strict=True)])
    return together, slice(start, start + len(rows))


def process_count() -> int:
    """Return how many processes work together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without a graph. Every process has to call it."""
    total = value.detach().clone()
    if process_count() > 1:
        dist.all_reduce(total)
    return total
