"""Find the cases that would break or spoil a training, before it starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from monai_kd.data.case_problems import (
    GRID_TOLERANCE,
    ambiguous_labels,
    case_problems,
    grid_shift,
    joined_channels,
    mask_problems,
)
from monai_kd.data.dataset_json import class_names as listed_class_names
from monai_kd.data.label_meanings import check_label_meanings, compare_label_meanings
from monai_kd.data.volumes import read_volumes

__all__ = ["GRID_TOLERANCE", "CaseCheck", "case_problems", "grid_shift"]

Case = Mapping[str, Any]  # paths under image (one, or a list of the channels' files), label, and perhaps fov
_logger = logging.getLogger("monai_kd")
_MOST_SHOWN = 10


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


class CaseCheck:
    """Read every case once before training and refuse, or leave out, those that cannot be used.

    Reports files that cannot be read, a wrong number of channels, image and label on different grids, NaN or infinite
    voxels, and label values outside the classes; of a case with ``fov``, a mask that does not fit the image or has more
    than two values. Masks of photographs hold 0 and 255 whatever their format (:func:`~monai_kd.data.as_grey`): give
    ``label_values=[0, 255]``. Also compares the class names with ``labels`` of ``dataset.json``:
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
        exclusive_values: groups of which one label may hold at most one value. ``[[3, 4]]`` for BraTS, whose enhancing
            tumor is 4, and 3 from 2023 on: labels with both are of 2012 to 2016 or 2024, where one is another tissue.
            Where one label has both, those with one of them are refused too.
        label_meanings: name of a brain tumor's tissue to its label values, ``{"necrotic_core": [1], "edema": [2],
            "enhancing_tumor": [3, 4]}``. Then ``label_values`` are 0 and these unless given, and the names in
            ``dataset.json`` are compared with these and not with the class names: MSD has 1 and 2 the other way round.

    Raises:
        ValueError: outputs, regions and class names do not fit each other, or ``label_meanings`` gives an unknown name,
            or a value twice.
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
        exclusive_values: Sequence[Sequence[float]] = (),
        label_meanings: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        if not isinstance(skip_bad_cases, bool):
            raise TypeError(f"skip_bad_cases is {skip_bad_cases!r}; it must be True or False")
        _check_outputs(list(class_names), out_channels, regions)
        self.in_channels = in_channels
        self.class_names = list(class_names)
        self.skip_bad_cases = skip_bad_cases
        self.progress = progress
        self.exclusive_values = [list(group) for group in exclusive_values]
        self.label_meanings = None if label_meanings is None else dict(label_meanings)
        default: list[float] = list(range(len(self.class_names)))
        if label_meanings is not None:
            check_label_meanings(label_meanings)
            default = [0, *(value for values in label_meanings.values() for value in values)]
        self.label_values = default if label_values is None else list(label_values)
        self._passed: set[tuple[str, ...]] = set()  # files of image and label

    def __call__(self, dataset_dir: str | os.PathLike[str], cases: Mapping[str, Case]) -> dict[str, list[str]]:
        """Return the problems of every bad case by its id; empty if all cases can be used.

        Args:
            dataset_dir: MSD-layout folder.
            cases: ``{"image", "label"}`` paths by case id, and ``fov`` if any; an image may be a list of files.

        Raises:
            ValueError: there are bad cases and ``skip_bad_cases`` is False, or ``dataset.json`` has the classes in
                another order, or other meanings of the labels.
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
        new = [{role: item[role] for role in ("image", "label", "fov") if role in item} for item in items]
        if new and (bad := self._bad(dataset_dir, {" + ".join(_files(item)[:-1]): item for item in new})):
            raise ValueError(f"{len(bad)} of {len(new)} listed cases cannot be used:\n{_listing(bad)}")

    def _bad(self, dataset_dir: str | os.PathLike[str], cases: Mapping[str, Case]) -> dict[str, list[str]]:
        """The problems of every bad case; of several processes the first one reads."""
        if self.label_meanings is None:
            self._compare_class_names(Path(dataset_dir))
        else:
            compare_label_meanings(Path(dataset_dir) / "dataset.json", self.label_meanings)
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
        masks = {name: os.fspath(case["fov"]) for name, case in cases.items() if "fov" in case}
        facts = read_volumes(dataset_dir, images, [*labels, *masks.values()], self.progress)
        problems: dict[str, list[str]] = {}
        for name, (*parts, label) in files.items():
            image = facts[parts[0]]
            if len(parts) > 1:
                image = joined_channels([(part, facts[part]) for part in parts])
            problems[name] = case_problems(image, facts[label], self.in_channels, self.label_values)
            if name in masks:
                problems[name] += mask_problems(image, facts[masks[name]])
        label_facts = {name: facts[paths[-1]] for name, paths in files.items()}
        for name, ambiguous in ambiguous_labels(label_facts, self.exclusive_values).items():
            problems[name] += ambiguous
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
