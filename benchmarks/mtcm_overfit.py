"""Can the whole method learn four real cases by heart, and does the loss stay where it is when distillation starts?

    MONAI_KD_DATA=DIR python benchmarks/mtcm_overfit.py [--iterations 200] [--out FILE]

Networks, terms and optimizer of the bundle mtcm-kd as it is (joint, reduced width); the first four training cases at
1.5 mm, of each one cube of 64 voxels round the tumor, the same in every step. Distillation starts after a quarter of
the iterations, at once. The record in docs/results/mtcm_overfit.json has the volumetric Dice of the student on these
cubes and the student's part of the loss of every iteration. About 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from bundle_runs import REPOSITORY
from ignite.engine import Engine, Events
from measurements import publish
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.engines import PrepareBatchExtraInput
from monai.transforms import Compose, Randomizable, SpatialPadd
from monai.utils import set_determinism
from tqdm import tqdm

from monai_kd.data import case_id
from monai_kd.engines import DistillationTrainer
from monai_kd.handlers import Attach, ClipGradients
from monai_kd.handlers.provenance import environment
from monai_kd.metrics import confusion_matrix, region_dice

BUNDLE = REPOSITORY / "bundles" / "mtcm-kd"
RESULT = REPOSITORY / "docs" / "results" / "mtcm_overfit.json"
CASES, BATCH, EDGE = 4, 2, 64
STUDENT = ("seg", "kd", "side_seg", "side_kd")  # terms of the student
DISTILLATION = ("kd", "side_kd")


def read_bundle() -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / "train.yaml")])
    for name, value in {"bundle_root": str(BUNDLE), "spacing_mm": [1.5, 1.5, 1.5], "teacher_val_interval": 0}.items():
        parser[name] = value
    return parser


def cubes(config: ConfigParser) -> list[dict[str, Any]]:
    """Return one cube round the tumor of each of the first training cases, prepared as for training."""
    steps = config.get_parsed_content("train::preprocessing").transforms
    first_random = next(number for number, step in enumerate(steps) if isinstance(step, Randomizable))
    prepare = Compose([*steps[:first_random], SpatialPadd(["image", "label"], [EDGE] * 3)])
    return [cut_cube(prepare(case)) for case in config.get_parsed_content("split").cases("train")[:CASES]]


def cut_cube(item: dict[str, Any]) -> dict[str, Any]:
    places = item["label"].as_tensor()[0].nonzero().float()
    middles = places.mean(dim=0).round().long().tolist()
    starts = [
        min(max(0, middle - EDGE // 2), size - EDGE)
        for middle, size in zip(middles, item["label"].shape[1:], strict=True)
    ]
    place = (slice(None), *(slice(start, start + EDGE) for start in starts))
    name = case_id(item["image"].meta["filename_or_obj"])
    return {"case": name, "image": item["image"].as_tensor()[place], "label": item["label"].as_tensor()[place]}


class Fit:
    """The training, with the student's part of the loss of each iteration in ``losses``."""

    def __init__(self, config: ConfigParser, data: list[dict[str, Any]], iterations: int) -> None:
        self.config, self.losses = config, list[float]()
        self.distiller = config.get_parsed_content("distiller")
        epochs = iterations * BATCH // CASES
        self.start = epochs // 4  # epochs without distillation
        student, teachers = (config.get_parsed_content(name) for name in ("student", "teachers"))
        self.average = config.get_parsed_content("averaged")
        optimizer = config.get_parsed_content("optimizer")
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        batches = [{key: item[key] for key in ("image", "label")} for item in data]
        trainer = DistillationTrainer(
            device="cpu",
            max_epochs=epochs,
            train_data_loader=DataLoader(Dataset(batches), batch_size=BATCH, shuffle=True),
            network=self.distiller,
            optimizer=optimizer,
            prepare_batch=PrepareBatchExtraInput(extra_keys={"label": "label"}),
            train_handlers=[
                ClipGradients({"student": student, "teachers": teachers}, config.get_parsed_content("max_norm")),
                Attach(config.get_parsed_content("performance_weights")),
                Attach(self.average),
            ],
            decollate=False,
        )
        bar = tqdm(total=iterations, unit="iteration")
        trainer.add_event_handler(Events.EPOCH_STARTED, self._switch)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._note)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: (schedule.step(), bar.update()))
        trainer.run()
        bar.close()

    def _switch(self, engine: Engine) -> None:
        for name in DISTILLATION:
            self.distiller.terms[name].factor = float(engine.state.epoch > self.start)

    def _note(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self.losses.append(sum(float(output[f"weighted/{name}"]) for name in STUDENT))

    def dice(self, network: torch.nn.Module, data: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        """Return the Dice of each region by case."""
        regions, found = self.config.get_parsed_content("regions"), {}
        channels = self.config.get_parsed_content("student").channels
        for item in data:
            with torch.no_grad():
                pred = network.eval()(item["image"][None][:, list(channels)]).argmax(dim=1, keepdim=True)
            values, _ = region_dice(confusion_matrix(pred, item["label"][None].long(), 4), regions)
            found[item["case"]] = dict(zip(regions, values.tolist(), strict=True))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if not os.environ.get("MONAI_KD_DATA"):
        parser.error("set MONAI_KD_DATA to the folder that holds BraTS_1p5mm and splits")
    set_determinism(0)
    config = read_bundle()
    data = cubes(config)
    fit = Fit(config, data, arguments.iterations)
    first = fit.start * CASES // BATCH  # the first iteration with distillation
    found = {
        name: fit.dice(network, data)
        for name, network in (("student", config.get_parsed_content("network")), ("average", fit.average.average))
    }
    means = {
        name: {region: sum(case[region] for case in cases.values()) / CASES for region in next(iter(cases.values()))}
        for name, cases in found.items()
    }
    record = {
        **environment("cpu", REPOSITORY),
        **{"iterations": arguments.iterations, "batch": BATCH, "edge": EDGE, "cases": CASES},
        "dice": found,
        "mean_dice": means,
        "loss": {"before": fit.losses[first - 1], "after": fit.losses[first], "most_after": max(fit.losses[first:])},
        "losses": fit.losses,
    }
    lines = [
        f"{name}: " + ", ".join(f"{region} {value:.3f}" for region, value in mean.items())
        for name, mean in means.items()
    ]
    lines.append(
        "loss before, at and at most after the start of distillation: "
        + ", ".join(f"{v:.3f}" for v in record["loss"].values())
    )
    publish(record, "\n".join(lines), arguments.out)


if __name__ == "__main__":
    main()
