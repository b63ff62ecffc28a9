"""Does a teacher speak of the student's task: its channels, intensities, grid, classes, their order?"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_kd.teachers.facts import Facts, read_facts
from monai_kd.teachers.matching import Matching, Student, network_spacing, same_names, same_spacing
from monai_kd.teachers.snapshot import resolve_snapshot
from monai_kd.teachers.wrappers import MapClasses, Reorient, Resample, RescaleIntensity, SelectChannels, wrappers_of

__all__ = ["check_teacher"]

_MODALITY_WORDS = {"mr": "mr", "mri": "mr", "ct": "ct", "us": "us", "ultrasound": "us", "pet": "pet"}
_WIDTHS_APART = 20.0  # ranges are stated loosely, often as [0, 1]; Hounsfield units beside z-scores differ more
_OWN_METADATA = "the student's side is stated in its own configs/metadata.json"


def check_teacher(
    network: nn.Module,
    bundle_root: str | Path,
    class_names: Sequence[str],
    in_channels: int,
    patch_size: Sequence[int],
    spacing_mm: Sequence[float] | None = None,
    orientation: str | None = None,
    student_metadata: Mapping[str, Any] | None = None,
    teacher_spacing_mm: Sequence[float] | None = None,
    accept: Sequence[str] = (),
) -> None:
    """Refuse a teacher whose images or classes are not the student's.

    Compares what the teacher's folder states, in its metadata, preprocessing or nnU-Net plans, with the student, and
    runs the teacher once on zeros. A difference that a wrapper around the network bridges is none.

    Args:
        network: the teacher, in evaluation mode.
        bundle_root: its folder.
        class_names: the student's classes, background first.
        in_channels: channels of the student's images.
        patch_size: spatial size of a training patch, voxels.
        spacing_mm, orientation: of the student's patches; None is not compared.
        student_metadata: content of the student's ``metadata.json``: modality, intensities and names of its channels.
        teacher_spacing_mm: instead of what the folder states, along the student's axes.
        accept: differences to pass over: modality, channels, intensity, spacing, orientation.

    Raises:
        ValueError: other input channels, modality, intensities, spacing or orientation, another number of classes, the
            same classes in another order, or an output that is not one logits tensor of the patch's size. The message
            names both sides.
    """
    student = Student(class_names, in_channels, patch_size, spacing_mm, orientation, student_metadata or {})
    matching = Matching(teacher_spacing_mm=teacher_spacing_mm, accept=accept)
    facts = read_facts(resolve_snapshot(Path(bundle_root).expanduser()), orientation)
    check_facts(network, str(bundle_root), facts, student, matching)


def check_facts(network: nn.Module, root: str, facts: Facts, student: Student, matching: Matching) -> None:
    """The work of :func:`check_teacher`, on what was read before."""
    bridged = {type(wrapper) for wrapper in wrappers_of(network)}
    if SelectChannels not in bridged:
        _check_channels(facts, root, student, matching)
    _check_modality(facts, root, student, matching)
    if RescaleIntensity not in bridged and "intensity" not in matching.accept:
        _check_intensity(facts, root, student)
    if Resample not in bridged and "spacing" not in matching.accept:
        _check_spacing(facts, root, student, matching)
    if Reorient not in bridged and "orientation" not in matching.accept:
        _check_orientation(facts, root, student)
    assert student.class_names is not None
    _check_output(network, root, student.class_names, student.in_channels, student.patch_size)
    if MapClasses not in bridged:
        _check_class_order(facts, root, student.class_names)


def _check_channels(facts: Facts, root: str, student: Student, matching: Matching) -> None:
    if facts.channels is not None and facts.channels != student.in_channels:
        raise ValueError(
            f"teacher '{root}' takes images of {facts.channels} channels, the student of {student.in_channels}; "
            "choose among the student's by channel_order, or give a teacher for these images"
        )
    stated, own = facts.channel_names, student.facts.channel_names
    if stated is None or own is None or "channels" in matching.accept:
        return
    names, own_names = ([name.casefold() for name in listed] for listed in (stated, own))
    if names != own_names and sorted(names) == sorted(own_names):
        raise ValueError(
            f"teacher '{root}' takes the channels {list(stated)}, the student {list(own)}; set "
            f"channel_order={[own_names.index(name) for name in names]}"
        )


def _check_modality(facts: Facts, root: str, student: Student, matching: Matching) -> None:
    own = student.facts.modality
    if facts.modality is None or own is None or "modality" in matching.accept:
        return
    first, second = _modalities(facts.modality), _modalities(own)
    if first & second or facts.modality.casefold() == own.casefold():
        return
    differ = f"teacher '{root}' was trained on {facts.modality}, the student sees {own} ({_OWN_METADATA})"
    if first or second:
        raise ValueError(f"{differ}; give a teacher for these images, or {_accept('modality')} where that is meant")
    warnings.warn(f"{differ}: they are taken to be the same", stacklevel=5)


def _modalities(stated: str) -> set[str]:
    words = re.findall("[a-z0-9]+", stated.casefold())
    return {_MODALITY_WORDS[word] for word in words if word in _MODALITY_WORDS}


def _accept(difference: str) -> str:
    return f"give accept=['{difference}'] (--teacher::accept \"['{difference}']\")"


def _check_intensity(facts: Facts, root: str, student: Student) -> None:
    own = student.facts.value_range
    if own is None:
        return
    if facts.plans is not None:
        _check_plans_intensity(facts, root, own)
        return
    stated = facts.value_range
    if stated is None or stated == own:
        return
    widths = sorted(high - low for low, high in (stated, own))
    differ = (
        f"teacher '{root}' expects intensities in {list(stated)}, the student's images are in {list(own)} "
        f"({_OWN_METADATA})"
    )
    if widths[1] > _WIDTHS_APART * widths[0]:
        raise ValueError(
            f"{differ}; convert them by intensity={{'scale': ..., 'shift': ...}}, or {_accept('intensity')} if both "
            "are normalized alike"
        )
    warnings.warn(f"{differ}: they are taken to be normalized alike", stacklevel=5)


def _check_plans_intensity(facts: Facts, root: str, own: tuple[float, float]) -> None:
    assert facts.plans is not None
    for item in facts.plans.normalizations:
        wrong = {"ZScoreNormalization": own[0] >= 0, "RescaleTo01Normalization": own[0] < 0 or own[1] > 1}
        if wrong.get(item.scheme, False):
            how = "mean 0 and deviation 1" if item.scheme == "ZScoreNormalization" else "0 to 1"
            raise ValueError(
                f"teacher '{root}' normalizes each whole image to {how} ({item.scheme}), the student's images are in "
                f"{list(own)} ({_OWN_METADATA}); normalize the student's images like that, convert them by intensity, "
                f"or {_accept('intensity')} if they are normalized so"
            )


def _check_spacing(facts: Facts, root: str, student: Student, matching: Matching) -> None:
    own = network_spacing(facts, student, matching)
    if own is None or student.spacing_mm is None or same_spacing(own, student.spacing_mm):
        return
    raise ValueError(
        f"teacher '{root}' works at a spacing of {own} mm, the student at {list(student.spacing_mm)} mm; set "
        "resample=True to interpolate the patches, or train the student at the teacher's spacing"
    )


def _check_orientation(facts: Facts, root: str, student: Student) -> None:
    if facts.orientation is None or student.orientation is None or facts.orientation == student.orientation:
        return
    raise ValueError(
        f"teacher '{root}' takes images along {facts.orientation}, the student along {student.orientation}; load it by "
        "load_teacher with orientation, which turns the axes"
    )


def _check_output(
    network: nn.Module, root: str, class_names: Sequence[str], in_channels: int, patch_size: Sequence[int]
) -> None:
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    image = torch.zeros(1, in_channels, *patch_size, device=device)
    try:
        with torch.no_grad():
            logits = network(image)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"teacher '{root}' cannot take the student's patches {tuple(image.shape)}: {reason}"
        ) from error
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"teacher '{root}' returns {type(logits).__name__}; a teacher gives one tensor of logits")
    if logits.shape[1] != len(class_names):
        raise ValueError(
            f"teacher '{root}' gives {logits.shape[1]} channels, the student has {len(class_names)} classes "
            f"{list(class_names)}; merge or order them by class_map"
        )
    if logits.shape[2:] != image.shape[2:]:
        raise ValueError(
            f"teacher '{root}' gives {tuple(logits.shape[2:])} voxels for a patch of {tuple(image.shape[2:])}; "
            "set patch_size to multiples of its total stride, or size_multiple to that stride"
        )


def _check_class_order(facts: Facts, root: str, class_names: Sequence[str]) -> None:
    stated = facts.class_names
    if stated is None:
        return
    names, own = ([name.casefold() for name in listed[1:]] for listed in (stated, class_names))
    if names == own:  # the background has many names
        return
    if same_names(class_names, stated):
        raise ValueError(
            f"teacher '{root}' has its classes in the order {list(stated)}, the student {list(class_names)}; the same "
            "channel must mean the same class: set class_map='by_name'"
        )
    warnings.warn(
        f"teacher '{root}' calls its classes {list(stated)}, the student {list(class_names)}: they are taken to be the "
        "same, channel by channel; say which is which by class_map",
        stacklevel=5,
    )
