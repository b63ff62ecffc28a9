"""A training that is killed at random points and resumed ends with the weights of one that nothing interrupted."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import create_workflow

from monai_kd.engines import DistillationTrainer

KILLS, EPOCHS, BATCHES = 5, 8, 4  # 4 training phantoms, one a batch
SETTINGS = {
    "split_file": "",
    "seed": 3,
    "epochs": EPOCHS,
    "batch_size": 1,
    "patch_size": [16, 24, 16],
    "roi_size": [16, 24, 16],
    "cpu_bfloat16": False,
    "network_def::dropout": 0.1,
}


def train(bundle: str, log: str, weights: str, overrides: dict[str, Any], kill: tuple[int, float] | None) -> None:
    """In a process of its own: one `monai.bundle run`, and the last epoch's weights to a file.

    ``kill`` is an iteration and the seconds after its start when the process gets SIGKILL.
    """
    torch.set_num_threads(1)
    if kill is not None:
        original = DistillationTrainer.run

        def run(trainer: DistillationTrainer) -> None:
            trainer.add_event_handler(Events.ITERATION_STARTED(once=kill[0]), kill_soon, kill[1])
            original(trainer)

        DistillationTrainer.run = run  # type: ignore[method-assign]
    file = open(log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (a traceback goes there after this function)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file  # pytest's own are elsewhere
    flow = create_workflow(
        config_file=f"{bundle}/configs/train.yaml", workflow_type="train", bundle_root=bundle, **overrides
    )
    flow.run()
    network: Any = flow.parser.get_parsed_content("network")
    torch.save(network.state_dict(), weights)


def kill_soon(_engine: Engine, delay_s: float) -> None:
    threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()


class Home:
    """Where the runs of one variant are."""

    def __init__(self, root: Path, bundle: Path, overrides: dict[str, Any]) -> None:
        self.root, self.bundle, self.overrides = root, bundle, overrides

    def start(
        self, name: str, resume: bool = False, kill: tuple[int, float] | None = None
    ) -> multiprocessing.process.BaseProcess:
        places = {"run_dir": str(self.root / name), "ckpt_dir": str(self.root / f"{name}-models"), "resume": resume}
        arguments = (str(self.bundle), str(self.log(name)), str(self.weights(name)), {**self.overrides, **places}, kill)
        process = multiprocessing.get_context("fork").Process(target=train, args=arguments)
        process.start()
        return process

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def weights(self, name: str) -> Path:
        return self.root / f"{name}.pt"

    def record(self, name: str) -> dict[str, Any]:
        return json.loads((self.root / name / "run.json").read_text())


def killed_at_random(home: Home, name: str) -> list[int]:
    """Train with kill -9 at five random points and a resume after each; return the epochs it resumed after."""
    chance = random.Random()
    points = sorted(chance.sample(range(2, EPOCHS * BATCHES), KILLS))
    for number, iteration in enumerate(points):
        process = home.start(name, resume=number > 0, kill=(iteration, chance.uniform(0.0, 0.1)))
        process.join()
        assert process.exitcode == -signal.SIGKILL, home.log(name).read_text()[-2000:]
    process = home.start(name, resume=True)
    process.join()
    text = home.log(name).read_text()
    assert process.exitcode == 0, text[-2000:]
    print(f"\nkilled in the iterations {points} of {EPOCHS * BATCHES}")
    print("\n".join(line for line in text.splitlines() if "resume: going" in line or "starts at epoch 1" in line))
    return [int(epoch) for epoch in re.findall(rf"resume: going on after epoch (\d+) of {EPOCHS}", text)]


@pytest.mark.slow
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_killed_and_resumed_training_has_bit_equal_weights(
    repository, phantoms, tiny, tiny_teacher, tmp_path, accumulation_steps
):
    overrides = {**SETTINGS, **tiny["student"], "dataset_dir": str(phantoms), "teacher_root": str(tiny_teacher)}
    overrides["train::trainer::accumulation_steps"] = accumulation_steps
    home = Home(tmp_path, repository / "bundles" / "student", overrides)
    whole = home.start("whole")
    whole.join()
    assert whole.exitcode == 0, home.log("whole").read_text()[-2000:]
    resumed = killed_at_random(home, "killed")
    assert resumed == sorted(resumed)
    expected, got = (torch.load(home.weights(name), weights_only=True) for name in ("whole", "killed"))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    records = [home.record(name) for name in ("whole", "killed")]
    for name in ("curves", "best_epoch", "best_metric", "config_hash", "schedule_hash"):
        assert records[0][name] == records[1][name], name
    assert records[0]["network"]["weights_sha256"] == records[1]["network"]["weights_sha256"]
    assert [item["after_epoch"] for item in records[1]["resumed"]] == resumed
    assert "resumed" not in records[0]


@pytest.mark.slow
def test_resume_refuses_another_configuration(repository, phantoms, tiny, tiny_teacher, tmp_path):
    overrides = {**SETTINGS, **tiny["student"], "dataset_dir": str(phantoms), "teacher_root": str(tiny_teacher)}
    home = Home(tmp_path, repository / "bundles" / "student", overrides)
    process = home.start("run")
    while not list((tmp_path / "run" / "state").glob("epoch*.pt")):
        assert process.is_alive(), home.log("run").read_text()[-2000:]
        time.sleep(0.01)
    process.kill()
    process.join()
    before = home.record("run")
    home.overrides["learning_rate"] = 0.5
    home.overrides["network_def::channels"] = [4, 8, 8]  # weights that would not fit
    process = home.start("run", resume=True)
    process.join()
    assert process.exitcode == 1
    text = home.log("run").read_text()
    assert "not the configuration of the run in" in text
    assert "learning_rate (0.005 -> 0.5)" in text
    assert "network_def" in text
    assert home.record("run") == before, "the refused start changed the record"
