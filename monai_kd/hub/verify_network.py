"""Checks of a bundle's network and weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import monai.bundle

from monai_kd.export.torchscript import tracing
from monai_kd.hub.bundle_folder import BundleFolder, NotReadable
from monai_kd.hub.probe import reason
from monai_kd.teachers import load_teacher
from monai_kd.teachers.weights import read_state_dict

__all__ = ["export_problems", "misfits", "shape_problems", "unsafe_checkpoints"]

_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".ts")


def unsafe_checkpoints(bundle: BundleFolder) -> list[str]:
    """Every checkpoint is read as tensors alone; one that needs code is named and not loaded."""
    problems = []
    for path in bundle.files:
        if path.suffix in _CHECKPOINTS:
            try:
                read_state_dict(path, None, "cpu")
            except (ValueError, RuntimeError) as error:
                problems.append(str(error).replace(f"{bundle.root}/", ""))
    return problems


def misfits(bundle: BundleFolder) -> list[str]:
    """The bundle's weights, and those of every network below ``models/``, fit with no key missing."""
    _require_weights(bundle)
    problems = []
    for folder in [bundle.root, *bundle.model_folders()]:
        try:
            load_teacher(folder)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            problems.append(" ".join(str(error).split()).replace(f"{bundle.root}/", ""))
    return problems


def _require_weights(bundle: BundleFolder) -> Path:
    weights = bundle.root / "models" / "model.pt"
    if not weights.is_file():
        raise NotReadable("models/model.pt is missing")
    return weights


def _inference(bundle: BundleFolder) -> dict[str, Any]:
    if "network_data_format" not in bundle.metadata:
        raise NotReadable("configs/metadata.json has no 'network_data_format'")
    bundle.config("inference")
    return {
        "meta_file": str(bundle.root / "configs" / "metadata.json"),
        "config_file": str(bundle.config_path("inference")),
    }


def shape_problems(bundle: BundleFolder) -> list[str]:
    """MONAI's ``verify_net_in_out``: the network takes and gives what the metadata says."""
    try:
        monai.bundle.verify_net_in_out("network_def", device="cpu", **_inference(bundle))
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        return [reason(error)]
    return []


def export_problems(bundle: BundleFolder) -> list[str]:
    """MONAI's ``ckpt_export`` to TorchScript, into a temporary file."""
    weights = _require_weights(bundle)
    files = _inference(bundle)
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "verify_model.ts"
        try:
            given = {"filepath": str(target), "ckpt_file": str(weights), **files}
            monai.bundle.ckpt_export("network_def", **given, **tracing(load_teacher(bundle.root), bundle.metadata))
        except Exception as error:  # TorchScript has errors of its own
            return [reason(error)]
        return [] if target.is_file() else ["ckpt_export wrote no file"]
