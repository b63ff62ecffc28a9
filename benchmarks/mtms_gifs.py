"""Draw GIFs of cases: image, truth, the student alone and the student that MTMS-KD distilled, slice by slice.

    MONAI_KD_DATA=DIR python benchmarks/mtms_gifs.py
    python benchmarks/mtms_gifs.py --phantoms DIR --alone ALONE.pt --distilled DISTILLED.pt

The first needs the trainings and scores of ``experiments.py --only mtms,mtms_scores``. It draws the test case that
gains most and the one that loses most by MTMS-KD against the student alone, seed 0, as the records say, and with them
the student that learned from images without labels as well, where its weights are there. These pictures show research
data, so they go to bundles/mtms-kd/runs/gifs and never into the repository.

The second draws the same from phantoms, which show nobody: a picture that may be shipped. It trains nothing: DIR is a
folder that ``monai_kd.data.make_phantoms`` wrote, the weights are ``model.pt`` of trainings on it, of the tiny student
with three classes:

    cd bundles/mtms-kd
    python -m monai_kd stages . --overlays hippocampus.yaml --dataset_dir DIR --split_file "''"
    python -m monai.bundle run --bundle_root . --dataset_dir DIR --split_file "''" \\
        --config_file "['configs/train.yaml','configs/hippocampus.yaml','configs/baseline.yaml']"

The test cases are those of the split that such a training draws. Two short trainings differ by chance as much as by the
method: what is shipped shows what the output looks like and is no evidence.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from depth_overlays import in_ras, in_ras_affine, predictions, telling_cases
from experiment_runs import SEEDS, Run
from monai.transforms import EnsureChannelFirst, LoadImage
from mtms_experiments import BUNDLE, scored_runs
from numpy.typing import NDArray

from monai_kd.data.phantoms import MADE_BY
from monai_kd.visualize import save_comparison_gif
from monai_kd.visualize.overlays import dice_score

DATA = "left_atrium"
# arms and what their panels are called
ALONE, METHOD, FURTHER = "baseline", "mtms_kd", "mtms_kd_unlabelled"
TITLES = {ALONE: "student alone", METHOD: "distilled", FURTHER: "with more images"}
PHANTOM_CONFIGS = ["train.yaml", "hippocampus.yaml", "baseline.yaml"]  # what is scored is the student in either case
GIFS_DIR = BUNDLE / "runs" / "gifs"


def draw(path: Path, title: str, found: Mapping[str, dict[str, Any]], settings: Mapping[str, Any]) -> Path:
    """Draw one case with what each student found, all in RAS orientation."""
    load = LoadImage(image_only=True)
    first = next(iter(found.values()))
    image, label = EnsureChannelFirst()(load(first["files"]["image"])), load(first["files"]["label"])
    maps = {TITLES[name]: in_ras(entry["map"], label.affine) for name, entry in found.items()}
    spacing = [float(length) for length in np.linalg.norm(in_ras_affine(label), axis=0)]
    shown, truth = in_ras(np.asarray(image[0]), image.affine), in_ras(np.asarray(label).astype(int), label.affine)
    return save_comparison_gif(path, shown, truth, maps, spacing, first["classes"], title=title, **settings)


def draw_research_data(output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Draw the two telling test cases of the seed whose records tell.

    Raises:
        FileNotFoundError: weights or records of the arms are missing.
    """
    runs = {run.name: run for run in scored_runs(SEEDS[0]) if run.results.name == DATA}
    arms = {name: runs[f"{name}-seed{SEEDS[0]}"] for name in (ALONE, METHOD, FURTHER)}
    there = {name: run for name, run in arms.items() if (run.run_dir / "model.pt").is_file()}
    for run in (arms[ALONE], arms[METHOD]):
        for path in (run.run_dir / "model.pt", run.results / run.name / "run.json"):
            if not path.is_file():
                raise FileNotFoundError(f"'{path}' is missing; run experiments.py --only mtms,mtms_scores first")
    cases = telling_cases(arms[ALONE], arms[METHOD])
    found = {name: predictions(run, cases, overrides=run.overrides) for name, run in there.items()}
    for case in cases:
        of_case = {name: entries[case] for name, entries in found.items()}
        print(draw(output_dir / f"{DATA}-{case}.gif", f"{DATA}, {case}", of_case, settings))


def draw_phantoms(data_dir: Path, weights: Mapping[str, Path], output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Draw the test phantom that gains most and the one that loses most.

    Raises:
        FileNotFoundError: weights are missing.
        ValueError: the folder holds no phantoms.
    """
    require_phantoms(data_dir)
    for name, path in weights.items():
        if not path.is_file():
            raise FileNotFoundError(f"--{'alone' if name == ALONE else 'distilled'} '{path}' does not exist")
    given = {
        "dataset_dir": str(data_dir.resolve()),
        "split_file": "",
        "validate::dataset::data": "$@split.cases('test')",
    }
    run = Run(BUNDLE, "phantoms", PHANTOM_CONFIGS, SEEDS[0], output_dir)
    found = {
        name: predictions(run, (), overrides={**given, "ckpt_path": str(path.resolve())})
        for name, path in weights.items()
    }
    cases = sorted(found[METHOD])
    gains = {case: mean_dice(found[METHOD][case]) - mean_dice(found[ALONE][case]) for case in cases}
    order = sorted(cases, key=gains.__getitem__)
    for case in dict.fromkeys([order[-1], order[0]]):
        print(f"{case}: Dice {gains[case]:+.3f} by distillation")
        of_case = {name: entries[case] for name, entries in found.items()}
        print(draw(output_dir / f"{case}.gif", case.replace("_", " "), of_case, settings))


def require_phantoms(data_dir: Path) -> None:
    """Refuse a folder that is not of phantoms: its pictures might show patients and be shipped."""
    path = data_dir / "dataset.json"
    made_by = json.loads(path.read_text(encoding="utf-8")).get("made_by") if path.is_file() else None
    if made_by != MADE_BY:
        raise ValueError(f"'{data_dir}' holds no phantoms; make some with monai_kd.data.make_phantoms")


def mean_dice(entry: Mapping[str, Any]) -> float:
    """Return the mean Dice of the classes of a case."""
    truth: NDArray[Any] = np.asarray(LoadImage(image_only=True)(entry["files"]["label"])).astype(int)
    scores = [dice_score(entry["map"], truth, value) for value in entry["classes"] if value]
    return float(np.mean([score for score in scores if score is not None]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=Path, metavar="DIR", help="folder of phantoms to draw in place of patients")
    parser.add_argument("--alone", type=Path, help="weights of the student alone; with --phantoms")
    parser.add_argument("--distilled", type=Path, help="weights of the distilled student; with --phantoms")
    parser.add_argument("--output_dir", type=Path, help=f"with --phantoms; {GIFS_DIR.relative_to(BUNDLE)} if not given")
    parser.add_argument("--axis", default="axial", help="axial, coronal or sagittal")
    parser.add_argument("--size", type=int, default=960, help="longest side in pixels")
    parser.add_argument("--fps", type=float, default=8.0, help="frames a second")
    arguments = parser.parse_args()
    settings = {"axis": arguments.axis, "size": arguments.size, "fps": arguments.fps}
    only_phantoms = {name: getattr(arguments, name) for name in ("alone", "distilled", "output_dir")}
    if arguments.phantoms:
        if missing := [name for name in ("alone", "distilled") if not only_phantoms[name]]:
            parser.error(f"--phantoms needs the weights --{' and --'.join(missing)}")
        weights = {ALONE: arguments.alone, METHOD: arguments.distilled}
        draw_phantoms(arguments.phantoms, weights, arguments.output_dir or GIFS_DIR, settings)
        return
    if given := [name for name, value in only_phantoms.items() if value]:
        parser.error(f"--{given[0]} goes with --phantoms; pictures of patients stay in {GIFS_DIR}")
    if not os.environ.get("MONAI_KD_DATA"):
        parser.error("set MONAI_KD_DATA to the folder that holds the data and splits")
    draw_research_data(GIFS_DIR, settings)


if __name__ == "__main__":
    main()
