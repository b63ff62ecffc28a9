"""Batches with a fixed number of labelled cases, and unlabelled ones on top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

__all__ = ["MixedSampler"]


class MixedSampler(Sampler[int]):
    """Draw labelled cases in turn, and behind each so many unlabelled ones.

    A loader whose batch is ``1 + unlabelled`` times as large then has as many labelled cases in each batch as one
    without unlabelled cases, and as many batches: what differs is what is added. Each kind is gone through in random
    order, again and again, and which labelled cases come when does not depend on ``unlabelled``.

    Args:
        cases: the data list, with the flag ``labelled`` (:func:`labelled_part`); without it a case is labelled.
        num_samples: labelled cases of an epoch.
        unlabelled: cases without labels behind each.
        seed: of both orders.
        num_replicas: processes that share out the cases of an epoch, rounded up so that each has as many.
        rank: of this process, from 0.

    Raises:
        ValueError: a number out of range, no labelled case, or unlabelled ones asked for and none there.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        num_samples: int,
        unlabelled: int = 0,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        least = {"num_samples": 1, "unlabelled": 0, "num_replicas": 1, "rank": 0}
        given = {"num_samples": num_samples, "unlabelled": unlabelled, "num_replicas": num_replicas, "rank": rank}
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least[name]:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least[name]}")
        if rank >= num_replicas:
            raise ValueError(f"rank is {rank} of {num_replicas} processes; ranks count from 0")
        self.labelled = [index for index, case in enumerate(cases) if case.get("labelled", 1)]
        self.others = [index for index, case in enumerate(cases) if not case.get("labelled", 1)]
        if not self.labelled:
            raise ValueError("none of the training cases is labelled")
        if unlabelled and not self.others:
            raise ValueError(
                f"unlabelled is {unlabelled}, and every training case is labelled; keep the others (keep_unlabelled), "
                "or set it to 0"
            )
        self.num_replicas, self.rank = num_replicas, rank
        self.num_samples = -(-num_samples // num_replicas)  # of this process
        self.unlabelled, self.seed = unlabelled, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_samples * (1 + self.unlabelled)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; a resumed training goes on with it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        total = self.num_samples * self.num_replicas
        first = _order(self.labelled, total, (self.seed, self.epoch, 0))
        more = _order(self.others, total * self.unlabelled, (self.seed, self.epoch, 1))
        self.epoch += 1
        for number in range(self.rank, total, self.num_replicas):
            yield first[number]
            yield from more[number * self.unlabelled : (number + 1) * self.unlabelled]


def _order(indices: Sequence[int], count: int, seeds: tuple[int, int, int]) -> list[int]:
    """Return so many of the indices, each before any comes again."""
    if not count:
        return []
    seed, epoch, kind = seeds
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) * 2 + kind)
    rounds = -(-count // len(indices))
    places = torch.cat([torch.randperm(len(indices), generator=generator) for _ in range(rounds)])
    return [indices[place] for place in places[:count].tolist()]
