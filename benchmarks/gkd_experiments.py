"""The stages of `experiments.py` that train on one camera and score on cameras that were never seen.

For each seed a teacher, a student from scratch and alignment networks are trained first, then the method and its
controls, which all go on from that student. The masks' autoencoder is trained once. Everything is scored on the test
photographs of the source and on all photographs of the targets, in docs/results/gkd/<domain>. Nothing is chosen on a
target: epochs by the source's validation photographs, settings by those and by shifts made of them (shifts.yaml).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bundle_runs import REPOSITORY, finished
from experiment_runs import SEEDS, Run, publish, train_side_by_side

from monai_kd.hub import write_checksums
from monai_kd.visualize import domains_figure, load_records, save_figure
from monai_kd.visualize.documents import GKD_CAMERAS, GKD_CONTROLS, GKD_SHIFTS

BUNDLE = REPOSITORY / "bundles" / "gkd"
STAGES_DIR = BUNDLE / "models" / "stages"
RESULTS = REPOSITORY / "docs" / "results" / "gkd"
SOURCE = "retina"
# folder in MONAI_KD_DATA of each camera that is only scored on
TARGETS = {"retina_stare": "STARE", "retina_drive": "DRIVE/training"}
# float32 on every machine: the arms may be trained on several
SETTINGS: Mapping[str, Any] = {"cpu_bfloat16": False}
STAGE_OVERLAYS = ("teacher", "scratch", "autoencoder", "alignment")
# overlays of train.yaml by the name of the arm
ON_ALL_SEEDS = {
    "gkd": (),
    "baseline": ("baseline.yaml",),
    "augmentation": ("augmentation.yaml",),
    "logit_kd": ("logit_kd.yaml",),
}
ON_ONE_SEED = {
    "photometry": ("baseline.yaml", "photometry.yaml"),
    "photometry_kd": ("logit_kd.yaml", "photometry.yaml"),
    "views_kd": ("views_kd.yaml",),
    "gkd_anchor_only": ("anchor_only.yaml",),
    "gkd_intra_only": ("intra_only.yaml",),
    "gkd_inter_only": ("inter_only.yaml",),
    "gkd_graphs_only": ("graphs_only.yaml",),
    "gkd_cross_only": ("cross_only.yaml",),
}
# settings to choose from on the first seed, by the source's validation photographs and shifts of them: overlays and ids
SEARCH: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    # a teacher without skips: all that it knows passes through its bottleneck
    "gkd_teacher_erfnet": (
        ("teacher.yaml",),
        {
            "teacher_def": {
                "_target_": "monai_kd.networks.nets.ERFNet",
                "in_channels": "@in_channels",
                "out_channels": "@out_channels",
            },
            "teacher_features": 128,
        },
    ),
}
SHIFTS = [name.removeprefix(f"{SOURCE}_") for name in GKD_SHIFTS if name != SOURCE]  # keys of shifts.yaml


@dataclass(frozen=True)
class SeedRuns:
    """All trainings of one seed: the stages, then what starts from them."""

    stages: dict[str, Run]
    arms: list[Run]


def seed_runs(seed: int) -> SeedRuns:
    """Return the trainings of a seed; the autoencoder is that of the first one."""
    names = [name for name in STAGE_OVERLAYS if name != "autoencoder" or seed == SEEDS[0]]
    stages = {name: _run(f"gkd_{name}", (f"{name}.yaml",), seed) for name in names}
    paths = _stage_paths(seed)
    for name, run in stages.items():
        needed = paths if name == "alignment" else {}
        stages[name] = replace(run, overrides={**run.overrides, **needed})
    wanted = {**ON_ALL_SEEDS, **(ON_ONE_SEED if seed == SEEDS[0] else {})}
    arms = [_arm(name, overlays, seed, paths) for name, overlays in wanted.items()]
    return SeedRuns(stages, arms)


def _arm(name: str, overlays: tuple[str, ...], seed: int, paths: Mapping[str, str]) -> Run:
    run = _run(name, overlays, seed)
    named = {"method": name} if "photometry.yaml" in overlays else {}  # which stands behind an arm of another name
    return replace(run, overrides={**run.overrides, **paths, **named})


def _run(name: str, overlays: Iterable[str], seed: int) -> Run:
    return Run(BUNDLE, f"{name}-seed{seed}", ["train.yaml", *overlays], seed, RESULTS / SOURCE, dict(SETTINGS))


def _stage_paths(seed: int) -> dict[str, str]:
    return {f"{name}_path": _weights(name, seed) for name in STAGE_OVERLAYS}


def _weights(stage: str, seed: int) -> str:
    """Return where a stage's weights lie; those of the first seed come with the bundle."""
    shared = seed == SEEDS[0] or stage == "autoencoder"
    return f"models/stages/{stage}.pt" if shared else f"runs/gkd_{stage}-seed{seed}/model.pt"


def train(workers: int, threads: int, seeds: Iterable[int] = SEEDS) -> None:
    """Train seed by seed, so that what is done by then is complete for its seeds, and publish the first one's."""
    for seed in seeds:
        runs = seed_runs(seed)
        if all(run.only_published for run in runs.arms):
            continue
        first = [run for name, run in runs.stages.items() if name != "alignment"]
        train_side_by_side(first, workers, threads)
        if seed == SEEDS[0]:
            publish_stages(first)
        train_side_by_side([runs.stages["alignment"]], 1, threads)
        if seed == SEEDS[0]:
            publish_stages(runs.stages.values())
        train_side_by_side(runs.arms, workers, threads)
        if seed == SEEDS[0] and not runs.arms[0].only_published:
            publish(runs.arms[0])


def publish_stages(runs: Iterable[Run]) -> None:
    """Put the weights of stages where the bundle's configurations look for them, with their records."""
    STAGES_DIR.mkdir(parents=True, exist_ok=True)
    for run in runs:
        if finished(run.run_dir):
            target = STAGES_DIR / f"{run.name.removeprefix('gkd_').split('-')[0]}.pt"
            shutil.copyfile(run.run_dir / "model.pt", target)
            shutil.copyfile(run.run_dir / "run.json", target.with_suffix(".json"))
    write_checksums(BUNDLE)


def scored_runs(seed: int) -> list[Run]:
    """Return teacher, student from scratch and all arms of a seed, each as it is scored on every camera."""
    runs = seed_runs(seed)
    return [
        scored
        for run in (runs.stages["teacher"], runs.stages["scratch"], *runs.arms)
        for scored in (run, *_on_targets(run))
    ]


def score(threads: int, seeds: Iterable[int] = SEEDS) -> None:
    """Score them one at a time, so that timings are clean."""
    for seed in seeds:
        for run in scored_runs(seed):
            run.score(threads)
    draw()


def draw() -> None:
    """Draw every seed on every camera, from the records alone."""
    records = [record for record in load_records(RESULTS) if record["protocol"]["section"] in ("test", "all")]
    save_figure(domains_figure(records, BUNDLE.name, GKD_CAMERAS, GKD_CONTROLS), RESULTS / "domains.png")


def search(workers: int, threads: int) -> None:
    """Train the settings to choose from, after the first seed's arms, and score all on validation and its shifts."""
    seed = SEEDS[0]
    runs = seed_runs(seed)
    further = [_further(name, *wanted) for name, wanted in SEARCH.items()]
    teachers = [run for run in further if "teacher.yaml" in run.configs]
    train_side_by_side(teachers, workers, threads)  # first: others start from them
    train_side_by_side([run for run in further if run not in teachers], workers, threads)
    for run in (runs.stages["teacher"], runs.stages["scratch"], *runs.arms, *further):
        for shifted in _shifted(run):
            shifted.score(threads)


def _further(name: str, overlays: tuple[str, ...], settings: Mapping[str, Any]) -> Run:
    run = _run(name, overlays, SEEDS[0])
    paths = {} if "teacher.yaml" in overlays else _stage_paths(SEEDS[0])
    return replace(run, overrides={**run.overrides, **paths, **settings, "method": name})


def _shifted(run: Run) -> list[Run]:
    """Return the run as it is scored on the source's validation photographs, as they are and shifted."""
    plain = replace(run, results=RESULTS / "shifts" / "none", overrides={**run.overrides, "section": "validation"})
    found = [plain]
    for shift in SHIFTS:
        overrides = {**plain.overrides, "protocol": f"{SOURCE}_{shift}", "shift_name": shift}
        configs = [*run.configs, "shifts.yaml"]
        found.append(replace(plain, configs=configs, results=RESULTS / "shifts" / shift, overrides=overrides))
    return found


def _on_targets(run: Run) -> list[Run]:
    """Return the run as it is scored on each target: all photographs of its folder."""
    found = []
    for protocol, folder in TARGETS.items():
        given = {"dataset_dir": f"$monai_kd.data.default_dataset_dir('{folder}')", "split_file": "''"}
        overrides = {**run.overrides, **given, "protocol": protocol}
        found.append(replace(run, results=RESULTS / protocol, overrides=overrides))
    return found
