"""Find and read the weights of a bundle."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import

__all__ = [
    "file_sha256",
    "find_weights",
    "is_torchscript",
    "read_nnunet_checkpoint",
    "read_state_dict",
    "weight_files",
]

_WEIGHT_SUFFIXES = (".pt", ".pth", ".ts", ".ckpt", ".safetensors")
_HUB_WEIGHTS = "model.safetensors"
_STATE_DICT_KEYS = ("model", "state_dict", "network")


def weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in _WEIGHT_SUFFIXES and path.is_file())


def find_weights(root: Path, weights: str | Path | None) -> Path:
    if weights is not None:
        path = root / Path(weights).expanduser()
        if path.is_file():
            return Path(os.path.abspath(path))  # not resolved: the blobs behind a hub's links have no suffix
        raise FileNotFoundError(f"weights '{path}' do not exist{_download_hint(root)}")
    models = root / "models"
    for path in (models / "model.pt", models / "model.ts", models / _HUB_WEIGHTS, root / _HUB_WEIGHTS):
        if path.is_file():
            return path
    found = weight_files(models)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise ValueError(
            f"'{models}' holds {names}, none is model.pt or model.ts: choose by weights='models/{found[0].name}'"
        )
    raise FileNotFoundError(
        f"no weights in '{models}': looked for model.pt, model.ts, or one *{', *'.join(_WEIGHT_SUFFIXES)} file"
        + _download_hint(root)
    )


def _download_hint(root: Path) -> str:
    if not any(root.glob("large_files*")):
        return ""
    return f"; fetch them: python -m monai.bundle download_large_files --bundle_path '{root}'"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state_dict(path: Path, key: str | None, map_location: str | torch.device) -> MutableMapping[str, Any]:
    script, safetensors = is_torchscript(path), path.suffix == ".safetensors"
    if key is not None and (script or safetensors):
        kind = "TorchScript" if script else "a safetensors file"
        raise ValueError(f"'{path}' is {kind} and has no checkpoint keys: remove key_in_ckpt='{key}'")
    if script:
        return torch.jit.load(str(path), map_location=map_location).state_dict()
    if safetensors:
        return _read_safetensors(path, map_location)
    return _pick_state_dict(_load_checkpoint(path, map_location), key, path)


def _load_checkpoint(path: Path, map_location: str | torch.device) -> Any:
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError) as error:  # a seek beyond the end is an OSError
        raise ValueError(_unreadable(path, str(error))) from error


def _read_safetensors(path: Path, map_location: str | torch.device) -> MutableMapping[str, Any]:
    load_file, installed = optional_import("safetensors.torch", name="load_file")
    if not installed:
        raise ImportError(f"'{path}' needs safetensors, which is not installed: pip install 'monai_kd[hub]'")
    error_class, _ = optional_import("safetensors", name="SafetensorError")
    try:
        return load_file(str(path), device=str(map_location))
    except error_class as error:
        raise ValueError(_unreadable(path, str(error))) from error


# nnU-Net's logs are numpy scalars: the function that rebuilds one, under its names before and after numpy 2, and types
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]


def read_nnunet_checkpoint(path: Path, map_location: str | torch.device) -> MutableMapping[str, Any]:
    """The content of an nnU-Net checkpoint: tensors, plain values, and numpy's scalars, which run no code."""
    with torch.serialization.safe_globals(_NUMPY_SCALARS):
        checkpoint = _load_checkpoint(path, map_location)
    if not isinstance(checkpoint, MutableMapping):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not an nnU-Net checkpoint")
    return checkpoint


def _unreadable(path: Path, reason: str) -> str:
    with path.open("rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            return f"'{path}' is a Git LFS pointer, not the weights: run `git lfs pull` in the bundle"
    needs = re.search(r"GLOBAL (\S+)", reason)
    if needs:
        return (
            f"'{path}' needs code to unpickle ({needs.group(1)}) and only tensors are read (weights_only=True): "
            "where you trust it, save torch.save(network.state_dict(), ...) anew"
        )
    first = reason.strip().splitlines()[0].partition(". ")[0] if reason.strip() else "empty"
    return f"'{path}' is no readable PyTorch checkpoint, damaged or cut short: {first}"


def _pick_state_dict(checkpoint: Any, key: str | None, path: Path) -> MutableMapping[str, Any]:
    if not isinstance(checkpoint, MutableMapping):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not a state dict")
    listed = ", ".join(map(str, list(checkpoint)[:8]))
    if key is not None:
        if not isinstance(checkpoint.get(key), MutableMapping):
            raise ValueError(f"key_in_ckpt '{key}' is no state dict in '{path}'; its keys: {listed}")
        return checkpoint[key]
    wrapped = [name for name in _STATE_DICT_KEYS if isinstance(checkpoint.get(name), MutableMapping)]
    if len(wrapped) == 1:
        return checkpoint[wrapped[0]]
    if wrapped:
        raise ValueError(f"'{path}' has several state dicts: choose key_in_ckpt among {', '.join(wrapped)}")
    if any(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        return checkpoint
    raise ValueError(f"'{path}' has no state dict under {', '.join(_STATE_DICT_KEYS)}: set key_in_ckpt; keys: {listed}")


def is_torchscript(path: Path) -> bool:
    """Both formats are zip files; only TorchScript has a table of constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
