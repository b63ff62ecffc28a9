"""``models/checksums.sha256``: the sha256 of every other file in a bundle's models folder, as ``sha256sum`` writes it.

The records beside the weights say how they were made and name their sha256; this list makes any changed byte show,
in the records too. ``sha256sum -c checksums.sha256`` reads it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from monai_kd.handlers.provenance import file_sha256
from monai_kd.hub.bundle_folder import BundleFolder

__all__ = ["CHECKSUMS", "checksum_problems", "checksums_text", "record_problems", "write_checksums"]

CHECKSUMS = "models/checksums.sha256"
_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def _model_files(bundle: BundleFolder) -> dict[str, Path]:
    models = bundle.root / "models"
    listed = [path for path in bundle.files if path.is_relative_to(models) and path != bundle.root / CHECKSUMS]
    return {path.relative_to(models).as_posix(): path for path in listed}


def checksums_text(bundle: str | Path) -> str:
    """Return what ``models/checksums.sha256`` must hold."""
    found = _model_files(BundleFolder(bundle))
    return "".join(f"{file_sha256(path)}  {name}\n" for name, path in sorted(found.items()))


def write_checksums(bundle: str | Path) -> Path:
    """Write ``models/checksums.sha256`` anew, after the weights were compared with the records that name them.

    Raises:
        ValueError: weights that are not those of their record, which looks like damage and not like a new training.
    """
    folder = BundleFolder(bundle)
    if problems := record_problems(folder):
        raise ValueError(f"'{bundle}': no checksums written: {'; '.join(problems)}")
    target = folder.root / CHECKSUMS
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    draft.write_text(checksums_text(bundle), encoding="utf-8")
    os.replace(draft, target)
    return target


def checksum_problems(bundle: BundleFolder) -> list[str]:
    """Return how the files in ``models/`` differ from the list, one line each."""
    path = bundle.root / CHECKSUMS
    if not path.is_file():
        return [f"{CHECKSUMS} is missing: write it by `python -m monai_kd sync BUNDLE`"]
    text = path.read_bytes().decode("utf-8", errors="replace")
    lines = [_LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    if not lines or not text.endswith("\n") or None in lines:
        return [f"{CHECKSUMS} is damaged: its lines are not 'SHA256  NAME'"]
    listed = {match[2]: match[1] for match in lines if match}
    found = _model_files(bundle)
    problems = [f"models/{name} is not listed in {CHECKSUMS}" for name in sorted(found.keys() - listed.keys())]
    problems += [f"models/{name} is listed and missing" for name in sorted(listed.keys() - found.keys())]
    for name in sorted(found.keys() & listed.keys()):
        if (sha256 := file_sha256(found[name])) != listed[name]:
            problems.append(f"models/{name} has sha256 {sha256[:12]}..., {CHECKSUMS} says {listed[name][:12]}...")
    if problems:
        problems[-1] += "; damaged, or trained anew: then `python -m monai_kd sync BUNDLE` lists the files as they are"
    return problems


def record_problems(bundle: BundleFolder) -> list[str]:
    """Return weights that are not those of the record beside them, one line each."""
    models = bundle.root / "models"
    problems = _named(bundle, models / "model.json", models / "model.pt", lambda content: content["network"])
    for folder in bundle.model_folders():
        metadata, weights = folder / "configs" / "metadata.json", folder / "models" / "model.pt"
        problems += _named(bundle, metadata, weights, lambda content: content.get("provenance", {}).get("network", {}))
    for folder in bundle.recorded_folders():
        for weights in sorted(folder.glob("*.pt")):
            problems += _named(bundle, weights.with_suffix(".json"), weights, lambda content: content["network"])
    return problems


def _named(bundle: BundleFolder, record: Path, weights: Path, network: Any) -> list[str]:
    """Compare a weights file with the sha256 that a record states, if it states one."""
    if not record.is_file() or not weights.is_file():
        return []
    try:
        stated = network(json.loads(record.read_text(encoding="utf-8"))).get("weights_sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{bundle.relative(record)} is no record of a training: {' '.join(str(error).split())}"]
    if stated is None or stated == file_sha256(weights):
        return []
    return [f"{bundle.relative(weights)} is not the file that {bundle.relative(record)} names ({str(stated)[:12]}...)"]
