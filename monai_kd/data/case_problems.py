"""What is wrong with a case: its grids, channels and label values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from monai_kd.data.volumes import VolumeFacts

__all__ = ["GRID_TOLERANCE", "ambiguous_labels", "case_problems", "grid_shift", "joined_channels", "mask_problems"]

GRID_TOLERANCE = 0.1  # voxels that image and label may lie apart


def case_problems(image: VolumeFacts, label: VolumeFacts, in_channels: int, label_values: Sequence[float]) -> list[str]:
    """Return what is wrong with a case, in words; an empty list if nothing is.

    Args:
        image, label: what the two files hold.
        in_channels: channels that the network takes.
        label_values: what a label may hold, e.g. 0 to the number of classes - 1.
    """
    unread = [(role, facts.error) for role, facts in (("image", image), ("label", label)) if facts.error]
    if unread:
        return [f"{role} cannot be read, it is damaged or truncated ({error})" for role, error in unread]
    problems = []
    if image.channels != in_channels:
        problems.append(f"image has {image.channels} channels, the network takes {in_channels}")
    if label.channels != 1:
        problems.append(f"label has {label.channels} channels, a label map has 1")
    if image.shape != label.shape:
        cells = "pixels" if len(image.shape) == 2 else "voxels"
        problems.append(f"image has {_size(image.shape)} {cells} and label {_size(label.shape)}: not the same grid")
    elif (shift := grid_shift(image.affine, label.affine, image.shape)) > GRID_TOLERANCE:
        problems.append(f"the affines of image and label differ, by up to {shift:.3g} voxels: not the same grid")
    for role, facts in (("image", image), ("label", label)):
        if facts.not_finite:
            problems.append(f"{role} has {facts.not_finite} voxels that are NaN or infinite")
    if outside := [value for value in label.values if value not in label_values]:
        shown = ", ".join(f"{value:g}" for value in outside[:5]) + (", ..." if len(outside) > 5 else "")
        smeared = "; JPEG smears masks, save them as PNG" if len(label.shape) == 2 and len(outside) > 5 else ""
        problems.append(f"label has the values {shown}; the classes are {_values_text(label_values)}{smeared}")
    return problems


def mask_problems(image: VolumeFacts, mask: VolumeFacts, role: str = "fov") -> list[str]:
    """Return what is wrong with a mask of the pixels that count; an empty list if nothing is.

    Args:
        image, mask: what the two files hold.
        role: what the mask is called.
    """
    if mask.error:
        return [f"{role} cannot be read, it is damaged or truncated ({mask.error})"]
    if mask.channels != 1 or (not image.error and mask.shape != image.shape):
        return [
            f"{role} has {mask.channels} channels of {_size(mask.shape)} pixels; one of {_size(image.shape)} would fit "
            "the image"
        ]
    if len(mask.values) > 2 or not mask.values[-1] > 0:
        shown = ", ".join(f"{value:g}" for value in mask.values[:5])
        return [f"{role} has the values {shown}; it must be 0 outside of the field of view and one value inside"]
    return []


def ambiguous_labels(
    labels: Mapping[str, VolumeFacts], exclusive_values: Sequence[Sequence[float]]
) -> dict[str, list[str]]:
    """Return what is wrong, by case, where a label holds two values that stand for one tissue in different data.

    Then the other labels that hold one of these values are no clearer, and are named too.

    Args:
        labels: what the labels hold, by case.
        exclusive_values: groups of which one label may hold at most one value.
    """
    problems: dict[str, list[str]] = {}
    for group in exclusive_values:
        held = {name: [value for value in group if value in facts.values] for name, facts in labels.items()}
        mixed = [name for name, values in held.items() if len(values) > 1]
        for name in mixed:
            problems.setdefault(name, []).append(
                f"label has both {_together(held[name])}, which mean one tissue in different data: ambiguous"
            )
        for name in (name for name, values in held.items() if mixed and len(values) == 1):
            problems.setdefault(name, []).append(
                f"label has the value {_together(held[name])}, which is ambiguous where '{mixed[0]}' has both "
                f"{_together(held[mixed[0]])}"
            )
    return problems


def _together(values: Sequence[float]) -> str:
    return " and ".join(f"{value:g}" for value in values)


def _values_text(values: Sequence[float]) -> str:
    ordered = sorted(values)
    whole = ordered == list(range(len(ordered)))
    return f"0 to {len(ordered) - 1}" if whole else ", ".join(f"{value:g}" for value in ordered)


def joined_channels(files: Sequence[tuple[str, VolumeFacts]]) -> VolumeFacts:
    """Return the facts of an image whose channels come from several files, given with the path of each."""
    named = [(os.path.basename(path), facts) for path, facts in files]
    (first_name, first), *others = named
    for name, facts in named:
        if facts.error:
            return VolumeFacts(error=f"'{name}': {facts.error}")
    for name, facts in others:
        if facts.shape != first.shape:
            return VolumeFacts(
                error=f"'{name}' has {_size(facts.shape)} voxels and '{first_name}' {_size(first.shape)}; one image "
                "needs one grid"
            )
        if (shift := grid_shift(facts.affine, first.affine, first.shape)) > GRID_TOLERANCE:
            return VolumeFacts(
                error=f"the affines of '{name}' and '{first_name}' differ, by up to {shift:.3g} voxels; one image "
                "needs one grid"
            )
    channels = sum(facts.channels for _, facts in files)
    not_finite = sum(facts.not_finite for _, facts in files)
    return replace(first, channels=channels, not_finite=not_finite)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def grid_shift(first: Any, second: Any, shape: Sequence[int]) -> float:
    """How far apart two affines of one shape put a corner voxel, in voxels of the finest spacing.

    Args:
        first, second: 4 x 4, voxel to millimetres.
        shape: voxels along the spatial axes.
    """
    first, second = (np.reshape(np.asarray(affine, dtype=float), (4, 4)) for affine in (first, second))
    ends = [(0, length - 1) for length in (*shape, 1, 1)[:3]]
    corners = np.array([(*corner, 1.0) for corner in np.stack(np.meshgrid(*ends), -1).reshape(-1, 3)])
    shifts_mm = np.linalg.norm(corners @ (first - second).T, axis=1)
    return float(shifts_mm.max() / np.linalg.norm(first[:3, :3], axis=0).min())
