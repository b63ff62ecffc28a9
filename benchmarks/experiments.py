"""Train and score the published models on the hippocampus protocol: a queue that goes on where it stopped.

    MONAI_KD_DATA=DIR python benchmarks/experiments.py [--workers 2] [--only teacher,students,scores,zoo]

Stages: (1) the teacher; (2) student alone and distilled, three seeds each, from the same configuration files;
(3) every model scored on the test cases, one at a time so that the timings are clean; (4) the distillers compared on a
shorter schedule, trained and scored. Finished runs are skipped. Run records go to docs/results, from which `make
tables` builds every published number. The distilled student with the best *validation* Dice becomes the student
bundle's weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bundle_runs import REPOSITORY, finished, run_bundle

from monai_kd.hub import make_teacher, write_checksums
from monai_kd.visualize import (
    curves_figure,
    distillers_figure,
    load_records,
    paired_difference,
    paired_figure,
    save_figure,
)

RESULTS = REPOSITORY / "docs" / "results" / "hippocampus"
ZOO_RESULTS = REPOSITORY / "docs" / "results" / "zoo"
TEACHER, STUDENT = REPOSITORY / "bundles" / "teacher", REPOSITORY / "bundles" / "student"
SEEDS = (0, 1, 2)
STAGES = ("teacher", "students", "scores", "zoo")
ARMS = {"distilled": ["train.yaml"], "baseline": ["train.yaml", "baseline.yaml"]}
# the distillers: a third of the released student's epochs, under a name of its own, so that no table mixes the two
ZOO = {"epochs": 8, "protocol": "hippocampus_short"}
# the student alone for as long as a method with the teacher takes: its step costs 3.5 times the student's, steps.json
LONGER = {**ZOO, "epochs": 28}
CLASSICS = ("kd", "at", "dkd", "cwd", "review", "dist")  # three seeds, as the baseline


@dataclass(frozen=True)
class Run:
    """One training: where it runs, with which files and overrides."""

    bundle: Path
    name: str
    configs: list[str]
    seed: int
    results: Path = RESULTS
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return self.bundle / "runs" / self.name

    def log(self, stage: str) -> Path:
        return self.bundle / "runs" / "logs" / f"{self.name}-{stage}.txt"  # a run sets aside what its folder holds

    def train(self, threads: int) -> None:
        if finished(self.run_dir):
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
        trained = record(self.run_dir)["network"]["weights_sha256"]
        if finished(target) and record(target)["network"]["weights_sha256"] == trained:
            print(f"scored already: {self.name}", flush=True)
            return
        scores = f"runs/scores/{self.name}"
        overrides = {**self.overrides, "ckpt_path": f"runs/{self.name}/model.pt", "run_dir": scores, "seed": self.seed}
        log = self.log("score")
        run_bundle(self.bundle, [*self.configs, "evaluate.yaml"], overrides, log, threads, show_progress=False)
        target.mkdir(parents=True, exist_ok=True)
        for name in ("run.json", "metrics.csv"):
            shutil.copyfile(self.bundle / scores / name, target / name)
        print(f"scored: {self.name}, test Dice {record(target)['summary']['dice']['mean']:.4f}", flush=True)


def record(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    return content


def publish(run: Run) -> None:
    """Put a finished run's weights and record into its bundle's models folder."""
    for source, target in (("model.pt", "model.pt"), ("run.json", "model.json")):
        shutil.copyfile(run.run_dir / source, run.bundle / "models" / target)
    write_checksums(run.bundle)
    print(f"published: {run.name} in bundles/{run.bundle.name}/models", flush=True)


def zoo_runs() -> list[Run]:
    """Return the runs that compare the distillers.

    Baseline and classics on every seed, the others on the first; then the baseline for longer, on every seed.
    """
    overlays = sorted((STUDENT / "configs" / "distillers").glob("*.yaml"))
    known = {path.stem: ["train.yaml", f"distillers/{path.name}"] for path in overlays}
    many = {"baseline": ["train.yaml", "baseline.yaml"], **{name: known[name] for name in CLASSICS}}
    single = {name: configs for name, configs in known.items() if name not in many}
    wanted = [(name, configs, seed) for seed in SEEDS for name, configs in many.items()]
    wanted += [(name, configs, SEEDS[0]) for name, configs in single.items()]
    runs = [Run(STUDENT, f"zoo-{name}-seed{seed}", configs, seed, ZOO_RESULTS, ZOO) for name, configs, seed in wanted]
    alone = many["baseline"]
    return runs + [Run(STUDENT, f"zoo-longer-seed{seed}", alone, seed, ZOO_RESULTS, LONGER) for seed in SEEDS]


def run_zoo(teacher: Run, workers: int, threads: int) -> None:
    """Train the distillers side by side, then score them one at a time, and the teacher under the same name."""
    runs = zoo_runs()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda run: run.train(max(1, threads // workers)), runs))
    named = {"protocol": ZOO["protocol"]}
    for run in (replace(teacher, results=ZOO_RESULTS, overrides=named), *runs):
        run.score(threads)
    save_figure(distillers_figure(load_records(ZOO_RESULTS)), ZOO_RESULTS / "distillers.png")


def draw() -> None:
    """Draw the curves of all trainings and the paired comparison, from the records alone."""
    records = load_records(RESULTS)
    arms = {name: [r for r in records if r["method"] == name] for name in ARMS}
    save_figure(curves_figure(records, "hippocampus: loss, terms and validation Dice"), RESULTS / "curves.png")
    difference = paired_difference(arms["baseline"], arms["distilled"])
    save_figure(paired_figure(difference), RESULTS / "paired.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="student trainings side by side, one thread each")
    parser.add_argument("--only", default=",".join(STAGES), help="stages to run, comma separated")
    arguments = parser.parse_args()
    stages = arguments.only.split(",")
    unknown = set(stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stages {sorted(unknown)}; known: {', '.join(STAGES)}")
    if not os.environ.get("MONAI_KD_DATA"):
        parser.error("set MONAI_KD_DATA to the folder that holds Task04_Hippocampus and splits")
    threads = os.cpu_count() or 1
    teacher = Run(TEACHER, "teacher-seed0", ["train.yaml"], 0)
    students = [Run(STUDENT, f"{arm}-seed{seed}", ARMS[arm], seed) for seed in SEEDS for arm in ARMS]
    if "teacher" in stages:
        teacher.train(threads)
        publish(teacher)
        RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(teacher.run_dir / "split.json", RESULTS / "split.json")
        make_teacher(teacher.run_dir, TEACHER, STUDENT / "models" / "teacher")
        write_checksums(STUDENT)
    if "students" in stages:
        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(lambda run: run.train(max(1, threads // arguments.workers)), students))
        distilled = [run for run in students if run.name.startswith("distilled")]
        publish(max(distilled, key=lambda run: record(run.run_dir)["best_metric"]))
    if "scores" in stages:
        for run in (teacher, *students):
            run.score(threads)
        draw()
    if "zoo" in stages:
        run_zoo(teacher, arguments.workers, threads)


if __name__ == "__main__":
    main()
