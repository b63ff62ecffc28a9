"""Which labelled cases of an MSD-layout folder train, select and test."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monai.data import load_decathlon_datalist

from monai_kd.data.case_names import case_id
from monai_kd.data.patients import case_patients, shared_patients

__all__ = [
    "SECTIONS",
    "CaseSplit",
    "default_dataset_dir",
    "default_split_file",
    "ids_hash",
    "labelled_cases",
]

Case = dict[str, Any]  # paths under image (one, or a list of the channels' files) and label
SECTIONS = ("train", "validation", "test")
_ENVIRONMENT = "MONAI_KD_DATA"
_logger = logging.getLogger("monai_kd")


def default_dataset_dir(task: str) -> str:
    """Return ``$MONAI_KD_DATA/<task>``, or ``<task>`` itself when the variable is not set; nothing is read."""
    return os.path.join(os.environ.get(_ENVIRONMENT, ""), task)


def default_split_file(dataset_dir: str, task: str, protocol: str) -> str:
    """Return ``$MONAI_KD_DATA/splits/<protocol>.json`` if ``dataset_dir`` is that protocol's own folder, else ``""``.

    The published split names the cases of one folder, so any other folder is split by seed.
    """
    data_root = os.environ.get(_ENVIRONMENT)
    if not data_root or os.path.realpath(dataset_dir) != os.path.realpath(os.path.join(data_root, task)):
        return ""
    return os.path.join(data_root, "splits", f"{protocol}.json")


def ids_hash(ids: Sequence[str] | dict[str, list[str]]) -> str:
    """Return the sha256 of case ids, independent of the folder they lie in."""
    return hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()


def labelled_cases(dataset_dir: str | os.PathLike[str]) -> list[dict[str, str]]:
    """List the labelled cases of an MSD-layout folder as ``{"image": path, "label": path}``, sorted by case id.

    Reads ``dataset.json`` (its ``training`` list); a folder without one is paired by equal file names in
    ``imagesTr`` and ``labelsTr``.

    Raises:
        FileNotFoundError: the folder, or a file that dataset.json names, does not exist.
        ValueError: the folder holds no labelled case, or two cases of one name.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"dataset_dir '{folder}' is not a folder; pass --dataset_dir DIR (MSD layout: dataset.json, imagesTr, "
            f"labelsTr) or set {_ENVIRONMENT} to the folder that holds it"
        )
    found = _listed_cases(folder) if (folder / "dataset.json").is_file() else _paired_cases(folder)
    cases = sorted(found, key=lambda case: case_id(case["image"]))
    if not cases:
        raise ValueError(f"dataset_dir '{folder}' has no labelled case in dataset.json or imagesTr and labelsTr")
    absent = [path for case in cases for path in case.values() if not os.path.isfile(path)]
    if absent:
        raise FileNotFoundError(f"dataset_dir '{folder}' lacks {len(absent)} listed files, the first is '{absent[0]}'")
    ids = [case_id(case["image"]) for case in cases]
    if len(set(ids)) != len(ids):
        doubled = sorted({name for name in ids if ids.count(name) > 1})
        raise ValueError(f"dataset_dir '{folder}' holds several cases named {doubled[:5]}; case names must differ")
    return cases


def _listed_cases(folder: Path) -> list[dict[str, str]]:
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    if not content.get("training"):
        return []
    items = load_decathlon_datalist(str(folder / "dataset.json"), True, "training", str(folder))
    for number, item in enumerate(items):
        if not {"image", "label"} <= item.keys():
            raise ValueError(f"'{folder / 'dataset.json'}': training entry {number} needs image and label, got {item}")
        if not isinstance(item["image"], (str, os.PathLike)):
            raise ValueError(
                f"'{folder / 'dataset.json'}': training entry {number} lists several files for one image; "
                "merge the modalities into one 4-D NIfTI"
            )
    return [{key: os.path.normpath(str(item[key])) for key in ("image", "label")} for item in items]


def _paired_cases(folder: Path) -> list[dict[str, str]]:
    """Pair by name; dot files (macOS leaves ``._x.nii.gz`` behind) are no images."""
    images = [path for path in (folder / "imagesTr").glob("*.nii*") if not path.name.startswith(".")]
    paired = [path for path in images if (folder / "labelsTr" / path.name).is_file()]
    if unpaired := sorted(path.name for path in set(images) - set(paired)):
        _logger.warning("%d images have no label of their name and are left out: %s", len(unpaired), unpaired[:10])
    return [{"image": str(path), "label": str(folder / "labelsTr" / path.name)} for path in paired]


class CaseSplit:
    """Train, validation and test cases of an MSD-layout folder, from a split file or drawn by a seed.

    Nothing is read before the first :meth:`cases`, so a configuration whose data lists are replaced (MONAI Label,
    federated clients) never needs ``dataset_dir``.

    Args:
        dataset_dir: MSD-layout folder.
        split_file: JSON with the lists ``train``, ``validation`` and ``test`` of case ids; ``""`` draws a split of
            all labelled cases.
        seed: seed of the drawn split; without effect when a split file is given.
        fractions: parts of validation and test in a drawn split, each at least one case.
        check: called once with the folder and all cases in use, by id; returns the problems of those to leave out
            (:class:`~monai_kd.data.CaseCheck`). Sections are drawn first, so the other cases keep theirs.
        list_cases: lists the labelled cases of a folder of another layout, e.g. :func:`~monai_kd.data.brats_cases` or
            :func:`~monai_kd.data.image_mask_cases`; its images may be lists of files. Cases of one ``group`` are kept
            together as a patient's are. None takes :func:`~monai_kd.data.labelled_cases`.
        name_mapping: path of a table that says which case ids are one patient's
            (:func:`~monai_kd.data.read_name_mapping`), for folders that hold cases of several years; ``""`` is none. A
            drawn split keeps a patient in one section.

    Raises:
        FileNotFoundError: at first use, folder, split file or table missing.
        ValueError: at first use, a case of the split file is not in the folder, a case or a patient is in two sections,
            fewer than 3 labelled cases or patients are to be split, the table names none of the cases, or ``check``
            leaves a section empty.
    """

    def __init__(
        self,
        dataset_dir: str,
        split_file: str = "",
        seed: int = 0,
        fractions: Sequence[float] = (0.1, 0.2),
        check: Callable[[str, dict[str, Case]], dict[str, list[str]]] | None = None,
        list_cases: Callable[[str], list[Case]] | None = None,
        name_mapping: str = "",
    ) -> None:
        self.dataset_dir = dataset_dir
        self.split_file = split_file
        self.seed = seed
        self.fractions = tuple(fractions)
        self.check = check
        self.list_cases = list_cases
        self.name_mapping = name_mapping
        self.skipped: dict[str, list[str]] = {}
        self._checked: set[str] = set()
        self._by_id: dict[str, Case] | None = None
        self._ids: dict[str, list[str]] | None = None

    @property
    def loaded(self) -> bool:
        """Whether any case list was asked for."""
        return self._by_id is not None

    @property
    def ids(self) -> dict[str, list[str]]:
        """Case ids per section, without the skipped cases."""
        if self._ids is None:
            self._ids = self._read_split() if self.split_file else self._draw_split()
        self._run_check([name for section in SECTIONS for name in self._ids[section]])
        return {section: [name for name in names if name not in self.skipped] for section, names in self._ids.items()}

    def cases(self, section: str) -> list[Case]:
        """Return ``{"image", "label"}`` items of ``train``, ``validation``, ``test`` or ``all``."""
        if section not in (*SECTIONS, "all"):
            raise ValueError(f"section is '{section}'; known: {', '.join(SECTIONS)}, all")
        if section == "all":
            self._run_check(list(self._cases_by_id()))
            names = [name for name in self._cases_by_id() if name not in self.skipped]
        else:
            names = self.ids[section]
        if not names:
            left_out = f", {len(self.skipped)} are skipped" if self.skipped else ""
            raise ValueError(
                f"section '{section}' of {self.split_file or self.dataset_dir!r} has no usable case{left_out}"
            )
        return [self._cases_by_id()[name] for name in names]

    def _run_check(self, names: Sequence[str]) -> None:
        """Check cases that were not checked yet, all of them before the first is used."""
        unchecked = {name: self._cases_by_id()[name] for name in names if name not in self._checked}
        if self.check is not None and unchecked:
            self.skipped.update(self.check(self.dataset_dir, unchecked))
            self._checked.update(unchecked)

    def _cases_by_id(self) -> dict[str, Case]:
        if self._by_id is None:
            found: list[Case] = (self.list_cases or labelled_cases)(self.dataset_dir)
            self._by_id = {case_id(case["image"]): case for case in found}
        return self._by_id

    def _read_split(self) -> dict[str, list[str]]:
        path = Path(self.split_file)
        if not path.is_file():
            raise FileNotFoundError(f"split_file '{path}' does not exist; pass --split_file \"''\" to split by seed")
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [section for section in SECTIONS if section not in content]
        if missing:
            raise ValueError(f"split_file '{path}' lacks the lists {missing}; it needs {', '.join(SECTIONS)}")
        ids = {section: list(content[section]) for section in SECTIONS}
        listed = [name for section in SECTIONS for name in ids[section]]
        absent = [name for name in listed if name not in self._cases_by_id()]
        if absent:
            raise ValueError(
                f"split_file '{path}' names {len(absent)} cases that '{self.dataset_dir}' does not hold, the first is "
                f"'{absent[0]}'; give the split of this folder, or --split_file \"''\" to split by seed"
            )
        doubled = sorted({name for name in listed if listed.count(name) > 1})
        if doubled:
            raise ValueError(f"split_file '{path}' names {doubled[:5]} more than once; sections may not overlap")
        if shared := shared_patients(ids, self._patients()):
            raise ValueError(
                f"split_file '{path}' has {len(shared)} {self._kind}s in several sections, the first as {shared[0]}; "
                f"all cases of a {self._kind} belong into one"
            )
        return ids

    @property
    def _kind(self) -> str:
        return "group" if any("group" in case for case in self._cases_by_id().values()) else "patient"

    def _patients(self) -> dict[str, str]:
        """Return what keeps cases together, by case id: the patient, and the group that the case names."""
        groups: dict[str, list[str]] = {}
        for name, case in self._cases_by_id().items():
            if "group" in case:
                groups.setdefault(case["group"], []).append(name)
        return case_patients(self._cases_by_id(), self.name_mapping, groups.values())

    def _draw_split(self) -> dict[str, list[str]]:
        names = list(self._cases_by_id())
        patients = self._patients()
        if (num_patients := len(set(patients.values()))) < len(SECTIONS):
            of_patients = f" of {num_patients} {self._kind}s" if num_patients < len(names) else ""
            raise ValueError(
                f"'{self.dataset_dir}' holds {len(names)} labelled cases{of_patients}; train, validation and test need "
                "at least 3"
            )
        random.Random(self.seed).shuffle(names)
        num_validation, num_test = (max(1, round(fraction * len(names))) for fraction in self.fractions)
        sections: dict[str, list[str]] = {section: [] for section in SECTIONS}
        for patient in dict.fromkeys(patients[name] for name in names):
            held = [name for name in names if patients[name] == patient]
            if len(sections["validation"]) < num_validation:
                sections["validation"] += held
            else:
                sections["test" if len(sections["test"]) < num_test else "train"] += held
        if not sections["train"]:
            raise ValueError(f"fractions {self.fractions} of the cases of '{self.dataset_dir}' leave none to train on")
        return {section: sorted(held) for section, held in sections.items()}
