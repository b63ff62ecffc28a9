"""One patient under several names lies in one section, whatever the years called the case."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from monai_kd.data import CaseSplit, patients_of, read_name_mapping

TABLE = """Grade,BraTS_2018_subject_ID,BraTS_2020_subject_ID,BraTS2021,Site No,Valid
HGG,Brats18_CBICA_ABM_1,BraTS20_Training_001,BraTS2021_00010,1,yes
HGG,NA,BraTS20_Training_002,BraTS2021_00011,1,yes
LGG,Brats18_TCIA_1_1,NA,,1,yes
"""
YEARS = ["Brats18_CBICA_ABM_1", "BraTS2021_00010", "BraTS2021_00011", "Brats18_TCIA_1_1", "BraTS2021_00012"]


@pytest.fixture
def table(tmp_path) -> str:
    path = tmp_path / "name_mapping.csv"
    path.write_text(TABLE, encoding="utf-8-sig")
    return str(path)


def split_of(names: list[str], **settings) -> CaseSplit:
    """A split of cases that are names only."""
    return CaseSplit("folder", list_cases=lambda folder: [{"image": f"{name}.nii.gz"} for name in names], **settings)


def split_file(folder: Path, **sections: list[str]) -> str:
    path = folder / "split.json"
    path.write_text(json.dumps(sections))
    return str(path)


def test_a_row_is_one_patient_and_na_is_no_name(table):
    assert read_name_mapping(table) == [
        ["Brats18_CBICA_ABM_1", "BraTS20_Training_001", "BraTS2021_00010"],
        ["BraTS20_Training_002", "BraTS2021_00011"],
        ["Brats18_TCIA_1_1"],
    ]


def test_rows_that_share_a_name_are_one_patient_and_case_does_not_matter():
    patients = patients_of("abcde", [["a", "b"], ["C", "d"], ["b", "c"], ["a", "a"]])
    assert patients["a"] == patients["b"] == patients["c"] == patients["d"] != patients["e"]


def test_time_points_of_later_years_are_one_patient():
    patients = patients_of(["BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00006-000", "BraTS-MET-00005-000"])
    first, second, *others = patients.values()
    assert first == second
    assert len({first, *others}) == 3
    same = patients_of(["BraTS-GLI-00005-001", "BraTS2021_00005"], [["BraTS2021_00005", "BraTS-GLI-00005-000"]])
    assert len(set(same.values())) == 1


def test_a_split_file_with_one_patient_in_two_sections_is_refused(table, tmp_path):
    path = split_file(tmp_path, train=YEARS[:1] + YEARS[2:3], validation=YEARS[3:4], test=[YEARS[1], YEARS[4]])
    assert split_of(YEARS, split_file=path).ids["train"] == YEARS[:1] + YEARS[2:3]  # nobody can know without the table
    with pytest.raises(ValueError, match="1 patients in several sections") as caught:
        _ = split_of(YEARS, split_file=path, name_mapping=table).ids
    assert "the first as Brats18_CBICA_ABM_1 (train) and BraTS2021_00010 (test)" in str(caught.value)


def test_a_split_file_with_two_time_points_in_two_sections_is_refused(tmp_path):
    names = [f"BraTS-GLI-{number}" for number in ("00001-000", "00001-001", "00002-000", "00003-000")]
    apart = split_file(tmp_path, train=names[:1], validation=names[1:2], test=names[2:])
    with pytest.raises(ValueError, match=r"BraTS-GLI-00001-000 \(train\) and BraTS-GLI-00001-001 \(validation\)"):
        _ = split_of(names, split_file=apart).ids
    together = split_file(tmp_path, train=names[:2], validation=names[2:3], test=names[3:])
    assert split_of(names, split_file=together).ids["train"] == names[:2]


@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_split_keeps_a_patient_in_one_section(table, seed):
    ids = split_of(YEARS, seed=seed, name_mapping=table).ids
    assert sorted(name for names in ids.values() for name in names) == sorted(YEARS)
    (section,) = [section for section, names in ids.items() if YEARS[0] in names]
    assert YEARS[1] in ids[section]


def test_without_patients_of_several_cases_the_draw_is_the_shuffled_list_cut_in_three():
    names = [f"case_{number:02d}" for number in range(20)]
    ids = split_of(names, seed=4).ids
    random.Random(4).shuffle(names)
    assert ids == {"validation": sorted(names[:2]), "test": sorted(names[2:6]), "train": sorted(names[6:])}


def test_too_few_patients_or_none_to_train_on_are_refused(table):
    with pytest.raises(ValueError, match="holds 3 labelled cases of 2 patients; train, validation and test need"):
        _ = split_of(YEARS[:3], name_mapping=table).ids
    with pytest.raises(ValueError, match=r"fractions \(0.5, 0.5\) of the cases of 'folder' leave none to train on"):
        _ = split_of(list("abcd"), fractions=(0.5, 0.5)).ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Grade,BraTS_2020_subject_ID,Valid\n", "two or more must begin with BraTS or end in ID"),
        (b"", r"has the columns \[\]"),
        (b"PK\x03\x04\xff\xfe", "is no comma-separated text; save the table as .csv"),
        (b"BraTS2020,BraTS2021\na,b\n", "names none of the 5 cases, the first of which is 'Brats18"),
    ],
)
def test_a_table_that_says_nothing_is_refused(tmp_path, content, message):
    path = tmp_path / "name_mapping.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        _ = split_of(YEARS, name_mapping=str(path)).ids
    with pytest.raises(FileNotFoundError, match="does not exist; pass --name_mapping"):
        _ = split_of(YEARS, name_mapping=str(tmp_path / "none.csv")).ids
