"""Segment images with a bundle's own pipeline and any runtime."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from monai_kd.data.raster import is_raster
from monai_kd.data.volumes import volume_facts
from monai_kd.export.exporter import exported_dir
from monai_kd.export.pipeline import find_images, image_endings, inference_flow, quiet
from monai_kd.export.record import recorded_export
from monai_kd.export.runtimes import load_runtime
from monai_kd.handlers.first_cause import first_cause
from monai_kd.handlers.provenance import file_sha256

__all__ = ["ENGINES", "predict_images"]

# engine -> file endings, and what `export` calls its file
ENGINES: dict[str, tuple[tuple[str, ...], str]] = {
    "pytorch": ((".pt", ".pth"), "model.pt"),
    "torchscript": ((".ts",), "model.ts"),
    "torch-export": ((".pt2",), "model.pt2"),
    "onnx": ((".onnx",), "model.onnx"),
    "openvino": ((".xml",), "model.xml"),
}


def predict_images(
    bundle: str | Path,
    images: str | Path,
    out: str | Path,
    engine: str = "pytorch",
    model: str | Path | None = None,
    threads: int | None = None,
) -> list[Path]:
    """Segment images: the bundle's inference.yaml with its network in any runtime.

    ``pytorch`` runs on the device that the bundle chooses and gives the files of ``python -m monai.bundle run``; the
    other engines run on the CPU. Each case is written whole or not at all, and a case that fails does not stop the
    others.

    Args:
        bundle: the bundle's folder.
        images: an image, or a folder of them (its imagesTs if it has one): NIfTI, or photographs where the bundle's
            metadata have a ``data_type`` such as ``png``.
        out: folder for ``<image>_seg.nii.gz``, or ``<image>_seg.png``, in each image's own grid.
        engine: a name in :data:`ENGINES`.
        model: the model file; None is the bundle's model.pt, or what ``export`` wrote for the engine.
        threads: CPU threads of ONNX Runtime and OpenVINO; None leaves it to them.

    Returns:
        The written files, in the order of the images.

    Raises:
        FileNotFoundError: bundle, images or model missing.
        ValueError: an unknown engine, a model of another engine, an export of other weights, or ``out`` is the folder
            of the images.
        RuntimeError: some images failed; the message names them, the others are written.
    """
    root, target = Path(bundle).resolve(), Path(out)
    file = _model_file(root, engine, model)
    found = find_images(images, image_endings(root))
    if target.resolve() == found[0].parent:
        raise ValueError(f"'{target}' holds the images; give another folder for the results")
    overrides: dict[str, Any] = {}
    if engine != "pytorch":
        overrides = {
            "network": load_runtime(file, bundle=root, threads=threads),
            "load_pretrain": False,
            "device": "cpu",
        }
    else:
        overrides = {"ckpt_path": str(file)}
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    failed: list[str] = []
    for image in found:
        try:
            written += _predict_one(root, image, target, overrides)
        except Exception as error:  # any defect of one image: the others go on
            cause = first_cause(error)
            reason = " ".join(str(cause).split())[:300]
            failed.append(f"'{image.name}' ({type(cause).__name__}: {reason})")
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(found)} images failed, {len(written)} files are in '{target}': {'; '.join(failed)}"
        )
    return written


def _predict_one(root: Path, image: Path, target: Path, overrides: dict[str, Any]) -> list[Path]:
    """Run the bundle on one image into a temporary folder, then move what it wrote."""
    if is_raster(image) and (error := volume_facts(image, is_label=False).error):
        raise OSError(f"it cannot be read, it is damaged or truncated: {error}")  # MONAI would name missing readers
    with tempfile.TemporaryDirectory(prefix=".predict-", dir=target) as work, quiet():
        flow = inference_flow(root, dataset_dir=str(image.parent), output_dir=work, **overrides)
        item = [{"image": str(image)}]
        flow.parser["dataset::data"] = item
        if "datalist" in flow.parser:
            flow.parser["datalist"] = item
        flow.initialize()
        flow.run()
        flow.finalize()
        files = sorted(path for path in Path(work).rglob("*") if path.is_file())
        if not files:
            raise RuntimeError("the bundle's postprocessing wrote no file into output_dir")
        for path in files:
            os.replace(path, target / path.name)
        return [target / path.name for path in files]


def _model_file(root: Path, engine: str, model: str | Path | None) -> Path:
    """Return the engine's model file."""
    if engine not in ENGINES:
        raise ValueError(f"engine '{engine}' is unknown; known: {', '.join(ENGINES)}")
    endings, name = ENGINES[engine]
    if model is not None:
        path = Path(model).resolve()
        if path.suffix not in endings:
            raise ValueError(f"engine {engine} reads {' or '.join(endings)}, got '{path.name}'")
    else:
        path = root / "models" / name if engine == "pytorch" else exported_dir(root) / name
    if not path.is_file():
        hint = f"; write it by: python -m monai_kd export {root} --formats {engine}"
        raise FileNotFoundError(f"model '{path}' does not exist{'' if engine == 'pytorch' or model else hint}")
    if model is None and engine != "pytorch":
        _refuse_stale(root, path)
    return path


def _refuse_stale(root: Path, path: Path) -> None:
    """Refuse an export of weights that the bundle no longer has."""
    entry, weights = recorded_export(path), root / "models" / "model.pt"
    if entry and weights.is_file() and entry["weights_sha256"] != file_sha256(weights):
        raise ValueError(
            f"'{path}' was exported from other weights than '{weights}': export again, or name it by --model"
        )
