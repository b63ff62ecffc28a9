"""The stages of `experiments.py` that compare tiny students of slices with and without a multi-task teacher.

One teacher is trained, with the labels of all training patients, and shipped with the bundle; every student learns from
it, and has the labels of half of the patients. All arms of a student share data, patches, augmentation, optimizer,
schedule and seeds. Records go to docs/results/mtms_kd: of volumes as they are segmented, and once more with the largest
component alone. Nothing is chosen on the test cases.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bundle_runs import REPOSITORY, finished
from experiment_runs import SEEDS, Run, publish, train_side_by_side

from monai_kd.hub import write_checksums
from monai_kd.visualize import load_records, networks_figure, save_figure

BUNDLE = REPOSITORY / "bundles" / "mtms-kd"
STAGES_DIR = BUNDLE / "models" / "stages"
RESULTS = REPOSITORY / "docs" / "results" / "mtms_kd"
# scores and their times are of float32, whatever the CPU trained in
SCORING: Mapping[str, Any] = {"cpu_bfloat16": False}
TEACHER, METHOD = "mtms_teacher", "mtms_kd"
# overlays of train.yaml by the name of the arm; wide ones are of the larger student (S2)
ON_ALL_SEEDS = {
    "baseline": ("baseline.yaml",),
    "logit_kd": ("logit_kd.yaml",),
    METHOD: (),
    "mtms_kd_unlabelled": ("unlabelled.yaml",),
    "wide_baseline": ("baseline.yaml", "wide_student.yaml"),
    "wide_logit_kd": ("logit_kd.yaml", "wide_student.yaml"),
    "wide_mtms_kd": ("wide_student.yaml",),
    "wide_mtms_kd_unlabelled": ("unlabelled.yaml", "wide_student.yaml"),
}
ON_ONE_SEED = {
    "mtms_encoder_only": ("encoder_only.yaml",),
    "mtms_bottleneck_only": ("bottleneck_only.yaml",),
    "mtms_decoder_only": ("decoder_only.yaml",),
    "mtms_contrast_only": ("contrast_only.yaml",),
    "mtms_mimic": ("mimic.yaml",),
    "mtms_kd_dense": ("dense.yaml",),
    "mtms_kd_supervised": ("supervised.yaml",),
    "logit_kd_unlabelled": ("logit_kd.yaml", "unlabelled.yaml"),
    "trans_mtms_kd": ("trans_teacher.yaml",),
    "wide_trans_mtms_kd": ("trans_teacher.yaml", "wide_student.yaml"),
    "segmentation_mtms_kd": (),
    "half_mtms_kd": (),
}
# teachers of arms of one seed, by the first word of the arm's name: name of the training and overlays
OTHER_TEACHERS = {
    "trans": ("mtms_trans_teacher", ("trans_teacher.yaml", "teacher.yaml")),
    "segmentation": ("mtms_segmentation_teacher", ("teacher.yaml", "segmentation_teacher.yaml")),
    "half": ("mtms_half_teacher", ("teacher.yaml", "half_teacher.yaml")),
}
ONE_COMPONENT = "one_component"  # overlay, and end of the names of its protocol and records' folder


def teacher() -> Run:
    """Return the training of the teacher that ships."""
    return _run(TEACHER, ("teacher.yaml",), SEEDS[0])


def other_teachers() -> dict[str, Run]:
    """Return the trainings of the other teachers, by the first word of what learns from them."""
    found = {word: _run(name, overlays, SEEDS[0]) for word, (name, overlays) in OTHER_TEACHERS.items()}
    return {word: replace(run, overrides={"method": OTHER_TEACHERS[word][0]}) for word, run in found.items()}


def students(seed: int) -> list[Run]:
    """Return the trainings of students of a seed; those of parts and other teachers are of the first."""
    wanted = {**ON_ALL_SEEDS, **(ON_ONE_SEED if seed == SEEDS[0] else {})}
    return [_student(name, overlays, seed) for name, overlays in wanted.items()]


def teacher_of(student: Run) -> Run:
    """Return the training whose weights a student learns from."""
    words = student.name.removeprefix("wide_").split("_")
    return other_teachers().get(words[0], teacher())


def _student(name: str, overlays: Iterable[str], seed: int) -> Run:
    run = _named(_run(name, overlays, seed))
    taught = teacher_of(run)
    shipped = taught.name == teacher().name
    path = "models/stages/teacher.pt" if shipped else f"runs/{taught.name}/model.pt"
    return replace(run, overrides={**run.overrides, "teacher_path": path})


def _run(name: str, overlays: Iterable[str], seed: int) -> Run:
    return Run(BUNDLE, f"{name}-seed{seed}", ["train.yaml", *overlays], seed, RESULTS / "left_atrium")


def _named(run: Run) -> Run:
    """Return the run with its own name as that of its method, which overlays for several students cannot know."""
    return replace(run, overrides={**run.overrides, "method": run.name.partition("-seed")[0]})


def train(workers: int, threads: int, seeds: Iterable[int] = SEEDS) -> None:
    """Train the teachers, then seed by seed what learns from them; publish the teacher and the first seed's student."""
    seeds = list(seeds)
    others = other_teachers().values() if SEEDS[0] in seeds else ()
    train_side_by_side([teacher(), *others], workers, threads)
    publish_teacher()
    for seed in seeds:
        runs = students(seed)
        train_side_by_side(runs, workers, threads)
        (method,) = (run for run in runs if run.name == f"{METHOD}-seed{seed}")
        if seed == SEEDS[0] and not method.only_published:
            publish(method)


def publish_teacher() -> None:
    """Put the teacher's weights where the bundle's files look for them, unless they came with the bundle."""
    trained, target = teacher().run_dir, STAGES_DIR / "teacher.pt"
    if finished(trained):
        STAGES_DIR.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(trained / "model.pt", target)
        shutil.copyfile(trained / "run.json", target.with_suffix(".json"))
        write_checksums(BUNDLE)
    elif not target.is_file():
        raise FileNotFoundError(f"'{target}' is missing and its training is gone: train the teacher again")


def scored_runs(seed: int) -> list[Run]:
    """Return teachers and students of a seed, then teacher and main students once more, by the largest component."""
    taught = [teacher(), *other_teachers().values()] if seed == SEEDS[0] else []
    runs = [*taught, *students(seed)]
    both = {f"{name}-seed{seed}" for name in (TEACHER, *ON_ALL_SEEDS)}
    return [*runs, *(_one_component(run) for run in runs if run.name in both)]


def _one_component(run: Run) -> Run:
    configs = [*run.configs, f"{ONE_COMPONENT}.yaml"]
    overrides = {**run.overrides, "protocol": f"left_atrium_slices_{ONE_COMPONENT}"}
    return replace(run, configs=configs, overrides=overrides, results=RESULTS / f"left_atrium_{ONE_COMPONENT}")


def score(threads: int, seeds: Iterable[int] = SEEDS) -> None:
    """Score them one at a time, so that timings are clean."""
    for seed in seeds:
        for run in scored_runs(seed):
            replace(run, overrides={**run.overrides, **SCORING}).score(threads)
            if not run.only_published:
                shutil.copyfile(run.run_dir / "split.json", run.results / "split.json")
    draw()


def draw() -> None:
    """Draw every arm and seed, from the records alone."""
    figure = networks_figure(load_records(RESULTS / "left_atrium"), BUNDLE.name, ("baseline", "wide_baseline"))
    save_figure(figure, RESULTS / "arms.png")
