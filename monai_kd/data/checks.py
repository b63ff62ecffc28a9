"""Find the cases that would break or spoil a training, before it starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from monai_kd.data.dataset_json import class_names as listed_class_names
from monai_kd.data.volumes import VolumeFacts, read_volumes

__all__ = ["GRID_TOLERANCE", "CaseCheck", "case_problems", "grid_shift"]

Case = Mapping[str, Any]  # paths under image (one, or a list of the channels' files) and label
_logger = logging.getLogger("monai_kd")
_MOST_SHOWN = 10
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
        problems.append(f"image has {_size(image.shape)} voxels and label {_size(label.shape)}: not the same grid")
    elif (shift := grid_shift(image.affine, label.affine, image.shape)) > GRID_TOLERANCE:
        problems.append(f"the affines of image and label differ, by up to {shift:.3g} voxels: not the same grid")
    for role, facts in (("image", image), ("label", label)):
        if facts.not_finite:
            problems.append(f"{role} has {facts.not_finite} voxels that are NaN or infinite")
    if outside := [value for value in label.values if value not in label_values]:
        shown = ", ".join(f"{value:g}" for value in outside[:5]) + (", ..." if len(outside) > 5 else "")
        problems.append(f"label has the values {shown}; the classes are {_values_text(label_values)}")
    return problems


def _values_text(values: Sequence[float]) -> str:
    ordered = sorted(values)
    whole = ordered == list(range(len(ordered)))
    return f"0 to {len(ordered) - 1}" if whole else ", ".join(f"{value:g}" for value in ordered)


def _check_outputs(
    class_names: list[str], out_channels: int | None, regions: Mapping[str, Sequence[float]] | None
) -> None:
    if regions is not None and class_names[1:] != list(regions):
        raise ValueError(
            f"class_names is {class_names}; with the regions {list(regions)} it must be the background and their names"
        )
    outputs = class_names if regions is None else list(regions)
    if out_channels is not None and out_channels != len(outputs):
        what = "class_names is" if regions is None else "regions are"
        raise ValueError(
            f"the network has {out_channels} outputs (network_def::out_channels) and {what} {outputs}: "
            f"give {len(outputs)} outputs, or name {out_channels}"
        )


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


class CaseCheck:
    """Read every case once before training and refuse, or leave out, those that cannot be used.

    Reports files that cannot be read, a wrong number of channels, image and label on different grids, NaN or infinite
    voxels, and label values outside the classes. Also compares the class names with ``labels`` of ``dataset.json``:
    the same names in another order are an error, other names a warning. Results are remembered by file
    (:func:`~monai_kd.data.volumes.read_volumes`). Of several processes the first one reads.

    Args:
        in_channels: channels that the network takes.
        class_names: background first.
        skip_bad_cases: True leaves bad cases out with a warning; False raises.
        label_values: what a label may hold, where that is not 0 to the number of classes - 1, e.g. for regions.
        progress: show a bar while files are read.
        out_channels: of the network, if known; one per class, or one per region.
        regions: name to label values of overlapping regions, which the outputs are then; ``class_names`` must be the
            background and their names.

    Raises:
        ValueError: outputs, regions and class names do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        class_names: Sequence[str],
        skip_bad_cases: bool = False,
        progress: bool = True,
        label_values: Sequence[float] | None = None,
        out_channels: int | None = None,
        regions: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        if not isinstance(skip_bad_cases, bool):
            raise TypeError(f"skip_bad_cases is {skip_bad_cases!r}; it must be True or False")
        _check_outputs(list(class_names), out_channels, regions)
        self.in_channels = in_channels
        self.class_names = list(class_names)
        self.skip_bad_cases = skip_bad_cases
        self.progress = progress
        self.label_values = list(range(len(self.class_names)) if label_values is None else label_values)
        self._passed: set[tuple[str, ...]] = set()  # files of image and label

    def __call__(self, dataset_dir: str | os.PathLike[str], cases: Mapping[str, Case]) -> dict[str, list[str]]:
        """Return the problems of every bad case by its id; empty if all cases can be used.

        Args:
            dataset_dir: MSD-layout folder.
            cases: ``{"image", "label"}`` paths by case id; an image may be a list of files.

        Raises:
            ValueError: there are bad cases and ``skip_bad_cases`` is False, or ``dataset.json`` has the classes in
                another order.
        """
        bad = self._bad(dataset_dir, cases)
        if bad and not self.skip_bad_cases:
            raise ValueError(
                f"{len(bad)} of {len(cases)} cases in '{dataset_dir}' cannot be used:\n{_listing(bad)}\n"
                "Mend or remove them, or pass --skip_bad_cases True to go on without them."
            )
        if bad:
            _logger.warning("%d of %d cases are left out:\n%s", len(bad), len(cases), _listing(bad))
        return bad

    def check_lists(self, dataset_dir: str | os.PathLike[str], *lists: Sequence[Mapping[str, Any]]) -> None:
        """Check data lists that may come from elsewhere than a split: from MONAI Label or a federated client.

        Args:
            dataset_dir: folder whose cache of findings is used.
            lists: items with paths under ``image`` and ``label``; what was checked before is not read again.

        Raises:
            ValueError: there are bad cases; in a list they cannot be skipped.
        """
        items = [item for part in lists for item in part if _files(item) not in self._passed]
        new = [{role: item[role] for role in ("image", "label")} for item in items]
        if new and (bad := self._bad(dataset_dir, {" + ".join(_files(item)[:-1]): item for item in new})):
            raise ValueError(f"{len(bad)} of {len(new)} listed cases cannot be used:\n{_listing(bad)}")

    def _bad(self, dataset_dir: str | os.PathLike[str], cases: Mapping[str, Case]) -> dict[str, list[str]]:
        """The problems of every bad case; of several processes the first one reads."""
        self._compare_class_names(Path(dataset_dir))
        found: list[Any] = [None]
        several = dist.is_available() and dist.is_initialized()
        if not several or dist.get_rank() == 0:
            found = [self._find(dataset_dir, cases)]
        if several:
            dist.broadcast_object_list(found)
        bad: dict[str, list[str]] = found[0]
        self._passed |= {_files(case) for name, case in cases.items() if name not in bad}
        return bad

    def _find(self, dataset_dir: str | os.PathLike[str], cases: Mapping[str, Case]) -> dict[str, list[str]]:
        files = {name: _files(case) for name, case in cases.items()}
        images, labels = (
            [path for paths in files.values() for path in paths[:-1]],
            [paths[-1] for paths in files.values()],
        )
        facts = read_volumes(dataset_dir, images, labels, self.progress)
        problems = {}
        for name, (*parts, label) in files.items():
            image = facts[parts[0]]
            if len(parts) > 1:
                image = joined_channels([(part, facts[part]) for part in parts])
            problems[name] = case_problems(image, facts[label], self.in_channels, self.label_values)
        return {name: found for name, found in problems.items() if found}

    def _compare_class_names(self, folder: Path) -> None:
        listed = listed_class_names(folder / "dataset.json")
        own = [name.casefold() for name in self.class_names]
        names = [name.casefold() for name in listed]
        if not names or names[1:] == own[1:]:  # the background has many names
            return
        if sorted(names[1:]) == sorted(own[1:]):
            raise ValueError(
                f"'{folder / 'dataset.json'}' has the classes {listed}, this configuration {self.class_names}: the "
                "same names in another order; pass --class_names in the order of dataset.json, with a teacher of that "
                "order"
            )
        _logger.warning(
            "%s names the classes %s; scores use this configuration's names %s",
            folder / "dataset.json",
            listed,
            self.class_names,
        )


def _files(case: Case) -> tuple[str, ...]:
    """Return the files of a case: of the image, one or several, and last of the label."""
    image = case["image"]
    parts = [image] if isinstance(image, (str, os.PathLike)) else image
    return (*(os.fspath(part) for part in parts), os.fspath(case["label"]))


def _listing(bad: dict[str, list[str]]) -> str:
    lines = [f"  {name}: {'; '.join(problems)}" for name, problems in list(bad.items())[:_MOST_SHOWN]]
    if len(bad) > _MOST_SHOWN:
        lines.append(f"  and {len(bad) - _MOST_SHOWN} more")
    return "\n".join(lines)
