"""The stages of `experiments.py` that compare a student of one modality with and without teachers of the others.

The teachers are trained once and taken as they are, so that all arms share them; the method in its joint form, which is
what the bundle ships, is trained beside. Records go to docs/results/mtcm_kd.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable

import torch
from bundle_runs import REPOSITORY, finished, run_bundle
from experiment_runs import SEEDS, Run, publish, train_side_by_side
from monai.bundle import ConfigParser

from monai_kd.hub import write_checksums
from monai_kd.visualize import load_records, networks_figure, save_figure

BUNDLE = REPOSITORY / "bundles" / "mtcm-kd"
RESULTS = REPOSITORY / "docs" / "results" / "mtcm_kd"
# float32 on every machine: the arms may be trained on several
SETTINGS = {"cpu_bfloat16": False}
ON_ALL_SEEDS = {
    "baseline": ("baseline.yaml",),
    "mtcm_kd_pretrained": ("pretrained.yaml",),
    "response_kd_pretrained": ("pretrained.yaml", "response_kd.yaml"),
    "early_fusion": ("early_fusion.yaml",),
}
ON_ONE_SEED = {
    "mtcm_kd": (),
    "cdsfl_only_pretrained": ("pretrained.yaml", "cdsfl_only.yaml"),
    "uniform_weights_pretrained": ("pretrained.yaml", "uniform_weights.yaml"),
}


def teachers() -> Run:
    """Return the training of the teachers and their fusion."""
    return _run("mtcm_teachers", ("teachers.yaml",), SEEDS[0])


def students() -> list[Run]:
    """Return all other trainings; the joint form takes longest and comes first."""
    joint, *parts = ON_ONE_SEED
    wanted = [(joint, SEEDS[0])]
    wanted += [(name, seed) for seed in SEEDS for name in ON_ALL_SEEDS if name != "early_fusion"]
    wanted += [("early_fusion", seed) for seed in SEEDS]
    wanted += [(name, SEEDS[0]) for name in parts]
    overlays = {**ON_ALL_SEEDS, **ON_ONE_SEED}
    return [_run(name, overlays[name], seed) for name, seed in wanted]


def _run(name: str, overlays: Iterable[str], seed: int) -> Run:
    return Run(BUNDLE, f"{name}-seed{seed}", ["train.yaml", *overlays], seed, RESULTS, SETTINGS)


def train(workers: int, threads: int) -> None:
    """Train the teachers beside the student alone, then what needs them; publish the teachers and the joint form."""
    planned = students()
    alone = [run for run in planned if run.name.startswith("baseline")]
    train_side_by_side([teachers(), *alone], workers, threads)
    publish_teachers()
    train_side_by_side([run for run in planned if run not in alone], workers, threads)
    (joint,) = (run for run in planned if run.name == f"mtcm_kd-seed{SEEDS[0]}")
    if not joint.only_published:
        publish(joint)


def publish_teachers() -> None:
    """Put the teachers' weights where pretrained.yaml looks for them, unless they are there from an earlier machine."""
    trained, target = teachers().run_dir, BUNDLE / "models" / "teachers" / "model.pt"
    if finished(trained):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(trained / "model.pt", target)
        shutil.copyfile(trained / "run.json", target.with_suffix(".json"))
        write_checksums(BUNDLE)
    elif not target.is_file():
        raise FileNotFoundError(f"'{target}' is missing and its training is gone: train the teachers again")


def score(threads: int) -> None:
    """Score all of them on the test cases, one at a time, so that the timings are clean; and the floor."""
    for run in (teachers(), *students()):
        run.score(threads)
        if not run.only_published:
            shutil.copyfile(run.run_dir / "split.json", run.results / "split.json")
    score_background(threads)
    save_figure(networks_figure(load_records(RESULTS), BUNDLE.name, ("baseline", "early_fusion")), RESULTS / "arms.png")


def score_background(threads: int) -> None:
    """Score a prediction without any tumor: the student with weights that say background everywhere."""
    infer = json.loads((BUNDLE / "configs" / "infer.json").read_text(encoding="utf-8"))
    network = ConfigParser(infer).get_parsed_content("network_def")
    for parameter in network.parameters():
        parameter.data.zero_()
    network.head.bias.data[0] = 1.0
    name = "all_background"
    (BUNDLE / "runs" / name).mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), BUNDLE / "runs" / name / "model.pt")
    given = {**SETTINGS, "variant": name, "ckpt_path": f"runs/{name}/model.pt", "run_dir": f"runs/scores/{name}"}
    log = BUNDLE / "runs" / "logs" / f"{name}-score.txt"
    run_bundle(BUNDLE, ["train.yaml", "evaluate.yaml"], given, log, threads, show_progress=False)
    (RESULTS / name).mkdir(parents=True, exist_ok=True)
    for file in ("run.json", "metrics.csv"):
        shutil.copyfile(BUNDLE / "runs" / "scores" / name / file, RESULTS / name / file)
