"""The variants part of ``benchmarks/depth_shift.py``: faster ways to run our network, and what they change."""

from __future__ import annotations

import copy
import multiprocessing
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from depth_shift_trials import PASSES, Skipped, Trial, Variant, Volume, as_variant, make_trial
from interleaved import Times, interleave, medians, paired, relative_error
from monai.utils import optional_import
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

PLAIN = "float32"
# blocks of any size come from the heap, which is not given back: no page is mapped anew for large tensors
RETENTION = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**30), "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30)}
SETTLING = 10  # runs


class Sizes(NamedTuple):
    """A volume for all variants, a deep one for the forward pass, and the slices of its chunks."""

    volume: Volume
    deep: Volume
    chunks: tuple[int, ...]


# 16 channels of 128 x 128 are 1 MiB a slice: with 8 slices on both sides, chunks of 15 keep every convolution's tensors
# below the 32 MiB from which glibc maps fresh pages for each
FULL = Sizes(Volume(24, 128), Volume(145, 128), (15, 64))
QUICK = Sizes(Volume(4, 32), Volume(40, 16), (15,))


# ---- ways -----------------------------------------------------------------------------------------------------------


def bfloat16(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a call under autocast, as :class:`monai_kd.inferers.AutocastInferer` makes it."""

    def call(volume: Tensor) -> Tensor:
        with torch.autocast(volume.device.type, torch.bfloat16):
            result: Tensor = network(volume)
        return result

    return call


def compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the network as one compiled graph, without results of earlier compilations."""
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    if not any(name and shutil.which(name) for name in compilers):
        raise Skipped("no C++ compiler: torch.compile needs one, e.g. g++")
    torch.compiler.reset()
    torch._inductor.config.force_disable_caches = True
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")  # by the line above
    return torch.compile(network, fullgraph=True)


def with_folded_norms(network: nn.Module) -> nn.Module:
    """Return a copy for inference in which each convolution does the work of the batch norm behind it."""
    folded = copy.deepcopy(network).eval()
    for unit in folded.modules():
        if isinstance(unit, nn.Sequential) and len(unit) == 3 and isinstance(unit[1], nn.BatchNorm2d):
            unit[0] = fuse_conv_bn_eval(unit[0], unit[1])
            unit[1] = nn.Identity()
    left = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise RuntimeError(f"batch norms that were not folded: {', '.join(left)}")
    return folded


def inferer(name: str, **settings: Any) -> Callable[[nn.Module], Callable[[Tensor], Tensor]]:
    """Return what makes a call through one of our inferers."""
    found, exists = optional_import("monai_kd.inferers", name=name)
    if not exists:
        raise Skipped(f"monai_kd.inferers has no {name}")
    made = found(**settings)
    return lambda network: lambda volume: made(volume, network)


# ---- a process of its own -------------------------------------------------------------------------------------------


def _serve(connection: Connection, size: Volume, passes: tuple[str, ...], threads: int) -> None:
    """Run float32 on demand: asked for the result, the time or the page faults of a pass."""
    torch.set_num_threads(threads)
    for which in passes:  # the heap grows for some runs until all that they take is found free again
        settling = as_variant(make_trial(size, "cpu"), "cpu", passes).timers[which]
        for _ in range(SETTLING):
            settling()
    variant = as_variant(make_trial(size, "cpu"), "cpu", passes)
    asked_for: dict[str, Callable[[str], Any]] = {
        "result": lambda which: variant.results[which]().numpy(),
        "time": lambda which: tuple(variant.timers[which]()),
        "faults": lambda which: variant.faults[which](),
    }
    while True:  # until it is terminated
        what, which = connection.recv()
        connection.send(asked_for[what](which))


def retaining(size: Volume, device: str, passes: tuple[str, ...]) -> Variant:
    """Return float32 in a process whose memory allocator gives nothing back; glibc reads its settings at the start."""
    if torch.device(device).type != "cpu":
        raise Skipped(f"it concerns the memory of the CPU, not that of {device}")
    if platform.libc_ver()[0] != "glibc":
        raise Skipped("the settings are those of glibc, which this C library is not")
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(theirs, size, passes, torch.get_num_threads()), daemon=True
    )
    before = {name: os.environ.get(name) for name in RETENTION}
    os.environ.update(RETENTION)
    try:
        process.start()
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})
        for name in [name for name, value in before.items() if value is None]:
            del os.environ[name]
    theirs.close()  # so that an end of the process is noticed

    def ask(what: str, which: str) -> Any:
        ours.send((what, which))
        return ours.recv()

    def close() -> None:
        process.terminate()
        process.join()

    return Variant(
        {which: lambda which=which: torch.from_numpy(np.array(ask("result", which))) for which in passes},
        {which: lambda which=which: Times(*ask("time", which)) for which in passes},
        {which: lambda which=which: ask("faults", which) for which in passes},
        close,
    )


# ---- measuring ------------------------------------------------------------------------------------------------------


def ways(sizes: Sizes, device: str) -> dict[str, Callable[[], Variant]]:
    """Return the variants of the first volume, each made when it is called; float32 first."""
    size = sizes.volume

    def folded() -> Variant:
        plain = make_trial(size, device)
        return as_variant(Trial(with_folded_norms(plain.network), plain.volume), device, ("forward",))

    return {
        PLAIN: lambda: as_variant(make_trial(size, device), device),
        "bfloat16 autocast": lambda: as_variant(make_trial(size, device, bfloat16), device),
        "torch.compile": lambda: as_variant(make_trial(size, device, compiled), device),
        "memory retained": lambda: retaining(size, device, PASSES),
        "batch norms folded": folded,
    }


def deep_ways(sizes: Sizes, device: str) -> dict[str, Callable[[], Variant]]:
    """Return the variants of the deep volume, forward only."""

    def through(name: str, **settings: Any) -> Variant:
        return as_variant(make_trial(sizes.deep, device, inferer(name, **settings)), device, ("forward",))

    found: dict[str, Callable[[], Variant]] = {
        PLAIN: lambda: as_variant(make_trial(sizes.deep, device), device, ("forward",)),
        "memory retained": lambda: retaining(sizes.deep, device, ("forward",)),
    }
    for chunk in sizes.chunks:
        found[f"chunks of {chunk} slices"] = lambda chunk=chunk: through("ChunkedDepthInferer", chunk=chunk)
    return {**found, "slice by slice": lambda: through("StreamingDepthInferer")}


def measure_variants(sizes: Sizes, rounds: int, device: str) -> list[dict[str, Any]]:
    """Compare the variants with float32 and time all in turn; returns one entry for each of the two volumes."""
    return [
        _measured(sizes.volume, ways(sizes, device), rounds),
        _measured(sizes.deep, deep_ways(sizes, device), rounds),
    ]


def _measured(size: Volume, makers: dict[str, Callable[[], Variant]], rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    variants: dict[str, Variant] = {}
    expected: dict[str, Tensor] = {}  # of float32, which comes first
    try:
        for name, make in makers.items():
            try:
                variants[name] = make()
                found[name] = _compared(variants[name], expected)
            except (Skipped, torch._dynamo.exc.TorchDynamoException) as error:
                variants.pop(name, None)
                found[name] = {"skipped": str(error).strip().splitlines()[0]}
                print(f"SKIPPED {name}: {found[name]['skipped']}", file=sys.stderr)
        for which in variants[PLAIN].timers:
            timers = {name: each.timers[which] for name, each in variants.items() if which in each.timers}
            times = interleave(timers, rounds, f"variants, {size.slices} slices, {which}")
            for name, own in times.items():
                faults = variants[name].faults[which]()
                found[name][which] |= {**medians(own), "time_ratio": paired(own, times[PLAIN]), "page_faults": faults}
    finally:
        for variant in variants.values():
            variant.close()
    return {"shape": list(size.shape), "variants": found}


def _compared(variant: Variant, expected: dict[str, Tensor]) -> dict[str, Any]:
    """Return error and seconds of the first call of each pass; it is in the first that a compiler compiles."""
    found = {}
    for which, result in variant.results.items():
        start = time.perf_counter()
        got = result()
        first_call_s = time.perf_counter() - start
        error = relative_error(got, expected.setdefault(which, got))
        found[which] = {"error": error, "first_call_s": first_call_s}
    return found
