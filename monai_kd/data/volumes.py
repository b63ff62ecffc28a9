"""What is in an image or label file, read once and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage
from tqdm import tqdm

from monai_kd.data.raster import is_raster, read_raster

__all__ = ["VolumeFacts", "cache_file", "read_volumes", "volume_facts"]

_CACHE_VARIABLE = "MONAI_KD_CACHE"
_VERSION = 1  # of the facts; a cache of another version is not read
_MOST_VALUES = 256  # a label with more values than that is no label map


@dataclass(frozen=True)
class VolumeFacts:
    """What training needs to know about one file.

    Attributes:
        channels: size of the channel dimension; 1 if the file has none.
        shape: voxels along the spatial axes.
        affine: 4 x 4, voxel to RAS millimetres, row by row.
        not_finite: number of NaN and infinite voxels.
        values: distinct values in ascending order, at most 256 of them; empty for images.
        error: why the file cannot be read; all else is empty then.
    """

    channels: int = 0
    shape: tuple[int, ...] = ()
    affine: tuple[float, ...] = ()
    not_finite: int = 0
    values: tuple[float, ...] = ()
    error: str = ""


def volume_facts(path: str | os.PathLike[str], is_label: bool) -> VolumeFacts:
    """Read a whole volume as training does (``LoadImage``, channel first); a file that cannot be read is a fact too.

    Photographs and their masks are read by :func:`~monai_kd.data.raster.read_raster`; their affine is the identity.
    """
    if is_raster(path):
        return _raster_facts(path, is_label)
    try:
        volume = LoadImage(image_only=True, ensure_channel_first=True, dtype=None)(os.fspath(path))
    except Exception as error:  # readers raise whatever their format's library raises
        return VolumeFacts(error=_reason(error))
    assert isinstance(volume, MetaTensor)
    voxels = volume.as_tensor()
    values = _distinct_values(voxels) if is_label else []
    return VolumeFacts(
        channels=int(voxels.shape[0]),
        shape=tuple(voxels.shape[1:]),
        affine=tuple(np.asarray(volume.affine, dtype=float).ravel().tolist()),
        not_finite=int((~torch.isfinite(voxels)).sum()) if voxels.is_floating_point() else 0,
        values=tuple(float(value) for value in values),
    )


def _raster_facts(path: str | os.PathLike[str], is_label: bool) -> VolumeFacts:
    try:
        pixels = read_raster(path, is_label)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and its own
        return VolumeFacts(error=_reason(error))
    return VolumeFacts(
        channels=len(pixels),
        shape=pixels.shape[1:],
        affine=tuple(np.eye(4).ravel().tolist()),
        values=tuple(float(value) for value in np.unique(pixels)[:_MOST_VALUES]) if is_label else (),
    )


def _distinct_values(voxels: torch.Tensor) -> list[float]:
    """Return the smallest values, at most 256; counted where they are small whole numbers, which is much faster."""
    array = voxels.numpy()
    if array.size and array.min() >= 0 and array.max() < 65536:  # not so with NaN
        whole = array.astype(np.uint16)
        if array.dtype.kind in "ui" or np.array_equal(whole, array):
            seen = np.zeros(65536, dtype=bool)
            seen[whole] = True
            return np.flatnonzero(seen)[:_MOST_VALUES].tolist()
    return np.unique(array)[:_MOST_VALUES].tolist()


def cache_file(dataset_dir: str | os.PathLike[str]) -> Path:
    """Return where the facts of a folder's files are kept: below ``$MONAI_KD_CACHE``, else ``~/.cache/monai_kd``."""
    home = os.environ.get(_CACHE_VARIABLE) or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "monai_kd"
    )
    folder = hashlib.sha256(os.path.realpath(dataset_dir).encode()).hexdigest()[:16]
    return Path(home) / "volumes" / f"{folder}.json"


def read_volumes(
    dataset_dir: str | os.PathLike[str], images: Sequence[str], labels: Sequence[str], progress: bool = True
) -> dict[str, VolumeFacts]:
    """Return the facts of every file, several at a time; files that did not change since the last call are not read.

    A file is unchanged if size and modification time are, or else if the sha256 of its bytes is. The cache is
    written whole or not at all; where it cannot be written (read-only home), the next call reads anew.

    Args:
        dataset_dir: the folder whose cache is used.
        images: paths of images.
        labels: paths of label maps; their values are listed.
        progress: show a bar while files are read.
    """
    path = cache_file(dataset_dir)
    known = _read_cache(path)
    wanted = {**dict.fromkeys(images, False), **dict.fromkeys(labels, True)}
    entries = {name: _unchanged(name, is_label, known) for name, is_label in wanted.items()}
    unread = [name for name, entry in entries.items() if entry is None]
    try:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # each holds a whole volume
            read = pool.map(lambda name: _entry(name, wanted[name]), unread)
            bar = tqdm(read, total=len(unread), desc="checking files", unit="file", disable=not progress or not unread)
            for name, entry in zip(unread, bar, strict=True):
                entries[name] = entry
    finally:  # an interrupted reading is not lost
        complete = {name: entry for name, entry in entries.items() if entry is not None}
        if complete != {name: known.get(_key(name, wanted[name])) for name in complete}:
            _write_cache(path, {**known, **{_key(name, wanted[name]): entry for name, entry in complete.items()}})
    return {name: _facts(entry["facts"]) for name, entry in complete.items()}


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _key(path: str, is_label: bool) -> str:
    return f"{'label' if is_label else 'image'}:{os.path.realpath(path)}"


def _stamp(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(path: str, is_label: bool) -> dict[str, Any]:
    try:
        stamp = _stamp(path)  # before reading: a file that changes meanwhile is read again next time
        return {"stamp": stamp, "sha256": _sha256(path), "facts": asdict(volume_facts(path, is_label))}
    except OSError as error:  # no permission, or gone
        return {"stamp": [], "sha256": "", "facts": asdict(VolumeFacts(error=_reason(error)))}


def _unchanged(path: str, is_label: bool, known: dict[str, Any]) -> dict[str, Any] | None:
    entry = known.get(_key(path, is_label))
    if entry is None or entry["facts"]["error"]:  # what could not be read may have been a matter of the moment
        return None
    try:
        stamp = _stamp(path)
        if entry["stamp"] == stamp:
            return entry
        return {**entry, "stamp": stamp} if entry["sha256"] == _sha256(path) else None
    except OSError:
        return None


def _facts(content: dict[str, Any]) -> VolumeFacts:
    fields: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in content.items()}
    return VolumeFacts(**fields)


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if (
        not isinstance(content, dict)
        or content.get("version") != _VERSION
        or not isinstance(content.get("volumes"), dict)
    ):
        return {}
    return {key: entry for key, entry in content["volumes"].items() if _is_entry(entry)}


def _is_entry(entry: Any) -> bool:
    """Tell whether an entry of the cache is one of ours; a cache that something else wrote is read anew."""
    try:
        facts = _facts(entry["facts"])
        return isinstance(facts.error, str) and len(facts.affine) in (0, 16) and {"stamp", "sha256"} <= set(entry)
    except (TypeError, KeyError, AttributeError):
        return False


def _write_cache(path: Path, volumes: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"version": _VERSION, "volumes": volumes}), encoding="utf-8")
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
