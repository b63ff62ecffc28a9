"""One training of an experiment: trained where it stopped, scored once, its record kept, its weights published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundle_runs import finished, run_bundle

from monai_kd.hub import write_checksums

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Run:
    """One training: where it runs, with which files and overrides."""

    bundle: Path
    name: str
    configs: list[str]
    seed: int
    results: Path
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return self.bundle / "runs" / self.name

    def log(self, stage: str) -> Path:
        return self.bundle / "runs" / "logs" / f"{self.name}-{stage}.txt"  # a run sets aside what its folder holds

    @property
    def only_published(self) -> bool:
        """Whether the run is done and its folder gone: its record is kept, its weights are not."""
        return finished(self.results / self.name) and not (self.run_dir / "run.json").is_file()

    def train(self, threads: int) -> None:
        if finished(self.run_dir) or self.only_published:
            print(f"finished already: {self.name}", flush=True)
            return
        # relative paths: the executed configuration becomes part of the published record
        overrides: dict[str, Any] = {**self.overrides, "seed": self.seed, "run_dir": f"runs/{self.name}"}
        overrides["ckpt_dir"] = f"runs/{self.name}/models"
        if (self.run_dir / "run.json").is_file():
            overrides["resume"] = True  # from its last whole epoch
        print(f"training: {self.name}", flush=True)
        run_bundle(self.bundle, self.configs, overrides, self.log("train"), threads, show_progress=False)
        print(f"trained: {self.name}, best validation Dice {record(self.run_dir)['best_metric']:.4f}", flush=True)

    def score(self, threads: int) -> None:
        target = self.results / self.name
        if self.only_published:
            print(f"scored already: {self.name}", flush=True)
            return
        trained = record(self.run_dir)["network"]["weights_sha256"]
        if finished(target) and record(target)["network"]["weights_sha256"] == trained:
            print(f"scored already: {self.name}", flush=True)
            return
        scores = f"runs/scores/{self.results.name}/{self.name}"  # one model may be scored on several sets of data
        overrides = {**self.overrides, "ckpt_path": f"runs/{self.name}/model.pt", "run_dir": scores, "seed": self.seed}
        log = self.log(f"score-{self.results.name}")
        run_bundle(self.bundle, [*self.configs, "evaluate.yaml"], overrides, log, threads, show_progress=False)
        target.mkdir(parents=True, exist_ok=True)
        for name in ("run.json", "metrics.csv"):
            shutil.copyfile(self.bundle / scores / name, target / name)
        found = record(target)
        what = f"{found['protocol']['name']}, {found['protocol']['section']}"
        print(f"scored: {self.name}, {what}, Dice {found['summary']['dice']['mean']:.4f}", flush=True)


def record(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    return content


def publish(run: Run) -> None:
    """Put a finished run's weights and record into its bundle's models folder."""
    for source, target in (("model.pt", "model.pt"), ("run.json", "model.json")):
        shutil.copyfile(run.run_dir / source, run.bundle / "models" / target)
    write_checksums(run.bundle)
    print(f"published: {run.name} in bundles/{run.bundle.name}/models", flush=True)


def publish_best(runs: Iterable[Run]) -> None:
    """Publish the run with the best validation Dice."""
    publish(max(runs, key=lambda run: record(run.run_dir)["best_metric"]))


def train_side_by_side(runs: Sequence[Run], workers: int, threads: int) -> None:
    """Train runs in their order, so many at a time; finished ones are skipped."""
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda run: run.train(max(1, threads // workers)), runs))
