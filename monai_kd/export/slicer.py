"""The zip that 3D Slicer's MONAIAuto3DSeg extension reads, for bundles whose preprocessing is one of its own modes."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import (
    Activationsd,
    CopyItemsd,
    CropForegroundd,
    DeleteItemsd,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    Spacingd,
)
from torch import nn

from monai_kd.export.pipeline import inference_config, inference_flow
from monai_kd.teachers.weights import file_sha256

__all__ = ["slicer_settings", "write_slicer"]

_NEUTRAL = (LoadImaged, EnsureChannelFirstd, EnsureTyped, CopyItemsd, DeleteItemsd)
_ORDER = ("orientation_ras", "crop_foreground", "resample_resolution", "normalize_mode")
_CODES = ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")
_SEQUENCES = (
    "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyTypeCodeSequence",
    "SegmentedPropertyTypeModifierCodeSequence",
    "AnatomicRegionSequence",
    "AnatomicRegionModifierSequence",
)
# SNOMED CT: an anatomical structure, of tissue; Slicer shows the segment's own name beside it
_TERMS = ("SCT", "123037004", "Anatomical Structure", "SCT", "85756007", "Tissue")


def slicer_settings(bundle: str | Path) -> dict[str, Any]:
    """Translate a bundle's inference configuration into the settings of MONAIAuto3DSeg.

    Returns:
        ``orientation_ras``, ``crop_foreground``, ``resample_resolution``, ``normalize_mode``, ``intensity_bounds`` and
        ``sigmoid``.

    Raises:
        ValueError: the preprocessing or postprocessing equals none of its modes; the message names the transform.
    """
    flow = inference_flow(bundle, network=nn.Identity(), load_pretrain=False)
    settings: dict[str, Any] = {
        "orientation_ras": False,
        "crop_foreground": False,
        "resample_resolution": None,
        "normalize_mode": "none",
        "intensity_bounds": [0.0, 0.0],
        "sigmoid": False,
    }
    seen: list[str] = []
    for transform in flow.parser.get_parsed_content("preprocessing").transforms:
        if isinstance(transform, _NEUTRAL):
            continue
        name, value = _setting(transform)
        settings[name] = value
        seen.append(name)
    if seen != sorted(set(seen), key=_ORDER.index):
        raise ValueError(f"slicer: MONAIAuto3DSeg prepares images by {', '.join(_ORDER)}; the bundle by {seen}")
    _check_postprocessing(flow.parser.get_parsed_content("postprocessing").transforms)
    return settings


def _setting(transform: Any) -> tuple[str, Any]:
    """Return the setting that a preprocessing transform stands for."""
    if isinstance(transform, Orientationd) and transform.ornt_transform.axcodes == "RAS":
        return "orientation_ras", True
    if isinstance(transform, CropForegroundd) and transform.cropper.margin in (10, (10, 10, 10), [10, 10, 10]):
        return "crop_foreground", True
    if isinstance(transform, Spacingd) and {str(mode) for mode in transform.mode} == {"bilinear"}:
        return "resample_resolution", [float(mm) for mm in transform.spacing_transform.pixdim]
    if isinstance(transform, NormalizeIntensityd):
        normalizer = transform.normalizer
        if normalizer.nonzero and normalizer.channel_wise and normalizer.subtrahend is None:
            return "normalize_mode", "mri"
    raise ValueError(
        f"slicer: the bundle prepares images by {type(transform).__name__} with settings that MONAIAuto3DSeg does not "
        "know; it knows Orientationd RAS, CropForegroundd margin 10, Spacingd bilinear and NormalizeIntensityd nonzero "
        "channel_wise"
    )


def _check_postprocessing(transforms: Sequence[Any]) -> None:
    if not any(isinstance(transform, Activationsd) and all(transform.softmax) for transform in transforms):
        raise ValueError("slicer: the bundle's postprocessing has no softmax; only exclusive classes are exported")


def write_slicer(
    bundle: Path,
    network: nn.Module,
    weights: Path,
    metadata: Mapping[str, Any],
    window: Sequence[int],
    folder: Path,
) -> Path:
    """Write ``folder/NAME-vVERSION.zip`` with labels.csv and model.pt.

    Raises:
        ValueError: see :func:`slicer_settings`; or the network is none of MONAI's own.
    """
    record = _training_record(bundle, weights)
    content = {
        "config": {
            "network": _network_definition(bundle),
            "roi_size": [int(length) for length in window],
            "bundle_root": ".",
            **slicer_settings(bundle),
        },
        "state_dict": network.state_dict(),
        "epoch": int(record.get("best_epoch") or 0),
        "best_metric": float(record.get("best_metric") or 0.0),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    name = f"{metadata.get('name', bundle.name)}-v{metadata['version']}.zip"
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in (("labels.csv", _labels(metadata).encode()), ("model.pt", buffer.getvalue())):
            archive.writestr(zipfile.ZipInfo(member), data, zipfile.ZIP_DEFLATED)  # no time stamp
    return folder / name


def _network_definition(bundle: Path) -> dict[str, Any]:
    definition: dict[str, Any] = ConfigParser.load_config_file(str(inference_config(bundle)))["network_def"]
    text = json.dumps(definition)
    if "@" in text or '"$' in text:
        raise ValueError(f"slicer: network_def refers to other ids of its configuration: {text}; write it out")
    target = str(definition.get("_target_", ""))
    if "." in target and not target.startswith("monai."):
        raise ValueError(f"slicer: the network is '{target}', and 3D Slicer has only MONAI's own")
    return definition


def _training_record(bundle: Path, weights: Path) -> dict[str, Any]:
    """Return the record of the training that wrote these weights, if it is known."""
    path = bundle / "models" / "model.json"
    if not path.is_file():
        return {}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = record.get("network", {}).get("weights_sha256") == file_sha256(weights)
    return record if same else {}


def _labels(metadata: Mapping[str, Any]) -> str:
    """Return labels.csv: the classes of the metadata without the background."""
    classes: Mapping[str, str] = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["LabelValue", "Name", *(f"{name}.{code}" for name in _SEQUENCES for code in _CODES)])
    for value, name in classes.items():
        if int(value) > 0:
            writer.writerow([int(value), name, *_TERMS, *([""] * (3 * len(_SEQUENCES) - len(_TERMS)))])
    return text.getvalue()
