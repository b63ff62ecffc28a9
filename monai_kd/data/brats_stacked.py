"""Brain tumor cases whose modalities are stacked in one 4-D file, as MSD Task01_BrainTumour."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_kd.data.case_names import MODALITY_NAMES
from monai_kd.data.dataset_json import channel_names
from monai_kd.data.splits import labelled_cases

__all__ = ["is_stacked", "stacked_cases"]

_logger = logging.getLogger("monai_kd")
_MODALITY_OF = {spelling: name for name, spellings in MODALITY_NAMES.items() for spelling in spellings}


def is_stacked(folder: Path) -> bool:
    """Tell whether a folder has the MSD layout: ``imagesTr`` or ``imagesTs``."""
    return any((folder / name).is_dir() for name in ("imagesTr", "imagesTs"))


def stacked_cases(
    folder: Path, modalities: Sequence[str], labeled: bool = True, optional: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """List cases as ``{"image": path, "label": path}``, or images alone; see :func:`~monai_kd.data.brats_cases`.

    Raises:
        FileNotFoundError: a file that ``dataset.json`` names does not exist.
        ValueError: ``dataset.json`` names the channels in another order than ``modalities``, or unknown ones; optional
            modalities; no case.
    """
    if optional:
        raise ValueError(
            f"optional is {list(optional)}, but the images of '{folder}' hold all modalities in one 4-D file: to leave "
            'some out, modalities need one file each (BraTS layout); pass --optional "[]"'
        )
    _check_order(folder / "dataset.json", modalities)
    return list(labelled_cases(folder)) if labeled else _images(folder)


def _images(folder: Path) -> list[dict[str, Any]]:
    for name in ("imagesTs", "imagesTr"):
        paths = [path for path in (folder / name).glob("*.nii*") if not path.name.startswith(".")]
        if paths:
            return [{"image": os.path.normpath(path)} for path in sorted(paths)]
    raise ValueError(f"dataset_dir '{folder}' has no NIfTI file in imagesTs or imagesTr")


def _check_order(path: Path, modalities: Sequence[str]) -> None:
    listed = channel_names(path)
    if not listed:
        _logger.warning(
            "'%s' does not say which modality a channel is; taken for %s, in this order", path, list(modalities)
        )
        return
    unknown = [name for name in listed if name.strip().casefold() not in _MODALITY_OF]
    if unknown:
        raise ValueError(f"'{path}' names the modalities {listed}; {unknown[0]!r} is none of {', '.join(_MODALITY_OF)}")
    stored = [_MODALITY_OF[name.strip().casefold()] for name in listed]
    if stored == list(modalities):
        return
    remedy = f'pass --modalities "{stored}"'.replace(", ", ",")
    if len(modalities) < len(stored):
        remedy += f", or write {' and '.join(modalities)} as files of their own (BraTS layout)"
    raise ValueError(
        f"'{path}' has the channels {stored}, the modalities asked for are {list(modalities)}; a network would see one "
        f"for another: {remedy}"
    )
