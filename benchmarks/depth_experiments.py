"""The stages of `experiments.py` that compare networks on slices, on slices that meet, and in 3-D.

On the hippocampus and the left atrium each network is trained with three seeds by one recipe, so that nothing but the
network differs; variants of the exchange and other data are trained with one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from bundle_runs import REPOSITORY
from experiment_runs import SEEDS, Run, publish_best, train_side_by_side

from monai_kd.visualize import curves_figure, load_records, networks_figure, save_figure

BUNDLE = REPOSITORY / "bundles" / "distill-dsm"
RESULTS = REPOSITORY / "docs" / "results" / "distill_dsm"
# the overlay of each network; none is the bundle's own
NETWORKS: Mapping[str, tuple[str, ...]] = {
    name: (f"{name}.yaml",) if name != "distill_dsm" else ()
    for name in ("baseline", "distill_dsm", "unet3d", "plain_dsm", "residual_dsm", "alpha_quarter", "alpha_one")
}
# the overlays of each set of data; none is the bundle's own
DATA: Mapping[str, tuple[str, ...]] = {
    "hippocampus": (),
    "left_atrium": ("left_atrium.yaml",),
    "prostate": ("prostate.yaml",),
    "brats": ("sigmoid.yaml", "brats.yaml"),
}
CONTROLS = ("baseline", "plain_dsm", "unet3d")
ON_ALL_SEEDS = {
    "hippocampus": ("baseline", "distill_dsm", "unet3d", "plain_dsm"),
    "left_atrium": ("baseline", "distill_dsm", "unet3d"),
}
ON_ONE_SEED = {
    "hippocampus": ("alpha_quarter", "alpha_one", "residual_dsm"),
    "prostate": ("baseline", "distill_dsm"),  # its few slices cannot be halved as often as unet3d does
    "brats": ("baseline", "distill_dsm", "unet3d"),
}


def runs() -> list[Run]:
    """Return all trainings, those of several seeds first."""
    wanted = [(data, name, seed) for data, names in ON_ALL_SEEDS.items() for seed in SEEDS for name in names]
    wanted += [(data, name, SEEDS[0]) for data, names in ON_ONE_SEED.items() for name in names]
    return [
        Run(
            BUNDLE,
            f"{data}-{name}-seed{seed}",
            ["train.yaml", *NETWORKS[name], *DATA[data]],
            seed,
            RESULTS / data,
        )
        for data, name, seed in wanted
    ]


def train(workers: int, threads: int) -> None:
    """Train all of them and publish the bundle's network with the best validation Dice."""
    everything = runs()
    train_side_by_side(everything, workers, threads)
    publish_best(run for run in everything if run.name.startswith("hippocampus-distill_dsm-"))


def score(threads: int) -> None:
    """Score all of them on the test cases, one at a time, so that the timings are clean; draw them."""
    for run in runs():
        run.score(threads)
        shutil.copyfile(run.run_dir / "split.json", run.results / "split.json")
    records = load_records(RESULTS)
    save_figure(networks_figure(records, BUNDLE.name, CONTROLS), RESULTS / "networks.png")
    curves = [record for record in records if record["protocol"]["name"] == "hippocampus"]
    save_figure(curves_figure(curves, "hippocampus: loss and validation Dice"), RESULTS / "curves.png")
