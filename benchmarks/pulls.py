"""How hard each term of each distiller pulls on the student, beside the supervised loss.

    MONAI_KD_DATA=DIR python benchmarks/pulls.py [--batches 10] [--warmup 20]
    python benchmarks/pulls.py --phantoms --out FILE

For every overlay in bundles/student/configs/distillers it is measured what ``python -m monai_kd calibrate`` measures:
the bundle's own training is built, the student takes steps on the supervised loss alone, and then, with its weights at
rest, the gradient of each weighted term is compared with that of the supervised loss, batch by batch. All overlays
start from the same weights and see the same batches. It runs on a CPU, in bfloat16 where the CPU has it. The record
goes to docs/results/zoo/pulls.json, from which the table in the documents is made. Nothing is written into the bundle.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

from bundle_runs import REPOSITORY
from measurements import add_data_options, check_data_options, data_overrides, publish
from monai.utils import set_determinism
from tqdm import tqdm

from monai_kd.handlers.provenance import environment
from monai_kd.hub.calibrate import Calibration, calibrate_terms
from monai_kd.inferers import cpu_has_bfloat16
from monai_kd.visualize.pulls import pulls_markdown

STUDENT = REPOSITORY / "bundles" / "student"
REFERENCE = "seg"


def overlays() -> list[str]:
    """Return the names of the student's distillers."""
    return sorted(path.stem for path in (STUDENT / "configs" / "distillers").glob("*.yaml"))


def entry(calibration: Calibration) -> dict[str, dict[str, float | None]]:
    """Return what was measured of each term, the reference among them."""
    return {
        term.name: {"weight": term.weight, "ratio": term.ratio, "sd": term.sd, "suggested": term.suggested}
        for term in calibration.terms
    }


def measure(batches: int, warmup: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Calibrate all overlays; the suggested weights are for ratio 1."""
    bfloat16 = cpu_has_bfloat16()
    # cases read when they are needed: the same batches as from memory, of which a few dozen are enough
    settings = {"device": "cpu", "amp": False, "cpu_bfloat16": bfloat16, "train::dataset::cache_rate": 0.0, **overrides}
    found: dict[str, Any] = {}
    bar = tqdm(overlays(), unit="overlay")
    for name in bar:
        bar.set_description(name)
        files = ["configs/train.yaml", f"configs/distillers/{name}.yaml"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="parsing config_file")  # MONAI's hint to trust the source
            measured = calibrate_terms(STUDENT, files, batches, reference=REFERENCE, warmup=warmup, overrides=settings)
        found[name] = entry(measured)
    return {
        "precision": "bfloat16" if bfloat16 else "float32",
        "batches": batches,
        "warmup": warmup,
        "reference": REFERENCE,
        "overlays": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=10, help="measured batches of each overlay")
    parser.add_argument("--warmup", type=int, default=20, help="steps on the supervised loss before that")
    add_data_options(parser, REPOSITORY / "docs" / "results" / "zoo" / "pulls.json")
    arguments = parser.parse_args()
    check_data_options(parser, arguments)
    with tempfile.TemporaryDirectory() as folder:
        overrides = data_overrides(arguments.phantoms, Path(folder))
        found = measure(arguments.batches, arguments.warmup, overrides)
    set_determinism(None)
    record = {**environment("cpu", REPOSITORY), "data": "phantoms" if arguments.phantoms else "hippocampus", **found}
    publish(record, pulls_markdown(record), arguments.out)


if __name__ == "__main__":
    main()
