"""Export a bundle's network and keep a file only if it agrees with PyTorch."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from torch import Tensor, nn

from monai_kd.data import CaseSplit, case_id
from monai_kd.export.parity import Limits, Parity, measure_parity
from monai_kd.export.pipeline import (
    Sample,
    bundle_metadata,
    find_images,
    image_endings,
    quiet,
    record_windows,
    window_size,
)
from monai_kd.export.record import RECORD, read_record
from monai_kd.export.runtimes import load_runtime
from monai_kd.export.writers import FORMATS, Job
from monai_kd.handlers.provenance import file_sha256, write_json
from monai_kd.networks.blocks import ENetUp
from monai_kd.teachers import load_teacher

__all__ = ["LIMITS", "RECORD", "ExportResult", "export_bundle", "exported_dir"]

_EXACT = Limits(max_logit_difference=1e-3, min_dice=0.99)
LIMITS: dict[str, Limits] = {
    **dict.fromkeys(FORMATS, _EXACT),
    "openvino-f16": Limits(max_logit_difference=0.1, min_dice=0.99),  # weights rounded to 11 bits
    "openvino-int8": Limits(max_logit_difference=None, min_dice=0.95),  # weights and activations of 8 bits
    "tensorrt": Limits(max_logit_difference=0.1, min_dice=0.99),  # TF32 matrix units
}
_CHOOSING = {"max_outliers": 0.1, "min_dice": 0.999}  # for networks that put values back to where maxima were
_MOST_PARITY_WINDOWS = 64
_logger = logging.getLogger("monai_kd")


@dataclass(frozen=True)
class ExportResult:
    """One export that passed.

    Attributes:
        format: its name in ``FORMATS``.
        path: the file to load.
        size: bytes of all its files.
        max_logit_difference: from PyTorch, logit units.
        dice: between its labels and PyTorch's, 0 to 1.
    """

    format: str
    path: Path
    size: int
    max_logit_difference: float
    dice: float


@dataclass(frozen=True)
class _Images:
    """Which images check an export and which calibrate it."""

    parity: list[Path]
    calibration: list[Path]

    @property
    def shared(self) -> bool:
        return bool(set(self.parity) & set(self.calibration))


def exported_dir(bundle: str | Path) -> Path:
    """Return where exports go by default."""
    return Path(bundle) / "models" / "exported"


def export_bundle(
    bundle: str | Path,
    formats: Sequence[str],
    out_dir: str | Path | None = None,
    images: str | Path | None = None,
    ckpt: str | Path | None = None,
    parity_images: int = 4,
    calibration_images: int = 32,
    limits: Mapping[str, Limits] | None = None,
) -> list[ExportResult]:
    """Export a bundle's network; each file is compared with PyTorch and kept only if it agrees.

    The comparison runs on windows that the bundle's own preprocessing and inferer cut from ``images``, at most 64 and
    as many of each image, else on seeded noise of two sizes. An older export of a format stays until the new one has
    passed. ``export.json`` beside the files records sizes, hashes, versions and the comparison.

    Args:
        bundle: the bundle's folder.
        formats: names in :data:`FORMATS`; one given twice is exported once.
        out_dir: folder for the files; None is ``BUNDLE/models/exported``.
        images: file or folder, NIfTI or photographs as the bundle takes them. Of the ``imagesTr`` of an MSD folder, and
            of ``images`` beside labels where the bundle lists cases in its own way, only the training cases of the
            bundle's own split are used, so that no test case calibrates anything.
        ckpt: weights; None is ``BUNDLE/models/model.pt``.
        parity_images: so many images check an export, at most 64.
        calibration_images: so many others calibrate INT8; with a single image, that one does both, and the record
            says so.
        limits: per format what it may differ by, in place of :data:`LIMITS`; there,
            :class:`~monai_kd.networks.nets.ENet` may differ by more in a tenth of the voxels, but for INT8, with a Dice
            of 0.999 between the labels.

    Raises:
        FileNotFoundError: bundle, weights or images missing.
        ValueError: an unknown format, INT8 without images, a bundle that a format cannot hold, or a damaged
            export.json.
        ImportError: a package is missing.
        RuntimeError: an export does not agree with PyTorch, or INT8 was compared on background alone; it leaves no
            file.
    """
    root = Path(bundle).resolve()
    wanted = _check_request(root, formats, images, (parity_images, calibration_images))
    weights = Path(ckpt).resolve() if ckpt else root / "models" / "model.pt"
    if not weights.is_file():
        raise FileNotFoundError(f"weights '{weights}' do not exist")
    network = load_teacher(root, weights=weights)
    chosen = _choose(root, images, parity_images, calibration_images)
    target = Path(out_dir) if out_dir else exported_dir(root)
    read_record(target)  # a damaged one is found before minutes of work
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target) as work:
        job = Job(root, network, weights, bundle_metadata(root), window_size(root), Path(work))
        samples = _samples(job, chosen)
        if "openvino-int8" in wanted:
            windows = record_windows(root, network, chosen.calibration, most=10 * calibration_images)
            job.calibration = [window for window, _ in windows]
        allowed = {**_limits_of(network), **(limits or {})}
        return [_export_one(name, job, samples, chosen, target, allowed[name]) for name in wanted]


def _limits_of(network: nn.Module) -> dict[str, Limits]:
    """Return what each format may differ by, for this network."""
    if not any(isinstance(module, ENetUp) for module in network.modules()):
        return LIMITS
    known = {name for name, limits in LIMITS.items() if limits.max_logit_difference is not None}
    return {name: replace(limits, **_CHOOSING) if name in known else limits for name, limits in LIMITS.items()}


def _check_request(root: Path, formats: Sequence[str], images: str | Path | None, counts: Sequence[int]) -> list[str]:
    """Return the formats, each once."""
    bundle_metadata(root)
    wanted = list(dict.fromkeys(name.strip() for name in formats))
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise ValueError(f"format '{unknown[0]}' is unknown; known: {', '.join(FORMATS)}")
    if not wanted:
        raise ValueError(f"no format given; known: {', '.join(FORMATS)}")
    if min(counts) < 1:
        raise ValueError(f"parity_images and calibration_images must be at least 1, got {counts[0]} and {counts[1]}")
    if "openvino-int8" in wanted and images is None:
        raise ValueError("openvino-int8 is calibrated on real images: give --images, a folder of them")
    if "tensorrt" in wanted and not torch.cuda.is_available():
        raise RuntimeError("tensorrt needs an NVIDIA GPU, and PyTorch finds none here; export on the GPU machine")
    return wanted


def _choose(root: Path, images: str | Path | None, parity: int, calibration: int) -> _Images:
    if images is None:
        return _Images([], [])
    found = _without_test_cases(root, find_images(images, image_endings(root)))
    count = min(parity, _MOST_PARITY_WINDOWS, max(1, len(found) // 2))  # so that each gives a window
    return _Images(found[:count], found[count : count + calibration] or found)


def _without_test_cases(root: Path, found: list[Path]) -> list[Path]:
    """Keep the training cases of the bundle's split, where the images are those of a folder that can be split."""
    folder = found[0].parent
    train = root / "configs" / "train.yaml"
    config = ConfigParser.load_config_file(str(train)) if train.is_file() else {}
    own_layout = folder.name == "images" and "list_cases" in config
    if not (own_layout or folder.name == "imagesTr") or not {"split", "split_file", "split_seed"} <= config.keys():
        return found
    with quiet():
        flow = ConfigWorkflow(
            config_file=str(train),
            logging_file=False,
            bundle_root=str(root),
            dataset_dir=str(folder.parent),
            split={
                "_target_": "monai_kd.data.CaseSplit",
                "dataset_dir": "@dataset_dir",
                "split_file": "@split_file",
                "seed": "@split_seed",
                **({"list_cases": "@list_cases"} if own_layout else {}),
            },
        )
        flow.initialize()
    split: CaseSplit = flow.parser.get_parsed_content("split")
    try:
        ids = set(split.ids["train"])
    except FileNotFoundError as error:
        if not own_layout:
            raise
        _logger.warning("'%s' has no labels beside it and is taken whole, test cases too: %s", folder, error)
        return found
    kept = [path for path in found if case_id(path) in ids]
    if not kept:
        raise ValueError(f"'{folder}' holds no training case of the bundle's split ({split.split_file or 'drawn'})")
    return kept


def _samples(job: Job, chosen: _Images) -> list[Sample]:
    """Return the windows that decide, with PyTorch's logits: of real images, else noise of two sizes."""
    if chosen.parity:
        return record_windows(job.root, job.network, chosen.parity, _MOST_PARITY_WINDOWS)
    return [_with_logits(job.network, image) for image in (job.example(2), job.example(1, grow=1))]


def _with_logits(network: nn.Module, image: Tensor) -> Sample:
    with torch.inference_mode():
        return image, network(image).float()


def _export_one(
    name: str, job: Job, samples: list[Sample], chosen: _Images, target: Path, limits: Limits
) -> ExportResult:
    """Write, check, install and record one format."""
    folder = job.work / name
    folder.mkdir()
    drafts = FORMATS[name].write(job, folder)
    parity = _check(name, job, drafts[0], samples, limits)
    others = read_record(target)  # before anything is replaced
    _install(drafts, target)
    files = [target / draft.name for draft in drafts]
    write_json(target / RECORD, {**others, name: _entry(name, job, files, parity, limits, chosen)})
    size = sum(path.stat().st_size for path in files)
    return ExportResult(name, files[0], size, parity.max_logit_difference, parity.dice)


def _check(name: str, job: Job, draft: Path, samples: list[Sample], limits: Limits) -> Parity:
    runtime = load_runtime(draft, device=FORMATS[name].device)
    parity = measure_parity(runtime, samples, limits.max_logit_difference)
    objection = limits.objection(parity)
    if objection is None and FORMATS[name].any_size:
        other = _with_logits(job.network, job.example(1, grow=1))
        # noise says nothing about labels, and far from images 8 bits say little about logits
        rest = replace(limits, min_dice=0.0)
        objection = rest.objection(measure_parity(runtime, [other], limits.max_logit_difference))
    if objection:
        raise RuntimeError(f"the {name} export of '{job.root.name}' {objection}; it was not kept")
    return parity


def _install(drafts: Sequence[Path], target: Path) -> None:
    """Move files of one export to their place together: if one fails, the older ones come back."""
    aside: list[tuple[Path, Path]] = []
    moved: list[Path] = []
    try:
        for draft in drafts:
            place = target / draft.name
            if place.exists():
                older = draft.with_name(f"older-{draft.name}")
                os.replace(place, older)
                aside.append((older, place))
            os.replace(draft, place)
            moved.append(place)
    except OSError:
        for place in moved:
            place.unlink(missing_ok=True)
        for older, place in aside:
            shutil.move(older, place)
        raise


def _entry(
    name: str, job: Job, files: Sequence[Path], parity: Parity, limits: Limits, chosen: _Images
) -> dict[str, Any]:
    """Return what export.json says of an export."""
    entry: dict[str, Any] = {
        "files": [{"name": file.name, "size": file.stat().st_size, "sha256": file_sha256(file)} for file in files],
        "size": sum(file.stat().st_size for file in files),
        "bundle": {"name": job.metadata.get("name", job.root.name), "version": job.metadata["version"]},
        "weights_sha256": file_sha256(job.weights),
        "parameters": sum(parameter.numel() for parameter in job.network.parameters()),
        "versions": {package: _version(package) for package in ("torch", "monai", *FORMATS[name].packages)},
        "parity": {**asdict(parity), "images": [case_id(image) for image in chosen.parity], "limits": asdict(limits)},
    }
    if name == "openvino-int8":
        entry["calibration"] = {
            "images": [case_id(image) for image in chosen.calibration],
            "windows": len(job.calibration),
            "also_in_parity": chosen.shared,
        }
    return entry


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
