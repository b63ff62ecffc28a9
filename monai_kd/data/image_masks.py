"""Cases of folders with one photograph and one mask each: retinal vessels, polyps, or data of one's own."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_kd.data.case_names import case_id
from monai_kd.data.raster import RASTER_ENDINGS

__all__ = ["IMAGE_MASK_LAYOUTS", "ImageMaskLayout", "image_mask_cases"]


@dataclass(frozen=True)
class ImageMaskLayout:
    """Where the files of a case lie below a folder.

    In the patterns ``{case}`` is the name that the files of a case share, ``*`` any text within a name, and a trailing
    ``.*`` any ending of :data:`~monai_kd.data.raster.RASTER_ENDINGS`.

    Attributes:
        images: pattern of the images.
        labels: pattern of the masks to learn.
        masks: pattern of the field-of-view masks, or ``""``.
        groups: which cases belong together and into one section of a split: a table (``.csv``) with the columns
            ``frame`` and ``sequence``, or a regular expression whose first group in the case's id names it, or ``""``.
    """

    images: str = "images/{case}.*"
    labels: str = "labels/{case}.*"
    masks: str = ""
    groups: str = ""


IMAGE_MASK_LAYOUTS = {
    # both eyes of a child; the first observer
    "chase_db1": ImageMaskLayout(
        labels="labels_1stHO/{case}_1stHO.*", masks="fov_masks/{case}.*", groups=r"Image_(\d+)[LR]$"
    ),
    "stare": ImageMaskLayout(labels="labels_ah/{case}.ah.*"),  # Adam Hoover's; no field-of-view masks are shipped
    "drive": ImageMaskLayout("images/{case}_*.*", "1st_manual/{case}_manual1.*", "mask/{case}_*_mask.*"),
    "cvc_clinicdb": ImageMaskLayout(groups="sequences.csv"),  # frames of one video are near copies of each other
    "slices": ImageMaskLayout(groups=r"^(.+)_\d{4,}$"),  # of volumes, as write_slices leaves them
    "images_labels": ImageMaskLayout(),
}
# what tells a layout, first come first served
_MARKS = {"chase_db1": "labels_1stHO", "stare": "labels_ah", "drive": "1st_manual", "cvc_clinicdb": "sequences.csv"}
_MARKS["slices"] = "slices.csv"


def image_mask_cases(
    folder: str | os.PathLike[str],
    layout: str = "",
    images: str | None = None,
    labels: str | None = None,
    masks: str | None = None,
    labeled: bool = True,
) -> list[dict[str, Any]]:
    """List the cases of a folder as ``{"image": path, "label": path}``, with ``fov`` and ``group`` where there are any.

    ``fov`` is the path of the mask of the pixels that count; ``group`` names what belongs into one section of a split
    (:class:`~monai_kd.data.CaseSplit` keeps it there): a child with two eyes, a video. Sorted by case, numbers by size.

    Args:
        folder: of the data set.
        layout: a name of :data:`IMAGE_MASK_LAYOUTS`; ``""`` tells it by the folders that are there, ``images_labels``
            (``images/NAME.png`` and ``labels/NAME.png``) if none is known.
        images, labels, masks: patterns that replace the layout's, see :class:`ImageMaskLayout`; ``masks=""`` goes
            without field-of-view masks.
        labeled: False lists images without labels, for inference.

    Raises:
        FileNotFoundError: the folder does not exist, or the label, mask or group of an image; names the case.
        ValueError: an unknown layout, a pattern without ``{case}``, no image, several files for one case, or a case
            whose name tells no group where the layout has groups.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"dataset_dir '{root}' is not a folder; pass --dataset_dir DIR with images and masks")
    form = _layout(root, layout)
    given = {"image": (images, form.images), "label": (labels, form.labels), "fov": (masks, form.masks)}
    wanted = {role: default if own is None else own for role, (own, default) in given.items()}
    if not labeled:
        del wanted["label"]
    if not wanted["fov"]:
        del wanted["fov"]
    files = {role: _files(root, pattern, role) for role, pattern in wanted.items()}
    if not files["image"]:
        raise ValueError(f"dataset_dir '{root}' has no image: no file is named as '{wanted['image']}'")
    cases = []
    for case in sorted(files["image"], key=_by_number):
        found: dict[str, Any] = {}
        for role, pattern in wanted.items():
            found[role] = _one(root, case, role, pattern, files)
        cases.append(found)
    groups = _groups(root, form.groups, [case_id(case["image"]) for case in cases])
    return [{**case, **({"group": group} if group else {})} for case, group in zip(cases, groups, strict=True)]


def _layout(root: Path, name: str) -> ImageMaskLayout:
    if not name:
        name = next((known for known, mark in _MARKS.items() if (root / mark).exists()), "images_labels")
    if name not in IMAGE_MASK_LAYOUTS:
        raise ValueError(f"layout is {name!r}; known: {', '.join(IMAGE_MASK_LAYOUTS)}")
    return IMAGE_MASK_LAYOUTS[name]


def _files(root: Path, pattern: str, role: str) -> dict[str, list[str]]:
    """Return the files of a role by the name of their case."""
    if pattern.count("{case}") != 1:
        raise ValueError(f"the pattern of {role} files is {pattern!r}; name the case once, as in 'images/{{case}}.*'")
    parent, _, name = pattern.rpartition("/")
    expression = _expression(name)
    found: dict[str, list[str]] = {}
    for path in sorted((root / parent).glob("*")):
        match = expression.fullmatch(path.name)
        if match and path.is_file() and not path.name.startswith("."):
            found.setdefault(match["case"], []).append(os.path.normpath(path))
    return found


def _expression(name: str) -> re.Pattern[str]:
    any_ending = name.endswith(".*")
    parts = re.split(r"(\{case\}|\*)", name[:-2] if any_ending else name)
    text = "".join({"{case}": "(?P<case>.+?)", "*": ".*"}.get(part, re.escape(part)) for part in parts)
    ending = f"(?i:{'|'.join(map(re.escape, RASTER_ENDINGS))})" if any_ending else ""
    return re.compile(text + ending)


def _one(root: Path, case: str, role: str, pattern: str, files: dict[str, dict[str, list[str]]]) -> str:
    found = files[role].get(case, [])
    if len(found) > 1:
        names = ", ".join(os.path.basename(path) for path in found)
        raise ValueError(f"case '{case}' in '{root}' has several files for {role}: {names}; keep one")
    if not found:
        place = pattern.replace("{case}", case)
        raise FileNotFoundError(
            f"case '{case}' in '{root}' has no {role}: '{place}' is not there ({len(files['image'])} images, "
            f"{len(files[role])} {role} files); add it, or take the image out"
        )
    return found[0]


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sort ``2`` before ``10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _group_in_name(expression: str, name: str) -> str:
    match = re.search(expression, name)
    if not match or not match[1]:
        raise ValueError(
            f"case '{name}' tells no group: its name does not fit '{expression}'; name the file so, or choose a layout "
            "without groups, such as images_labels with patterns of its own"
        )
    return match[1]


def _groups(root: Path, groups: str, names: list[str]) -> list[str]:
    """Return the group of each case, empty where it has none."""
    if not groups:
        return [""] * len(names)
    if not groups.endswith(".csv"):
        return [_group_in_name(groups, name) for name in names]
    path = root / groups
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist; it tells which frames are of one sequence")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"frame", "sequence"} <= rows[0].keys():
        raise ValueError(f"'{path}' needs the columns frame and sequence, and a row for each frame")
    listed = {row["frame"].strip(): row["sequence"].strip() for row in rows}
    if absent := [name for name in names if not listed.get(name)]:
        raise ValueError(
            f"'{path}' has no sequence for {len(absent)} of {len(names)} frames, the first is '{absent[0]}'"
        )
    return [listed[name] for name in names]
