"""The main job on phantoms, from nothing to a small model: ``make demo``.

Makes phantoms, trains a teacher, the student alone and the distilled student through the bundles' own configuration
files, scores all three on the same test phantoms, exports the distilled student to ONNX and checks it, and writes a
report. Everything lands in the output folder; the bundles' own weights are not touched.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle_runs import REPOSITORY, run_bundle
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation

from monai_kd.data import case_id, make_phantoms
from monai_kd.export import export_onnx
from monai_kd.hub import make_teacher
from monai_kd.teachers import load_teacher
from monai_kd.visualize.overlays import save_overlay
from monai_kd.visualize.records import load_records
from monai_kd.visualize.report import write_report
from monai_kd.visualize.tables import results_table

TEACHER, STUDENT = REPOSITORY / "bundles" / "teacher", REPOSITORY / "bundles" / "student"
# half of the released teacher's width, one patch a step, and students of two: minutes on 2 cores
TEACHER_FILTERS = [16, 32, 64, 144]
OWN_FOLDERS = ("data", "runs", "scores", "teacher", "student", "predictions", "pictures", "logs", "test_images")
ARMS = {"baseline": ["train.yaml", "baseline.yaml"], "distilled": ["train.yaml"]}


class Demo:
    """One demo in its output folder."""

    def __init__(self, output_dir: Path, num_cases: int, epochs: int, seed: int) -> None:
        self.out = output_dir.resolve()
        self.num_cases = num_cases
        self.epochs = epochs
        self.seed = seed
        self.threads = os.cpu_count() or 1
        self.started = time.perf_counter()
        self.commands: list[str] = []

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self.started:5.0f} s] {text}", flush=True)

    def run(self) -> dict[str, Any]:
        self.clear()
        self.say(f"phantoms: {self.num_cases} labelled 3-D volumes")
        make_phantoms(self.out / "data", num_train=self.num_cases, num_test=2, seed=self.seed)
        self.say("1/3 training the teacher")
        self.train(TEACHER, "teacher", ["train.yaml"], {"network_def::filters": TEACHER_FILTERS, "batch_size": 1})
        make_teacher(self.out / "runs" / "teacher", TEACHER, self.out / "teacher")
        for number, (arm, configs) in enumerate(ARMS.items(), start=2):
            what = "the student alone" if arm == "baseline" else "the distilled student"
            self.say(f"{number}/3 training {what}")
            self.train(STUDENT, arm, configs, {"teacher_root": self.out / "teacher", "batch_size": 2})
        self.say("scoring all three on the same test phantoms")
        self.score(TEACHER, "teacher", ["train.yaml"], {"network_def::filters": TEACHER_FILTERS})
        for arm, configs in ARMS.items():
            self.score(STUDENT, arm, configs, {})
        self.say("exporting the distilled student to ONNX")
        parity = self.export()
        self.say("predicting with inference.yaml and drawing the report")
        return self.report(parity)

    def clear(self) -> None:
        """Remove what an earlier demo wrote, and nothing else."""
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / ".monai_kd_demo").is_file():
            raise FileExistsError(f"'{self.out}' holds files that no demo wrote; give another --output_dir")
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / ".monai_kd_demo").touch()
        for name in OWN_FOLDERS:
            shutil.rmtree(self.out / name, ignore_errors=True)
        for name in ("results.json", "report.html"):
            (self.out / name).unlink(missing_ok=True)

    def train(self, bundle: Path, name: str, configs: list[str], extra: Mapping[str, Any]) -> None:
        run_dir = self.out / "runs" / name
        overrides = {
            "dataset_dir": self.out / "data",
            "protocol": "phantoms",
            "split_file": "''",
            "epochs": self.epochs,
            "run_dir": run_dir,
            "ckpt_dir": run_dir / "models",
            "seed": self.seed,
            **extra,
        }
        self.bundle(bundle, configs, overrides, f"train_{name}")

    def score(self, bundle: Path, name: str, configs: list[str], extra: Mapping[str, Any]) -> None:
        overrides = {
            "dataset_dir": self.out / "data",
            "protocol": "phantoms",
            "split_file": self.out / "runs" / "teacher" / "split.json",
            "ckpt_path": self.out / "runs" / name / "model.pt",
            "run_dir": self.out / "scores" / name,
            **extra,
        }
        self.bundle(bundle, [*configs, "evaluate.yaml"], overrides, f"score_{name}")

    def bundle(self, bundle: Path, configs: list[str], overrides: Mapping[str, Any], log: str) -> None:
        run_bundle(bundle, configs, overrides, self.out / "logs" / f"{log}.txt", self.threads)
        files = "[" + ",".join(f"'configs/{name}'" for name in configs) + "]"
        shown = {key: self.shown(value) for key, value in overrides.items()}
        options = " ".join(f'--{key} "{value}"' for key, value in shown.items())
        self.commands.append(
            f'cd bundles/{bundle.name} && python -m monai.bundle run --config_file "{files}" --bundle_root . {options}'
        )

    def shown(self, value: Any) -> str:
        """Return a path as the reader of the report would write it."""
        return str(value).replace(str(self.out), "../../demo_output")

    def test_cases(self) -> list[str]:
        names: list[str] = json.loads((self.out / "runs" / "teacher" / "split.json").read_text())["test"]
        return names

    def export(self) -> dict[str, float]:
        """Make the student folder, a bundle with the demo's own weights, and export it."""
        student = self.out / "student"
        shutil.copytree(STUDENT, student, ignore=shutil.ignore_patterns("models", "runs", "eval", "previous"))
        (student / "models").mkdir()
        for source, target in (("model.pt", "model.pt"), ("run.json", "model.json")):
            shutil.copyfile(self.out / "runs" / "distilled" / source, student / "models" / target)
        network = load_teacher(student)  # reads any bundle folder, this one too
        image = LoadImage(ensure_channel_first=True)(self.out / "data" / "imagesTr" / f"{self.test_cases()[0]}.nii.gz")
        volume = image.as_tensor()[:, :40, :48, :32]
        volume = (volume - volume.mean()) / volume.std()
        return export_onnx(network, student / "models" / "model.onnx", 1, (32, 48, 32), parity_images=[volume[None]])

    def predict(self) -> None:
        """Segment two test phantoms with each bundle's inference.yaml, which needs MONAI only."""
        images = self.out / "test_images"
        images.mkdir()
        for name in self.test_cases()[:2]:
            shutil.copyfile(self.out / "data" / "imagesTr" / f"{name}.nii.gz", images / f"{name}.nii.gz")
        for name, bundle in {"teacher": TEACHER, "baseline": STUDENT, "distilled": STUDENT}.items():
            overrides: dict[str, Any] = {
                "dataset_dir": images,
                "output_dir": self.out / "predictions" / name,
                "ckpt_path": self.out / "runs" / name / "model.pt",
            }
            if name == "teacher":
                overrides["network_def::filters"] = TEACHER_FILTERS
            self.bundle(bundle, ["inference.yaml"], overrides, f"predict_{name}")

    def overlays(self) -> list[tuple[str, Path]]:
        load = Compose([LoadImage(image_only=True), EnsureChannelFirst(), Orientation(axcodes="RAS", labels=None)])
        pictures = []
        for path in sorted((self.out / "test_images").glob("*.nii.gz")):
            image, label = load(path), load(self.out / "data" / "labelsTr" / path.name)
            predictions = {
                name: load(self.out / "predictions" / name / f"{case_id(path)}_seg.nii.gz")[0].numpy().astype(int)
                for name in ("baseline", "distilled", "teacher")
            }
            spacing_mm = [float(mm) for mm in image.pixdim]
            picture = self.out / "pictures" / f"{case_id(path)}.png"
            classes = {"1": "anterior", "2": "posterior"}
            truth = label[0].numpy().astype(int)
            save_overlay(picture, image[0].numpy(), truth, predictions, spacing_mm, classes, title=case_id(path))
            pictures.append((f"{case_id(path)}: label, student alone, distilled student, teacher", picture))
        return pictures

    def report(self, parity: Mapping[str, float]) -> dict[str, Any]:
        self.predict()
        records = load_records(self.out / "scores")
        table = results_table(records)
        title = "monai_kd demo: a teacher distilled into a small student, on phantoms"
        path = write_report(self.out, records, self.overlays(), title=title, commands=self.commands)
        models = {
            record["method"]: {
                "parameters": record["network"]["parameters"],
                "dice": record["summary"]["dice"],
                "hd95_mm": record["summary"]["hd95_mm"],
                "missed": record["summary"]["missed"],
                "inference_s_per_case": record["time"]["inference_s_per_case"],
                "training_s": record["training"]["time"]["total_s"],
            }
            for record in records
        }
        results = {
            "models": models,
            "n_test_cases": len(self.test_cases()),
            "seed": self.seed,
            "epochs": self.epochs,
            "onnx": dict(parity),
            "total_s": time.perf_counter() - self.started,
        }
        (self.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"\n{table}\n\nONNX against PyTorch: {parity['max_logit_difference']:.1e} logits at most")
        self.say(f"done: {path}, {self.out / 'results.json'}, {self.out / 'student'}")
        return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo_output"))
    parser.add_argument("--num_cases", type=int, default=30, help="labelled phantoms, drawn into three sections")
    parser.add_argument("--epochs", type=int, default=45)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    Demo(arguments.output_dir, arguments.num_cases, arguments.epochs, arguments.seed).run()


if __name__ == "__main__":
    main()
