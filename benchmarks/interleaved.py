"""Time several things in turn (a, b, c, a, b, c, ...), so that a drift of the machine's speed hits all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

TOLERANCE = 1e-4  # of values and gradients that must be the same, relative


class Times(NamedTuple):
    """Milliseconds of one run: on the clock, and of the process's threads, divided by their number."""

    wall: float
    cpu: float


Timer = Callable[[], Times]


def timer(run: Callable[[Any], Any], prepare: Callable[[], Any], device: str) -> Timer:
    """Return what times ``run`` on what ``prepare`` gives, which takes no part in it."""
    cuda = torch.device(device).type == "cuda"

    def timed() -> Times:
        given = prepare()
        if cuda:
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        result = run(given)
        if cuda:
            torch.cuda.synchronize()
        times = Times(1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu) / torch.get_num_threads())
        del result  # not earlier: to free it is no part of the run
        return times

    return timed


def interleave(timers: dict[str, Timer], rounds: int, title: str) -> dict[str, list[Times]]:
    """Run all in turn, after one round to warm up."""
    times: dict[str, list[Times]] = {name: [] for name in timers}
    for number in tqdm(range(-1, rounds), desc=title, unit="round"):
        for name, timed in timers.items():
            found = timed()
            if number >= 0:
                times[name].append(found)
    return times


def medians(times: list[Times]) -> dict[str, float]:
    """Return the medians, in milliseconds."""
    return {f"{kind}_ms": float(np.median([getattr(each, kind) for each in times])) for kind in Times._fields}


def paired(over: list[Times], under: list[Times]) -> dict[str, dict[str, float]]:
    """Return the ratio of two, round by round: median, and 10th and 90th percentile."""
    found = {}
    for kind in Times._fields:
        ratios = [getattr(a, kind) / getattr(b, kind) for a, b in zip(over, under, strict=True)]
        low, median, high = map(float, np.percentile(ratios, [10, 50, 90]))
        found[kind] = {"median": median, "low": low, "high": high}
    return found


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def check_same(what: str, got: Tensor, expected: Tensor) -> None:
    """Refuse to time things that are not the same."""
    error = relative_error(got, expected) if got.shape == expected.shape else math.inf
    if not error <= TOLERANCE:
        raise RuntimeError(f"{what} differs from the literal form's by {error:.1e} relative, allowed {TOLERANCE}")
