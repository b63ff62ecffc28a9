"""Cases of a BraTS folder: one folder per case, one file per modality, named in the way of any year; or 4-D files."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_kd.data.brats_stacked import is_stacked, stacked_cases
from monai_kd.data.case_names import LABEL_NAMES, MODALITY_NAMES, file_role

__all__ = ["brats_cases"]

_logger = logging.getLogger("monai_kd")


def brats_cases(
    dataset_dir: str | os.PathLike[str],
    modalities: Sequence[str] = ("t1", "t1ce", "t2", "flair"),
    labeled: bool = True,
    optional: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """List the labelled cases of a BraTS folder as ``{"image": [paths], "label": path}``, sorted by the case's folder.

    A file's modality is what follows the last ``_`` or ``-`` of its name: ``ID_t1ce.nii.gz`` (to 2021) and
    ``ID-t1c.nii.gz`` (from 2023) are one modality. The label ends in ``seg``. Folders without a label are left out, as
    those of the validation sets.

    Two other layouts are known by their looks. A folder with ``imagesTr``, as MSD Task01_BrainTumour, has one 4-D file
    per case: ``image`` is one path, and ``dataset.json`` must name its channels in the order of ``modalities``. A plain
    folder of NIfTI files, with one modality and ``labeled=False``: ``image`` is one path, and files that end in another
    modality or in ``seg`` are left out.

    Args:
        dataset_dir: holds one folder per case, or is of one of the other layouts.
        modalities: those that make the image's channels, in this order; of t1, t1ce, t2 and flair.
        labeled: False lists every case, and images alone: ``{"image": [paths]}``; of the MSD layout ``imagesTs`` if
            there is one, else ``imagesTr``.
        optional: modalities that a case may lack. Where any is named each case gets ``"available": [1, 0, ...]``, one
            per modality; the place of a missing file is taken by a file that the case has, for
            :class:`~monai_kd.transforms.MaskMissingd` to clear.

    Raises:
        FileNotFoundError: the folder does not exist, or a labelled case lacks a modality that is not optional, or all
            of them; names it and what was found.
        ValueError: an unknown modality, a modality of which a case has several files, no (labelled) case, channels in
            another order than ``modalities``, or optional modalities of 4-D files.
    """
    folder = Path(dataset_dir)
    _check_modalities(modalities, optional)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"dataset_dir '{folder}' is not a folder; pass --dataset_dir DIR with one folder per case (BraTS layout)"
        )
    if is_stacked(folder):
        return stacked_cases(folder, modalities, labeled, optional)
    cases, unlabeled = [], []
    for case in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        roles = _roles(case)
        known = any(name in roles for name in LABEL_NAMES)
        if roles and (known or not labeled):
            image = _image(case, roles, modalities, optional)
            cases.append({**image, **({"label": _one(case, roles, "seg", LABEL_NAMES)} if labeled else {})})
        elif roles:
            unlabeled.append(case.name)
    if unlabeled:
        _logger.info("%d cases without a label are left out: %s", len(unlabeled), ", ".join(unlabeled[:5]))
    if not cases and not labeled and len(modalities) == 1:
        cases = _plain_images(folder, modalities[0], bool(optional))
    if not cases:
        what = "labelled case: no folder in it holds a file ending in _seg or -seg"
        if not labeled:
            what = "case: no folder in it holds a file ending in _t1, -t1n or another modality"
        raise ValueError(f"dataset_dir '{folder}' has no {what}")
    return cases


def _check_modalities(modalities: Sequence[str], optional: Sequence[str]) -> None:
    if not modalities or len(set(modalities)) < len(modalities) or not set(modalities) <= set(MODALITY_NAMES):
        raise ValueError(
            f"modalities is {list(modalities)}; give at least one, each once, of {', '.join(MODALITY_NAMES)}"
        )
    if isinstance(optional, str) or not set(optional) <= set(modalities):
        raise ValueError(f"optional is {optional!r}; give a list of some of the modalities {list(modalities)}, or []")


def _image(
    case: Path, roles: dict[str, list[str]], modalities: Sequence[str], optional: Sequence[str]
) -> dict[str, Any]:
    """Return ``image``, and with optional modalities ``available`` too."""
    absent = [name for name in optional if not any(spelling in roles for spelling in MODALITY_NAMES[name])]
    if len(absent) == len(modalities):
        raise FileNotFoundError(
            f"case '{case}' lacks every one of the modalities {list(modalities)}; it has {', '.join(roles)}"
        )
    files = {name: _one(case, roles, name, MODALITY_NAMES[name]) for name in modalities if name not in absent}
    stand_in = next(iter(files.values()))
    image = {"image": [files.get(name, stand_in) for name in modalities]}
    return {**image, "available": [int(name in files) for name in modalities]} if optional else image


def _plain_images(folder: Path, modality: str, optional: bool) -> list[dict[str, Any]]:
    """List the NIfTI files right in a folder, without those that end in another modality or in a label's name."""
    others = {spelling for name, names in MODALITY_NAMES.items() if name != modality for spelling in names}
    files = [path for path in folder.glob("*.nii*") if path.name.endswith((".nii", ".nii.gz"))]
    files = [path for path in files if file_role(path) not in {*others, *LABEL_NAMES}]
    paths = sorted(os.path.normpath(path) for path in files if not path.name.startswith("."))
    return [{"image": path, **({"available": [1]} if optional else {})} for path in paths]


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
