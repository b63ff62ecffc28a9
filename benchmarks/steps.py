"""How long a training step of each distiller takes, beside the student alone.

    MONAI_KD_DATA=DIR python benchmarks/steps.py [--rounds 15] [--threads 2]
    python benchmarks/steps.py --phantoms --out FILE

For the student alone and every overlay in bundles/student/configs/distillers the trainer of the bundle's own
configuration is built, with its network, optimizer, inferer (bfloat16 where the CPU has it) and the handlers that the
overlay adds; logging, validation and schedules are left out, so that every term counts in full. All take the same batch
of the training data, step by step in turn (a, b, c, ..., a, b, c, ...), so that a drift of the machine's speed hits
all. The frozen teacher's forward is timed alone as well. Medians go to docs/results/zoo/steps.json, from which the
table of the distillers is made. Nothing is written into the bundle.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bundle_runs import REPOSITORY
from ignite.engine import Events
from measurements import add_data_options, check_data_options, data_overrides, publish
from monai.bundle import ConfigWorkflow, create_workflow
from monai.utils import set_determinism
from tqdm import tqdm

from monai_kd.distillers import Distiller
from monai_kd.engines import DistillationTrainer
from monai_kd.handlers.provenance import environment

STUDENT = REPOSITORY / "bundles" / "student"
ALONE = "baseline"
# what no step needs; stands before an overlay, which may add handlers
WITHOUT = {
    "train::handlers": [],
    "train::dataset::data": "$@split.cases('train')[:@batch_size]",
    "train::dataset::cache_rate": 0.0,
    "device": "cpu",
    "amp": False,
}
Step = Callable[[], Any]


def methods() -> dict[str, str]:
    """Return the configuration file of each method, the student alone first."""
    overlays = sorted((STUDENT / "configs" / "distillers").glob("*.yaml"))
    return {ALONE: "baseline.yaml", **{path.stem: f"distillers/{path.name}" for path in overlays}}


def build(file: str, work: Path, overrides: dict[str, Any]) -> ConfigWorkflow:
    """Initialize the workflow of one method as a training does."""
    without = work / "without.json"
    without.write_text(json.dumps(WITHOUT), encoding="utf-8")
    configs = STUDENT / "configs"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="parsing config_file")  # MONAI's hint to trust the source
        workflow = create_workflow(
            config_file=[str(configs / "train.yaml"), str(without), str(configs / file)],
            workflow_type="train",
            logging_file=False,
            bundle_root=str(STUDENT),
            run_dir=str(work / "run"),
            ckpt_dir=str(work / "models"),
            **overrides,
        )
    assert isinstance(workflow, ConfigWorkflow)
    return workflow


def make_step(workflow: ConfigWorkflow, batch: dict[str, Any]) -> Step:
    """Return one iteration of the trainer on a batch: forward, backward, optimizer, and the method's own handlers."""
    trainer = workflow.parser.get_parsed_content("train::trainer")
    assert isinstance(trainer, DistillationTrainer)
    trainer.state.iteration, trainer.state.epoch_length = 1, 1

    def step() -> None:
        trainer._iteration(trainer, batch)
        trainer.fire_event(Events.ITERATION_COMPLETED)

    return step


def make_teacher_forward(workflow: ConfigWorkflow, batch: dict[str, Any]) -> Step:
    """Return the forward of the frozen teacher alone, in the precision of the training."""
    trainer = workflow.parser.get_parsed_content("train::trainer")
    distiller = workflow.parser.get_parsed_content("distiller")
    assert isinstance(distiller, Distiller)
    teacher, image = distiller.networks["teacher"], batch["image"].as_tensor()

    def forward() -> None:
        with torch.no_grad():
            trainer.inferer(image, teacher)

    return forward


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Run all steps in turn, after two rounds to warm up; milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in tqdm(range(-2, rounds), desc="rounds", unit="round"):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= 0:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def row(times: list[float], alone: list[float]) -> dict[str, Any]:
    """Return the median of one method, and of its differences from the student alone in the same round."""
    pairs = list(zip(times, alone, strict=True))
    return {
        "ms": statistics.median(times),
        "extra_ms": statistics.median(own - other for own, other in pairs),
        "ratio": statistics.median(own / other for own, other in pairs),
    }


def measure(work: Path, overrides: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Build all methods and time them."""
    steps: dict[str, Step] = {}
    workflows: dict[str, ConfigWorkflow] = {}
    batch: dict[str, Any] = {}
    for name, file in tqdm(methods().items(), desc="building", unit="method"):
        workflows[name] = build(file, work, overrides)
        batch = batch or next(iter(workflows[name].parser.get_parsed_content("train::dataloader")))
        steps[name] = make_step(workflows[name], batch)
    teacher = "teacher forward"
    times = interleaved({**steps, teacher: make_teacher_forward(workflows["kd"], batch)}, rounds)
    parser = workflows[ALONE].parser
    bfloat16 = parser.get_parsed_content("cpu_bfloat16")
    for workflow in workflows.values():
        workflow.finalize()
    return {
        "rounds": rounds,
        "batch": list(batch["image"].shape),
        "precision": "bfloat16" if bfloat16 else "float32",
        "teacher_forward_ms": statistics.median(times[teacher]),
        "methods": {name: row(times[name], times[ALONE]) for name in steps},
    }


def report(record: dict[str, Any]) -> str:
    """Return the record as a small text table."""
    lines = [f"{'':<16}{'ms per step':>12}{'extra ms':>10}{'ratio':>7}"]
    for name, entry in record["methods"].items():
        lines.append(f"{name:<16}{entry['ms']:>12.1f}{entry['extra_ms']:>10.1f}{entry['ratio']:>7.2f}")
    return "\n".join([*lines, f"{'teacher forward':<16}{record['teacher_forward_ms']:>12.1f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    add_data_options(parser, REPOSITORY / "docs" / "results" / "zoo" / "steps.json")
    arguments = parser.parse_args()
    check_data_options(parser, arguments)
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)  # MONAI's summary of each workflow
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        found = measure(work, data_overrides(arguments.phantoms, work), arguments.rounds)
    set_determinism(None)
    record = {**environment("cpu", REPOSITORY), "data": "phantoms" if arguments.phantoms else "hippocampus", **found}
    publish(record, report(record), arguments.out)


if __name__ == "__main__":
    main()
