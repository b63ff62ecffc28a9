"""Which cases are of one patient: challenges of later years hold those of earlier ones under other names."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["case_patients", "patients_of", "read_name_mapping", "shared_patients"]

_NAME_COLUMN = re.compile(
    r"^brats|(?:^|[\W_])id$", re.IGNORECASE
)  # BraTS_2020_subject_ID, BraTS2021, TCGA_TCIA_subject_ID
_NO_NAME = {"", "na", "n/a", "nan", "none", "-"}
_TIME_POINT = re.compile(r"^(brats-[a-z]+-\d+)-\d{3}$")  # from 2023: BraTS-GLI-00005-000, -001, ...


def read_name_mapping(path: str | Path) -> list[list[str]]:
    """Return the names of each patient from a table that BraTS publishes with its data (``name_mapping.csv``).

    One row is one patient. Names stand in the columns that begin with ``BraTS`` or end in ``ID``; ``NA`` is none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no comma-separated table, or has fewer than two columns of names.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"name_mapping '{path}' does not exist; pass --name_mapping \"''\" to go without")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(f"name_mapping '{path}' is no comma-separated text; save the table as .csv") from None
    columns = [index for index, title in enumerate(header) if _NAME_COLUMN.search(title.strip())]
    if len(columns) < 2:
        raise ValueError(
            f"name_mapping '{path}' has the columns {header}; two or more must begin with BraTS or end in ID"
        )
    named = [[row[index].strip() for index in columns if index < len(row)] for row in rows]
    return [[name for name in names if name.casefold() not in _NO_NAME] for names in named]


def patients_of(names: Iterable[str], same: Iterable[Iterable[str]] = ()) -> dict[str, str]:
    """Return a patient for each case id; ids of one patient get the same.

    Args:
        names: case ids. The time points of BraTS from 2023 on, ``BraTS-GLI-00005-000`` and ``-001``, are one patient.
        same: ids that are one patient's, as :func:`read_name_mapping` returns them; upper and lower case are one.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        name = _TIME_POINT.sub(r"\1", name.casefold())
        while name in parent:
            name = parent[name]
        return name

    for first, *others in (list(group) for group in same if group):
        for other in others:
            if root(other) != root(first):
                parent[root(other)] = root(first)
    return {name: root(name) for name in names}


def case_patients(
    names: Iterable[str], name_mapping: str | Path = "", groups: Iterable[Iterable[str]] = ()
) -> dict[str, str]:
    """Return a patient for each case id, by the table at ``name_mapping`` if there is one; ``""`` is none.

    Ids of one of the ``groups`` are one patient's too.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_name_mapping`; or the table names none of the cases.
    """
    names = list(names)
    groups = list(groups)
    if not name_mapping:
        return patients_of(names, groups)
    mapping = read_name_mapping(name_mapping)
    listed = patients_of(name for group in mapping for name in group)
    if not set(listed.values()) & set(patients_of(names).values()):  # as both are spelled without the table
        raise ValueError(
            f"name_mapping '{name_mapping}' names none of the {len(names)} cases, the first of which is '{names[0]}'"
        )
    return patients_of(names, [*mapping, *groups])


def shared_patients(sections: Mapping[str, Iterable[str]], patients: Mapping[str, str]) -> list[str]:
    """Describe each patient whose cases lie in several sections: ``A (train) and B (test)``."""
    places: dict[str, dict[str, str]] = {}
    for section, names in sections.items():
        for name in names:
            places.setdefault(patients[name], {}).setdefault(section, name)
    return [
        " and ".join(f"{name} ({section})" for section, name in found.items())
        for found in places.values()
        if len(found) > 1
    ]
