"""Cases of a BraTS folder: one folder per case, one file per modality, named in the way of any year."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_kd.data.case_names import LABEL_NAMES, MODALITY_NAMES, file_role

__all__ = ["brats_cases"]

_logger = logging.getLogger("monai_kd")


def brats_cases(
    dataset_dir: str | os.PathLike[str],
    modalities: Sequence[str] = ("t1", "t1ce", "t2", "flair"),
    labeled: bool = True,
) -> list[dict[str, Any]]:
    """List the labelled cases of a BraTS folder as ``{"image": [paths], "label": path}``, sorted by the case's folder.

    A file's modality is what follows the last ``_`` or ``-`` of its name: ``ID_t1ce.nii.gz`` (to 2021) and
    ``ID-t1c.nii.gz`` (from 2023) are one modality. The label ends in ``seg``. Folders without a label are left out, as
    those of the validation sets.

    Args:
        dataset_dir: holds one folder per case.
        modalities: those that make the image's channels, in this order; of t1, t1ce, t2 and flair.
        labeled: False lists every case, and images alone: ``{"image": [paths]}``.

    Raises:
        FileNotFoundError: the folder does not exist, or a labelled case lacks a modality; names it and what was found.
        ValueError: an unknown modality, a modality of which a case has several files, or no (labelled) case.
    """
    folder = Path(dataset_dir)
    if not modalities or len(set(modalities)) < len(modalities) or not set(modalities) <= set(MODALITY_NAMES):
        raise ValueError(
            f"modalities is {list(modalities)}; give at least one, each once, of {', '.join(MODALITY_NAMES)}"
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"dataset_dir '{folder}' is not a folder; pass --dataset_dir DIR with one folder per case (BraTS layout)"
        )
    cases, unlabeled = [], []
    for case in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        roles = _roles(case)
        known = any(name in roles for name in LABEL_NAMES)
        if roles and (known or not labeled):
            image = [_one(case, roles, name, MODALITY_NAMES[name]) for name in modalities]
            cases.append({"image": image, **({"label": _one(case, roles, "seg", LABEL_NAMES)} if labeled else {})})
        elif roles:
            unlabeled.append(case.name)
    if unlabeled:
        _logger.info("%d cases without a label are left out: %s", len(unlabeled), ", ".join(unlabeled[:5]))
    if not cases:
        what = "labelled case: no folder in it holds a file ending in _seg or -seg"
        if not labeled:
            what = "case: no folder in it holds a file ending in _t1, -t1n or another modality"
        raise ValueError(f"dataset_dir '{folder}' has no {what}")
    return cases


def _roles(case: Path) -> dict[str, list[str]]:
    """Return the paths of a case's files by what their names end in."""
    roles: dict[str, list[str]] = {}
    for path in sorted(case.iterdir()):
        if not path.name.startswith(".") and (role := file_role(path)):
            roles.setdefault(role, []).append(os.path.normpath(path))
    return roles


def _one(case: Path, roles: dict[str, list[str]], name: str, spellings: Sequence[str]) -> str:
    found = [path for spelling in spellings for path in roles.get(spelling, [])]
    if not found:
        raise FileNotFoundError(
            f"case '{case}' lacks {name}: no file ending in {' or '.join(spellings)}; it has {', '.join(roles)}"
        )
    if len(found) > 1:
        names = ", ".join(os.path.basename(path) for path in found)
        raise ValueError(f"case '{case}' has several files for {name}: {names}; keep one")
    return found[0]
