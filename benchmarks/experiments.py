"""Train and score the published models: a queue that goes on where it stopped.

    MONAI_KD_DATA=DIR python benchmarks/experiments.py [--workers 2] [--only teacher,students]

Stages: (1) the teacher; (2) student alone and distilled, three seeds each, from the same configuration files; (3)
every model scored on the test cases, one at a time so that the timings are clean; (4) the distillers compared on a
shorter schedule, trained and scored; (5) networks that see across slices trained and (6) scored, see
depth_experiments.py; (7) students of one modality trained and (8) scored, see mtcm_experiments.py; (9) students of one
camera trained, (10) other settings of theirs tried and (11) all scored on other cameras, see gkd_experiments.py; (12)
tiny students of slices trained and (13) scored, see mtms_experiments.py.

Finished runs are skipped, interrupted ones go on. Run records go to docs/results, from which `make tables` builds every
published number. The distilled student with the best *validation* Dice becomes the student bundle's weights, and so for
distill-dsm.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace

import depth_experiments
import gkd_experiments
import mtcm_experiments
import mtms_experiments
from bundle_runs import REPOSITORY
from experiment_runs import SEEDS, Run, publish, publish_best, train_side_by_side

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
STAGES = ("teacher", "students", "scores", "zoo", "depth", "depth_scores", "mtcm", "mtcm_scores")
STAGES += ("gkd", "gkd_search", "gkd_scores", "mtms", "mtms_scores")
ARMS = {"distilled": ["train.yaml"], "baseline": ["train.yaml", "baseline.yaml"]}
# the distillers: a third of the released student's epochs, under a name of its own, so that no table mixes the two
ZOO = {"epochs": 8, "protocol": "hippocampus_short"}
# the student alone for as long as a method with the teacher takes: its step costs 3.5 times the student's, steps.json
LONGER = {**ZOO, "epochs": 28}
CLASSICS = ("kd", "at", "dkd", "cwd", "review", "dist")  # three seeds, as the baseline


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
    train_side_by_side(runs, workers, threads)
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
    parser.add_argument("--workers", type=int, default=2, help="trainings side by side, which share the threads")
    parser.add_argument("--only", default=",".join(STAGES), help="stages to run, comma separated")
    arguments = parser.parse_args()
    stages = arguments.only.split(",")
    unknown = set(stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stages {sorted(unknown)}; known: {', '.join(STAGES)}")
    if not os.environ.get("MONAI_KD_DATA"):
        parser.error("set MONAI_KD_DATA to the folder that holds Task04_Hippocampus and splits")
    threads = os.cpu_count() or 1
    teacher = Run(TEACHER, "teacher-seed0", ["train.yaml"], 0, RESULTS)
    students = [Run(STUDENT, f"{arm}-seed{seed}", ARMS[arm], seed, RESULTS) for seed in SEEDS for arm in ARMS]
    if "teacher" in stages:
        teacher.train(threads)
        publish(teacher)
        RESULTS.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(teacher.run_dir / "split.json", RESULTS / "split.json")
        make_teacher(teacher.run_dir, TEACHER, STUDENT / "models" / "teacher")
        write_checksums(STUDENT)
    if "students" in stages:
        train_side_by_side(students, arguments.workers, threads)
        publish_best(run for run in students if run.name.startswith("distilled"))
    if "scores" in stages:
        for run in (teacher, *students):
            run.score(threads)
        draw()
    if "zoo" in stages:
        run_zoo(teacher, arguments.workers, threads)
    if "depth" in stages:
        depth_experiments.train(arguments.workers, threads)
    if "depth_scores" in stages:
        depth_experiments.score(threads)
    if "mtcm" in stages:
        mtcm_experiments.train(arguments.workers, threads)
    if "mtcm_scores" in stages:
        mtcm_experiments.score(threads)
    if "gkd" in stages:
        gkd_experiments.train(arguments.workers, threads)
    if "gkd_search" in stages:
        gkd_experiments.search(arguments.workers, threads)
    if "gkd_scores" in stages:
        gkd_experiments.score(threads)
    if "mtms" in stages:
        mtms_experiments.train(arguments.workers, threads)
    if "mtms_scores" in stages:
        mtms_experiments.score(threads)


if __name__ == "__main__":
    main()
