"""Time and memory of one training step of MTCM-KD, beside the step as its formulas read.

    python benchmarks/mtcm_step.py [--size 64] [--width 32] [--threads 2] [--rounds 3]
    python benchmarks/mtcm_step.py --quick [--out FILE]

Student and three teachers of the published width, one batch of one cube. The literal joint step
(benchmarks/literal_mtcm.py) against ours with teachers that learn, plain and staged, and with pretrained ones, each
also channels-last and with bfloat16.

Each measurement is a process of its own: a first step, whose gradients are held against those of the literal step, then
the timed one. All run in turn, round by round, so that a drift of the machine's speed hits all. Peak memory is the
largest resident size in both steps above that just before the first. All of it twice: glibc gives large tensors back to
the system when they are freed, which then clears them anew; or it keeps them (KEEP_MEMORY in bundle_runs.py, as our
experiments are run), which any step gains from, the literal one too.

Nothing is published if a gradient in float32 is another than the literal step's. bfloat16 on a CPU that does not
multiply it is emulated: measured once, in a first step and with memory kept, and said.

Beside the times stand the operations of a step, per second, and those of a plain matrix product: what no exact
acceleration gets around. The parts that ours does in another way are timed alone as well.

About 9 minutes per round at the default size on 2 cores, and 10 minutes once for emulated bfloat16; 6 GB of memory. The
record goes to docs/results/mtcm_step.json, from which the table in the documents is made. --quick takes tiny sizes and
writes nothing unless --out is given. Needs Linux, whose /proc can reset the high water mark of a process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bundle_runs import KEEP_MEMORY, REPOSITORY
from interleaved import TOLERANCE
from measurements import matrix_gflops, publish
from mtcm_parts import measure_parts
from mtcm_ways import LITERAL, WAYS, Case, Way, make_network, measure
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from monai_kd.handlers.provenance import environment, network_facts
from monai_kd.inferers import cpu_has_bfloat16
from monai_kd.visualize.mtcm_step import mtcm_step_markdown

RESULT = REPOSITORY / "docs" / "results" / "mtcm_step.json"
MEMORY: dict[str, Mapping[str, str]] = {"kept": KEEP_MEMORY, "returned": {}}
Trial = tuple[str, str]  # memory, way


# ---- one process ----------------------------------------------------------------------------------------------------


def run_here(trial: Sequence[str]) -> None:
    """Measure one way in this process, print the numbers, and write the gradients."""
    way, size, width, threads, warm_up, file = trial
    torch.set_num_threads(int(threads))
    found = measure(
        Case(int(size), int(width)), WAYS[way], warm_up == "True", lambda gradients: torch.save(gradients, file)
    )
    print(json.dumps(found._asdict()))


def in_fresh_process(case: Case, trial: Trial, threads: int, warm_up: bool, file: Path) -> dict[str, float]:
    memory, way = trial
    command = [sys.executable, __file__, "--one", way, *map(str, (*case, threads, warm_up, file))]
    inherited = {key: value for key, value in os.environ.items() if key not in KEEP_MEMORY}
    variables = {**inherited, **MEMORY[memory], "PYTHONPATH": str(REPOSITORY)}
    found = subprocess.run(command, capture_output=True, text=True, env=variables)
    if found.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {found.returncode}:\n{found.stderr}")
    numbers: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return numbers


# ---- all of them ----------------------------------------------------------------------------------------------------


def is_emulated(way: Way) -> bool:
    return way.bfloat16 and not cpu_has_bfloat16()


def trials(rounds: int) -> list[list[Trial]]:
    """Return what runs in each round; the literal step first, since the others are held against it."""
    real = [(memory, name) for memory in MEMORY for name, way in WAYS.items() if not is_emulated(way)]
    emulated = [("kept", name) for name, way in WAYS.items() if is_emulated(way) and not way.channels_last]
    return [real] * rounds + [emulated] * bool(emulated)


def gradient_error(file: Path, literal: Path) -> float:
    """Return the norm of the difference over the norm, of all weights that both have a gradient of."""
    got, expected = (torch.load(path, weights_only=True) for path in (file, literal))
    return _norm([value.double() - expected[name] for name, value in got.items()]) / _norm(
        [expected[name].double() for name in got]
    )


def _norm(values: list[Tensor]) -> float:
    return float(torch.stack([value.norm() for value in values]).norm())


def check_gradient(name: str, error: float) -> None:
    """Refuse a step that is another; bfloat16 rounds.

    Raises:
        RuntimeError: names the way and its error.
    """
    if not WAYS[name].bfloat16 and not error <= TOLERANCE:
        raise RuntimeError(
            f"{name}: the gradient differs from the literal step's by {error:.1e} relative, allowed {TOLERANCE:g}"
        )


def measure_steps(case: Case, threads: int, rounds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure all ways in both settings, memory first; the ratios are taken round by round."""
    plan = trials(rounds)
    found: dict[Trial, list[dict[str, float]]] = {trial: [] for one in plan for trial in one}
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, tqdm(total=sum(map(len, plan)), unit="process") as bar:
        literal = Path(folder) / "literal.pt"
        for trial in (trial for one in plan for trial in one):
            memory, name = trial
            bar.set_description(f"{name}, memory {memory}")
            file = literal if name == LITERAL else Path(folder) / "ours.pt"
            found[trial].append(in_fresh_process(case, trial, threads, not is_emulated(WAYS[name]), file))
            if name != LITERAL and name not in errors:
                errors[name] = gradient_error(file, literal)
                check_gradient(name, errors[name])
            bar.update()
    return {
        memory: {name: summary(found, memory, name, errors) for other, name in found if other == memory}
        for memory in MEMORY
    }


def summary(
    found: Mapping[Trial, list[dict[str, float]]], memory: str, name: str, errors: Mapping[str, float]
) -> dict[str, Any]:
    """Return medians over the rounds, and how many times as fast as the literal step in the same round."""
    own, literal = found[memory, name], found[memory, LITERAL]
    seconds = [each["seconds"] for each in own]
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(literal, own, strict=False)]
    return {
        "runs": len(own),
        "seconds": _spread(seconds),
        "cpu_seconds": _spread([each["cpu_seconds"] for each in own]),
        "peak_mb": _spread([each["peak_mb"] for each in own]),
        "speedup": _spread(ratios),
        "gradient_error": errors.get(name, 0.0),
        "emulated": is_emulated(WAYS[name]),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def operations(case: Case) -> dict[str, float]:
    """Return the floating-point operations of one network and of a step, in 10**9; no memory is touched."""
    with torch.device("meta"):
        network, image = make_network(case), torch.zeros(1, 1, *[case.size] * 3)
    with FlopCounterMode(display=False) as forward:
        output = network(image)
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    up, down = forward.get_total_flops() / 1e9, backward.get_total_flops() / 1e9
    return {"forward": up, "backward": down, "joint": 4 * (up + down), "pretrained": 4 * up + down}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="edge of the cube in voxels, a multiple of 8")
    parser.add_argument("--width", type=int, default=32, help="channels of the first level, a multiple of 4")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a trial of the machinery")
    parser.add_argument("--out", type=Path, help="the record; by default in docs/results")
    parser.add_argument("--one", nargs=6, metavar=("WAY", "SIZE", "WIDTH", "THREADS", "WARM_UP", "FILE"))
    arguments = parser.parse_args()
    if arguments.one:
        run_here(arguments.one)
        return
    if not Path("/proc/self/clear_refs").exists():
        parser.error("needs Linux: /proc/self/clear_refs resets the high water mark of a process")
    case = Case(16, 4) if arguments.quick else Case(arguments.size, arguments.width)
    rounds = 1 if arguments.quick else arguments.rounds
    out = arguments.out
    if out is None and not arguments.quick and case == Case(64, 32):
        out = RESULT
    torch.set_num_threads(arguments.threads)
    record = {
        **environment("cpu", REPOSITORY),
        **case._asdict(),
        "rounds": rounds,
        "load_before": os.getloadavg()[0],
        "bfloat16_in_hardware": cpu_has_bfloat16(),
        "network": network_facts(make_network(case)),
        "gflop": operations(case),
        "matrix_gflops": matrix_gflops(),
        "parts": measure_parts(case.size, max(9, rounds)),
        "memory": measure_steps(case, arguments.threads, rounds),
    }
    publish(record, mtcm_step_markdown(record), out)


if __name__ == "__main__":
    main()
