"""Draw the test cases on which slices that see each other and slices alone differ most.

    MONAI_KD_DATA=DIR python benchmarks/depth_overlays.py [--data hippocampus,left_atrium]

Needs the trainings and scores of ``experiments.py --only depth,depth_scores``. For each set of data: the case that
gains most and the one that loses most by the exchange, seed 0, as the records say; label, 2-D U-Net, Distill DSM and
3-D U-Net side by side, errors filled. The pictures show research data, so they go to bundles/distill-dsm/runs/overlays
and never into the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from depth_experiments import BUNDLE, DATA, RESULTS, runs
from experiment_runs import Run
from ignite.engine import Engine, Events
from monai.bundle import create_workflow
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, LoadImage, Orientation
from numpy.typing import NDArray
from tqdm import tqdm

from monai_kd.data import case_id
from monai_kd.visualize import save_overlay

ALONE, EXCHANGED, SPACE = "baseline", "distill_dsm", "unet3d"


def mean_dice(run: Run) -> dict[str, float]:
    """Return the mean Dice of each case as the record of the scores has it."""
    record = json.loads((run.results / run.name / "run.json").read_text(encoding="utf-8"))
    return {entry["case"]: float(np.nanmean(list(entry["dice"].values()))) for entry in record["cases"]}


def telling_cases(alone: Run, exchanged: Run) -> list[str]:
    """Return the case that gains most and the one that loses most."""
    before, after = mean_dice(alone), mean_dice(exchanged)
    order = sorted(before, key=lambda case: after[case] - before[case])
    return list(dict.fromkeys([order[-1], order[0]]))


def predictions(
    run: Run, cases: Sequence[str], section: str = "test", overrides: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Score some cases of a section again and keep the label map, the label and the image file of each."""
    found: dict[str, dict[str, Any]] = {}
    chosen = f"$[c for c in @split.cases({section!r}) if monai_kd.data.case_id(c['image']) in {tuple(cases)!r}]"
    with tempfile.TemporaryDirectory() as folder:
        flow = create_workflow(
            config_file=[str(run.bundle / "configs" / name) for name in (*run.configs, "evaluate.yaml")],
            workflow_type="train",
            logging_file=False,
            bundle_root=str(run.bundle),
            run_dir=folder,
            **{"ckpt_path": str(run.run_dir / "model.pt"), "validate::dataset::data": chosen, **(overrides or {})},
        )
        evaluator = flow.parser.get_parsed_content("validate::evaluator")
        data = flow.parser.get_parsed_content("validate::dataset::data")
        files = {case_id(item["image"]): item for item in data}

        def keep(engine: Engine) -> None:
            for item in engine.state.output:
                case = case_id(item["image"].meta["filename_or_obj"])
                found[case] = {"map": as_map(item["pred"]), "files": files[case]}

        evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
        evaluator.run()
        names = flow.parser.get_parsed_content("class_names")
        label_of = flow.parser.get("regions")
        flow.finalize()
    for entry in found.values():
        entry["classes"], entry["regions"] = dict(enumerate(names)), label_of
    return found


def as_map(channels: torch.Tensor) -> NDArray[np.int64]:
    """Return the last channel that holds each voxel: the class, or the innermost of nested regions."""
    plain = np.asarray(channels) > 0.5
    numbers = np.arange(len(plain)).reshape(-1, *[1] * (plain.ndim - 1))
    result: NDArray[np.int64] = (plain * numbers).max(axis=0).astype(np.int64)
    return result


def in_ras(values: NDArray[Any], affine: Any) -> NDArray[Any]:
    return np.asarray(Orientation("RAS", labels=None)(MetaTensor(torch.as_tensor(values[None]), affine=affine))[0])


def draw(data: str, case: str, found: dict[str, dict[str, Any]]) -> Path:
    """Draw one case with what each network found."""
    load = LoadImage(image_only=True)
    first = next(iter(found.values()))
    image = EnsureChannelFirst()(load(first["files"]["image"]))
    label = load(first["files"]["label"])
    truth = np.asarray(label).astype(int)
    if first["regions"]:
        nested = [np.isin(truth, values) for values in first["regions"].values()]
        truth = as_map(torch.as_tensor(np.stack([np.zeros_like(truth), *nested])))
    maps = {name: in_ras(entry["map"], label.affine) for name, entry in found.items()}
    spacing = [float(length) for length in np.linalg.norm(in_ras_affine(label), axis=0)]
    shown = in_ras(np.asarray(image[0]), image.affine)
    what = ": each region without those inside it" if first["regions"] else ""
    return save_overlay(
        BUNDLE / "runs" / "overlays" / f"{data}-{case}.png",
        *(shown, in_ras(truth, label.affine), maps, spacing, first["classes"]),
        title=f"{data}, {case}{what}",
    )


def in_ras_affine(label: MetaTensor) -> NDArray[Any]:
    """Return the 3 x 3 part of the affine after the axes were brought to RAS."""
    turned = Orientation("RAS", labels=None)(MetaTensor(label.as_tensor()[None], affine=label.affine))
    return np.asarray(turned.affine)[:3, :3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(DATA), help="sets of data, comma separated")
    arguments = parser.parse_args()
    wanted = arguments.data.split(",")
    if unknown := set(wanted) - set(DATA):
        parser.error(f"unknown data {sorted(unknown)}; known: {', '.join(DATA)}")
    if not os.environ.get("MONAI_KD_DATA"):
        parser.error("set MONAI_KD_DATA to the folder that holds the data and splits")
    known = {run.name: run for run in runs()}
    for data in tqdm(wanted, unit="set"):
        networks = {name: known.get(f"{data}-{name}-seed0") for name in (ALONE, EXCHANGED, SPACE)}
        scored = {name: run for name, run in networks.items() if run and (RESULTS / data / run.name).is_dir()}
        if not {ALONE, EXCHANGED} <= scored.keys():
            parser.error(f"'{data}' has no scores of {ALONE} and {EXCHANGED} with seed 0; run experiments.py first")
        cases = telling_cases(scored[ALONE], scored[EXCHANGED])
        found = {name: predictions(run, cases) for name, run in scored.items()}
        for case in cases:
            print(draw(data, case, {name: entries[case] for name, entries in found.items()}))


if __name__ == "__main__":
    main()
