"""Cases of folders with one picture and one mask each: retina, skin, polyps, brain slices, or data of one's own."""

from __future__ import annotations

import csv
import glob
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_kd.data.case_names import case_id
from monai_kd.data.raster import RASTER_ENDINGS

__all__ = ["IMAGE_MASK_LAYOUTS", "ImageMaskLayout", "image_mask_cases"]

_logger = logging.getLogger("monai_kd")
# titles of a table of groups: the column of the image's name, and that of its group
_COLUMNS = {"frame": "sequence", "image": "patient", "frame_id": "sequence_id"}


@dataclass(frozen=True)
class ImageMaskLayout:
    """Where the files of a case lie below a folder.

    In the patterns ``{case}`` is the name that the files of a case share, ``*`` any text within the name of a file or
    folder, and a trailing ``.*`` any ending of :data:`~monai_kd.data.raster.RASTER_ENDINGS`. ``|`` divides patterns of
    which each counts. A file that the pattern of labels or masks fits is no image.

    Attributes:
        images: pattern of the images.
        labels: pattern of the masks to learn.
        masks: pattern of the field-of-view masks, or ``""``.
        groups: which cases belong together and into one section of a split: a regular expression whose first group in
            the case's id names it; or a table (``.csv``, of several divided by ``|`` the first that is there) with the
            columns ``frame`` and ``sequence``, ``image`` and ``patient``, or ``frame_id`` and ``sequence_id``; a name
            of a table that ends in ``?`` may be absent, with a warning; or ``""``.
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
    # DRIVE's photographs: vessels, or arteries and veins in colors; no field-of-view masks are shipped
    "rite": ImageMaskLayout(labels="vessel/{case}.*"),
    "rite_av": ImageMaskLayout(labels="av/{case}.*"),
    # task 1 of 2016, 2017 and 2018: the spelling of the masks differs, and 2017 has superpixels as PNG among the images
    "isic": ImageMaskLayout(
        "*_Data/{case}.jpg|*_Input/{case}.jpg",
        "*_GroundTruth/{case}_segmentation.png|*_GroundTruth/{case}_Segmentation.png",
    ),
    # slices named by number: whose they are is in the .mat files of the original alone
    "brain_tumor_figshare": ImageMaskLayout(labels="masks/{case}.*", groups="patients.csv?"),
    "brain_tumor_lgg": ImageMaskLayout("TCGA_*/{case}.tif", "TCGA_*/{case}_mask.tif", groups=r"^(TCGA_[^_]+_[^_]+)_"),
    "kvasir_seg": ImageMaskLayout(labels="masks/{case}.*"),
    # frames of one video are near copies of each other
    "cvc_clinicdb": ImageMaskLayout(
        "images/{case}.*|Original/{case}.*",
        "labels/{case}.*|Ground Truth/{case}.*",
        groups="sequences.csv|metadata.csv|../metadata.csv",
    ),
    "neopolyp": ImageMaskLayout("train/{case}.*|train/train/{case}.*", "train_gt/{case}.*|train_gt/train_gt/{case}.*"),
    "cvc_300": ImageMaskLayout(labels="masks/{case}.*", groups="sequences.csv?"),
    "slices": ImageMaskLayout(groups=r"^(.+)_\d{4,}$"),  # of volumes, as write_slices leaves them
    "images_labels": ImageMaskLayout(),
}
# what tells a layout, first come first served; those of folders `images` and `masks` alone have to be named
_MARKS = (
    ("labels_1stHO", "chase_db1"),
    ("labels_ah", "stare"),
    ("1st_manual", "drive"),
    ("sequences.csv", "cvc_clinicdb"),
    ("slices.csv", "slices"),
    ("Ground Truth", "cvc_clinicdb"),
    ("vessel/*_t*.png", "rite"),
    ("*_GroundTruth", "isic"),
    ("TCGA_*", "brain_tumor_lgg"),
    ("train_gt", "neopolyp"),
)


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
    (:class:`~monai_kd.data.CaseSplit` keeps it there): a child with two eyes, a video, a patient. Sorted by case,
    numbers by size.

    Args:
        folder: of the data set.
        layout: a name of :data:`IMAGE_MASK_LAYOUTS`; ``""`` tells it by the folders that are there, ``images_labels``
            (``images/NAME.png`` and ``labels/NAME.png``) if none is known.
        images, labels, masks: patterns that replace the layout's, see :class:`ImageMaskLayout`; ``masks=""`` goes
            without field-of-view masks.
        labeled: False lists images without labels, for inference.

    Raises:
        FileNotFoundError: the folder does not exist, or the label or mask of an image, which is named, or the table of
            groups.
        ValueError: an unknown layout, a pattern without ``{case}``, no image, several files for one case, or a case
            whose name tells no group where the layout has groups.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"dataset_dir '{root}' is not a folder; pass --dataset_dir DIR with images and masks")
    form = _layout(root, layout)
    given = {"image": (images, form.images), "label": (labels, form.labels), "fov": (masks, form.masks)}
    wanted = {role: default if own is None else own for role, (own, default) in given.items()}
    if not wanted["fov"]:
        del wanted["fov"]
    files = {role: _files(root, pattern, role) for role, pattern in wanted.items()}
    files["image"] = _without(files["image"], [files[role] for role in files if role != "image"])
    if not files["image"]:
        raise ValueError(f"dataset_dir '{root}' has no image: no file is named as {_quoted(wanted['image'])}")
    if not labeled:
        del wanted["label"]
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
        name = next((known for mark, known in _MARKS if any(root.glob(mark))), "images_labels")
    if name not in IMAGE_MASK_LAYOUTS:
        raise ValueError(f"layout is {name!r}; known: {', '.join(IMAGE_MASK_LAYOUTS)}")
    return IMAGE_MASK_LAYOUTS[name]


def _files(root: Path, patterns: str, role: str) -> dict[str, list[str]]:
    """Return the files of a role by the name of their case."""
    found: dict[str, list[str]] = {}
    for pattern in patterns.split("|"):
        if pattern.count("{case}") != 1 or "{case}" not in pattern.rpartition("/")[2]:
            raise ValueError(
                f"the pattern of {role} files is {pattern!r}; name the case once, in the file's name, as in "
                "'images/{case}.*'"
            )
        head = "" if os.path.isabs(pattern) else f"{root.as_posix()}/"
        expression = re.compile(re.escape(head) + _expression(pattern))
        for path in sorted(glob.glob(glob.escape(head) + _wildcards(pattern))):  # leaves out dot files
            match = expression.fullmatch(path.replace(os.sep, "/"))
            if match and os.path.isfile(path):
                found.setdefault(match["case"], []).append(os.path.normpath(path))
    return found


def _wildcards(pattern: str) -> str:
    """Return a pattern as :mod:`glob` has it, which finds all that fits and perhaps more."""
    return "*".join(glob.escape(part) for part in re.split(r"\{case\}|\*", pattern))


def _expression(pattern: str) -> str:
    any_ending = pattern.endswith(".*")
    parts = re.split(r"(\{case\}|\*)", pattern[:-2] if any_ending else pattern)
    text = "".join({"{case}": "(?P<case>[^/]+?)", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)
    return text + (f"(?i:{'|'.join(map(re.escape, RASTER_ENDINGS))})" if any_ending else "")


def _without(files: dict[str, list[str]], others: list[dict[str, list[str]]]) -> dict[str, list[str]]:
    """Return files without those of other roles; where a mask lies beside its image, one pattern may fit both."""
    taken = {path for other in others for paths in other.values() for path in paths}
    kept = {case: [path for path in paths if path not in taken] for case, paths in files.items()}
    return {case: paths for case, paths in kept.items() if paths}


def _quoted(patterns: str) -> str:
    return " or ".join(f"'{pattern}'" for pattern in patterns.split("|"))


def _one(root: Path, case: str, role: str, pattern: str, files: dict[str, dict[str, list[str]]]) -> str:
    found = files[role].get(case, [])
    if len(found) > 1:
        shared = os.path.commonpath([os.path.dirname(path) for path in found])
        names = ", ".join(os.path.relpath(path, shared or ".") for path in found)
        raise ValueError(f"case '{case}' in '{root}' has several files for {role}: {names}; keep one")
    if not found:
        place = _quoted(pattern.replace("{case}", case))
        raise FileNotFoundError(
            f"case '{case}' in '{root}' has no {role}: {place} is not there ({len(files['image'])} images, "
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
    if not groups.endswith((".csv", ".csv?")):
        return [_group_in_name(groups, name) for name in names]
    tables = [root / name for name in groups.removesuffix("?").split("|")]
    path = next((table for table in tables if table.is_file()), None)
    if path is not None:
        return _listed_groups(path, names)
    if not groups.endswith("?"):
        others = ", ".join(f"'{table}'" for table in tables[1:])
        raise FileNotFoundError(
            f"'{tables[0]}' does not exist; it tells which frames are of one sequence, in the columns frame and "
            "sequence" + (f"; else read are {others}" if others else "")
        )
    _logger.warning(
        "'%s' does not exist: every image counts as a patient of its own, so those of one may fall into several "
        "sections of a split; list them in the columns image and patient",
        tables[0],
    )
    return [""] * len(names)


def _listed_groups(path: Path, names: list[str]) -> list[str]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    titles = rows[0].keys() if rows else set()
    columns = next(((image, group) for image, group in _COLUMNS.items() if {image, group} <= titles), None)
    if columns is None:
        either = ", or ".join(f"{image} and {group}" for image, group in _COLUMNS.items())
        raise ValueError(f"'{path}' needs the columns {either}, and a row for each image")
    image, group = columns
    listed = {row[image].strip(): row[group].strip() for row in rows}
    if absent := [name for name in names if not listed.get(name)]:
        raise ValueError(
            f"'{path}' has no {group} for {len(absent)} of {len(names)} {image}s, the first is '{absent[0]}'"
        )
    return [listed[name] for name in names]
