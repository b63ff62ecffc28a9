"""What a case is called, from the names of its files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

__all__ = ["LABEL_NAMES", "MODALITY_NAMES", "case_id", "file_role"]

# what a modality is called in the BraTS challenges from 2012 to 2024 and in common conversions
MODALITY_NAMES = {
    "t1": ("t1", "t1n", "t1w"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f"),
}
LABEL_NAMES = ("seg", "label")
_ROLE = re.compile(r"^(.*)[_-]([A-Za-z0-9]+)\.nii(?:\.gz)?$")
_ROLES = {*LABEL_NAMES, *(spelling for names in MODALITY_NAMES.values() for spelling in names)}


def file_role(path: str | os.PathLike[str]) -> str:
    """Return what follows the last ``_`` or ``-`` of a NIfTI file's name, in lower case, or an empty text."""
    match = _ROLE.match(os.path.basename(os.fspath(path)))
    return match[2].casefold() if match else ""


def case_id(path: str | os.PathLike[str] | Sequence[str]) -> str:
    """Return the file name without its NIfTI ending: ``imagesTr/heart_003.nii.gz`` -> ``heart_003``.

    The modalities of one case share its name: ``case_07/case_07_t1ce.nii.gz`` -> ``case_07``, where the folder has the
    name of the case and what follows is a modality or ``seg``. Of a list of files the first counts.
    """
    first = path if isinstance(path, (str, os.PathLike)) else path[0]
    name = os.path.basename(os.fspath(first))
    folder = os.path.basename(os.path.dirname(os.fspath(first)))
    match = _ROLE.match(name)
    if match and match[1] == folder and match[2].casefold() in _ROLES:
        return folder
    for ending in (".nii.gz", ".nii"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return os.path.splitext(name)[0]
