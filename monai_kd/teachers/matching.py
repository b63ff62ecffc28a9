"""Wrap a teacher so that it takes the student's patches and gives the student's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from monai_kd.teachers.facts import Facts, facts_of_metadata
from monai_kd.teachers.wrappers import MapClasses, PadToMultiple, Reorient, Resample, RescaleIntensity, SelectChannels

__all__ = ["DIFFERENCES", "Matching", "Student", "adapt", "axis_change", "network_spacing", "same_names"]

DIFFERENCES = ("modality", "channels", "intensity", "spacing", "orientation")
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
SPACING_TOLERANCE = 0.01  # relative; headers are rounded


@dataclass(frozen=True)
class Student:
    """The student's side: what its patches and its classes are. None is unknown and not compared."""

    class_names: Sequence[str] | None = None
    in_channels: int = 1
    patch_size: Sequence[int] = (32, 32, 32)
    spacing_mm: Sequence[float] | None = None
    orientation: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.orientation is not None:
            check_axcodes("orientation", self.orientation)
        if self.spacing_mm is not None:
            check_spacing("spacing_mm", self.spacing_mm)

    @property
    def facts(self) -> Facts:
        """Modality, intensities and channel names, from the metadata."""
        return facts_of_metadata(self.metadata)


@dataclass(frozen=True)
class Matching:
    """How the differences between teacher and student are bridged; see :func:`~monai_kd.teachers.load_teacher`."""

    class_map: Mapping[str, Any] | str | None = None
    channel_order: Sequence[int | str] | None = None
    intensity: Mapping[str, Any] | None = None
    teacher_spacing_mm: Sequence[float] | None = None
    teacher_orientation: str | None = None
    resample: bool = False
    size_multiple: int | Sequence[int] | None = None
    accept: Sequence[str] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.accept if name not in DIFFERENCES]
        if isinstance(self.accept, str) or unknown:
            raise ValueError(f"accept is {self.accept!r}; give a list of {', '.join(DIFFERENCES)}")
        if self.teacher_orientation is not None:
            check_axcodes("teacher_orientation", self.teacher_orientation)
        if self.teacher_spacing_mm is not None:
            check_spacing("teacher_spacing_mm", self.teacher_spacing_mm)


def check_axcodes(name: str, codes: str) -> None:
    axes = {frozenset((code, _OPPOSITE.get(code, code))) for code in codes}
    if len(codes) != 3 or len(axes) != 3 or any(code not in _OPPOSITE for code in codes):
        raise ValueError(f"{name} is '{codes}'; give three axis codes such as RAS, LPS or SAR")


def check_spacing(name: str, spacing_mm: Sequence[float]) -> None:
    if isinstance(spacing_mm, str) or not all(isinstance(v, (int, float)) and v > 0 for v in spacing_mm):
        raise ValueError(f"{name} is {spacing_mm!r}; give the voxel's size along each axis, mm")


# ---- axes and spacing ------------------------------------------------------------------------------------------------


def axis_change(student: str, teacher: str) -> tuple[list[int], list[bool]]:
    """For each of the teacher's axes the student's axis, and whether it runs the other way."""
    order = [next(i for i, code in enumerate(student) if code in (wanted, _OPPOSITE[wanted])) for wanted in teacher]
    return order, [student[axis] != wanted for axis, wanted in zip(order, teacher, strict=True)]


def network_spacing(facts: Facts, student: Student, matching: Matching) -> list[float] | None:
    """The teacher's spacing along the student's axes; None if it is unknown."""
    if matching.teacher_spacing_mm is not None:
        return [float(value) for value in matching.teacher_spacing_mm]
    if facts.spacing_mm is None:
        return None
    if facts.orientation is None or student.orientation is None:
        return list(facts.spacing_mm)
    order, _ = axis_change(student.orientation, facts.orientation)
    return [facts.spacing_mm[order.index(axis)] for axis in range(len(order))]


def same_spacing(teacher: Sequence[float], student: Sequence[float]) -> bool:
    return len(teacher) == len(student) and all(
        abs(a - b) <= SPACING_TOLERANCE * max(a, b) for a, b in zip(teacher, student, strict=True)
    )


# ---- the wrappers, from the network outwards -------------------------------------------------------------------------


def adapt(network: nn.Module, root: str, facts: Facts, student: Student, matching: Matching) -> nn.Module:
    """Wrap the network in what its facts and the settings call for.

    Raises:
        ValueError: a setting that cannot be, or a teacher whose conversion must be given; both sides are named.
    """
    network = _pad(network, facts, matching)
    if facts.orientation is not None and student.orientation is not None:
        order, flip = axis_change(student.orientation, facts.orientation)
        if order != sorted(order) or any(flip):
            network = Reorient(network, order, flip)
    network = _resample(network, root, facts, student, matching)
    network = _rescale(network, root, facts, student, matching)
    if matching.channel_order is not None:
        network = SelectChannels(network, _channels(root, facts, student, matching.channel_order))
    if matching.class_map is not None:
        network = MapClasses(network, _groups(root, facts, student, matching.class_map))
    return network


def _pad(network: nn.Module, facts: Facts, matching: Matching) -> nn.Module:
    multiple = matching.size_multiple
    if multiple is None:
        multiple = facts.plans.size_multiple if facts.plans is not None else None
    if multiple is None:
        return network
    return PadToMultiple(network, [multiple] * 3 if isinstance(multiple, int) else multiple)


def _resample(network: nn.Module, root: str, facts: Facts, student: Student, matching: Matching) -> nn.Module:
    if not matching.resample:
        return network
    own = network_spacing(facts, student, matching)
    if own is None or student.spacing_mm is None:
        missing = "teacher_spacing_mm" if own is None else "spacing_mm"
        raise ValueError(
            f"resample needs both spacings: teacher '{root}' has {own or 'none stated'}, the student "
            f"{student.spacing_mm or 'none stated'}; give {missing}"
        )
    if same_spacing(own, student.spacing_mm):
        return network
    return Resample(network, [mine / other for mine, other in zip(student.spacing_mm, own, strict=True)])


def _rescale(network: nn.Module, root: str, facts: Facts, student: Student, matching: Matching) -> nn.Module:
    if facts.plans is not None and "intensity" not in matching.accept:
        normalizations = facts.plans.normalizations
        bare = [number for number, item in enumerate(normalizations) if not item.of_each_image]
        if bare and matching.intensity is None:
            raise ValueError(
                f"teacher '{root}' takes {'; '.join(str(normalizations[number]) for number in bare)}, the student's "
                f"images are {_intensities(student)}: give intensity={{'scale': ..., 'shift': ...}} that turns the "
                "student's intensities into the raw ones"
            )
        if any(normalizations[number].scale is not None for number in bare):
            network = RescaleIntensity(
                network,
                [1.0 if item.scale is None else item.scale for item in normalizations],
                [item.shift for item in normalizations],
                [item.clip for item in normalizations],
            )
    if matching.intensity is None:
        return network
    known = ("scale", "shift", "clip")
    unknown = [name for name in matching.intensity if name not in known]
    if unknown or not matching.intensity:
        raise ValueError(f"intensity has the keys {list(matching.intensity)}; give some of {', '.join(known)}")
    return RescaleIntensity(network, **matching.intensity)


def _intensities(student: Student) -> str:
    stated = student.facts.value_range
    return "of unknown intensities" if stated is None else f"in [{stated[0]:g}, {stated[1]:g}]"


def _channels(root: str, facts: Facts, student: Student, wanted: Sequence[int | str]) -> list[int]:
    names = student.facts.channel_names or ()
    folded = [name.casefold() for name in names]
    channels = []
    for channel in wanted:
        index = folded.index(str(channel).casefold()) if str(channel).casefold() in folded else channel
        if not isinstance(index, int) or not 0 <= index < student.in_channels:
            raise ValueError(
                f"channel_order gives teacher '{root}' the channel {channel!r}; the student's {student.in_channels} "
                f"channels: {list(names) or list(range(student.in_channels))}"
            )
        channels.append(index)
    if facts.channels is not None and facts.channels != len(channels):
        raise ValueError(
            f"channel_order {list(wanted)} has {len(channels)} of the student's channels, teacher '{root}' takes "
            f"{facts.channels}: {list(facts.channel_names or ())}"
        )
    return channels


# ---- classes ---------------------------------------------------------------------------------------------------------


def same_names(first: Sequence[str], second: Sequence[str] | None) -> bool:
    """Whether the classes are the same in any order; the background, the first class, has many names."""
    if second is None:
        return False
    one, other = ([name.casefold() for name in names] for names in (first, second))
    return sorted(one) == sorted(other) or sorted(one[1:]) == sorted(other[1:])


def _by_name(own: Sequence[str], stated: Sequence[str] | None) -> dict[str, Any]:
    """Each class by its name; the background by channel 0 where the teacher calls it otherwise."""
    class_map: dict[str, Any] = {name: name for name in own}
    mine, names = ([name.casefold() for name in listed] for listed in (own, stated or ()))
    if mine and names and mine[0] not in names and names[0] not in mine[1:]:
        class_map[own[0]] = 0
    return class_map


def _groups(root: str, facts: Facts, student: Student, class_map: Mapping[str, Any] | str) -> list[list[int]]:
    if student.class_names is None:
        raise ValueError(f"class_map of teacher '{root}' needs class_names, the student's classes")
    own = list(student.class_names)
    if class_map == "by_name":
        class_map = _by_name(own, facts.class_names)
    if not isinstance(class_map, Mapping) or sorted(class_map) != sorted(own):
        given = list(class_map) if isinstance(class_map, Mapping) else repr(class_map)
        raise ValueError(
            f"class_map of teacher '{root}' has {given}, the student's classes are {own}; map each of them to one or "
            "more of the teacher's, or give by_name"
        )
    parts = {name: _as_list(class_map[name]) for name in own}
    groups = {name: [_class_index(part, root, facts, own, name) for part in parts[name] if part != "*"] for name in own}
    used = [index for group in groups.values() for index in group]
    for name in own:
        if "*" in parts[name]:
            groups[name] += [index for index in range(_number(root, facts)) if index not in used]
            used += groups[name]
    _check_partition(root, facts, own, groups)
    return [groups[name] for name in own]


def _as_list(parts: Any) -> list[Any]:
    return list(parts) if isinstance(parts, (list, tuple)) else [parts]


def _class_index(part: Any, root: str, facts: Facts, own: Sequence[str], name: str) -> int:
    if isinstance(part, int) and part >= 0:
        return part
    stated = [known.casefold() for known in facts.class_names or ()]
    if str(part).casefold() not in stated:
        known = list(facts.class_names) if facts.class_names else "not stated; give channel numbers"
        raise ValueError(
            f"class_map gives the student's '{name}' (of {list(own)}) the class {part!r}; the classes of teacher "
            f"'{root}': {known}"
        )
    return stated.index(str(part).casefold())


def _number(root: str, facts: Facts) -> int:
    if facts.class_names is None:
        raise ValueError(f"class_map uses '*' and teacher '{root}' does not state its classes; list their channels")
    return len(facts.class_names)


def _check_partition(root: str, facts: Facts, own: Sequence[str], groups: Mapping[str, list[int]]) -> None:
    used = sorted(index for group in groups.values() for index in group)
    total = len(facts.class_names) if facts.class_names else len(set(used))
    names = list(facts.class_names or range(total))
    missing = [names[index] for index in range(total) if index not in used]
    doubled = sorted({str(names[index]) if index < total else str(index) for index in used if used.count(index) > 1})
    if missing or doubled or used != list(range(total)):
        raise ValueError(
            f"class_map onto the student's {list(own)} must use each class of teacher '{root}' {names} once; missing: "
            f"{missing or 'none'}, more than once: {doubled or 'none'}"
        )
    empty = [name for name in own if not groups[name]]
    if empty:
        raise ValueError(
            f"class_map leaves the student's {empty} without a class of teacher '{root}', which has {names}"
        )
