"""Draw photographs of each camera with what the student found alone, by augmentation and by GKD.

    MONAI_KD_DATA=DIR python benchmarks/gkd_overlays.py [--domains retina,retina_stare,retina_drive]

Needs the trainings and scores of ``experiments.py --only gkd,gkd_scores``. For each camera: the photograph that gains
most and the one that loses most by GKD against augmentation alone, seed 0, as the records say; label and each student
side by side, errors filled. The pictures show research data, so they go to bundles/gkd/runs/overlays and never into
the repository.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from depth_overlays import predictions, telling_cases
from experiment_runs import SEEDS, Run
from gkd_experiments import BUNDLE, SOURCE, TARGETS, scored_runs
from monai.transforms import EnsureChannelFirst, LoadImage
from tqdm import tqdm

from monai_kd.data import as_color, as_grey
from monai_kd.visualize import save_overlay

ALONE, CONTROL, METHOD = "gkd_scratch", "augmentation", "gkd"
_GREEN, _MIDDLE = 1, 128  # channel of the photograph, and what is above it in a mask is vessel


def draw(domain: str, case: str, found: dict[str, dict[str, Any]]) -> Path:
    """Draw one photograph with what each student found."""
    first = next(iter(found.values()))
    image = EnsureChannelFirst()(
        LoadImage(image_only=True, reader="PILReader", converter=as_color)(first["files"]["image"])
    )
    label = LoadImage(image_only=True, reader="PILReader", converter=as_grey)(first["files"]["label"])
    maps = {name: entry["map"] for name, entry in found.items()}
    return save_overlay(
        BUNDLE / "runs" / "overlays" / f"{domain}-{case}.png",
        *(np.asarray(image[_GREEN]), (np.asarray(label) >= _MIDDLE).astype(int), maps, (1.0, 1.0), first["classes"]),
        title=f"{domain}, {case}",
    )


def main() -> None:
    domains = (SOURCE, *TARGETS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", default=",".join(domains), help="cameras, comma separated")
    arguments = parser.parse_args()
    wanted = arguments.domains.split(",")
    if unknown := set(wanted) - set(domains):
        parser.error(f"unknown domains {sorted(unknown)}; known: {', '.join(domains)}")
    if not os.environ.get("MONAI_KD_DATA"):
        parser.error("set MONAI_KD_DATA to the folder that holds the data and splits")
    for domain in tqdm(wanted, unit="camera"):
        runs: dict[str, Run] = {
            run.name.removesuffix(f"-seed{SEEDS[0]}"): run
            for run in scored_runs(SEEDS[0])
            if run.results.name == domain
        }
        missing = [name for name in (ALONE, CONTROL, METHOD) if not (runs[name].run_dir / "model.pt").is_file()]
        if missing:
            parser.error(f"weights of {', '.join(missing)} with seed {SEEDS[0]} are missing; run experiments.py first")
        cases = telling_cases(runs[CONTROL], runs[METHOD])
        section = "test" if domain == SOURCE else "all"
        found = {
            name: predictions(runs[name], cases, section, runs[name].overrides) for name in (ALONE, CONTROL, METHOD)
        }
        for case in cases:
            print(draw(domain, case, {name: entries[case] for name, entries in found.items()}))


if __name__ == "__main__":
    main()
