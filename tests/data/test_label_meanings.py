"""What a label's values mean: data sets that number tissues otherwise are refused with what to pass."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_kd.data import CaseCheck
from monai_kd.data.label_meanings import meaning_of

NAMES = ["background", "whole_tumor", "tumor_core", "enhancing_tumor"]
BRATS = {"necrotic_core": [1], "edema": [2], "enhancing_tumor": [3, 4]}
MSD = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_KD_CACHE", str(tmp_path / "cache"))


def cases_of(folder: Path, *labels: list[int]) -> dict[str, dict[str, str]]:
    """Cases whose labels hold the given values."""
    cases = {}
    for number, values in enumerate(labels):
        files = {role: folder / f"case_{number}_{role}.nii.gz" for role in ("image", "label")}
        array = np.resize(np.array(values, dtype=np.uint8), (4, 3, 2))
        for role, content in (("image", array.astype(np.float32)), ("label", array)):
            nib.save(nib.Nifti1Image(content, np.eye(4)), files[role])
        cases[f"case_{number}"] = {role: str(path) for role, path in files.items()}
    return cases


def check_of(**settings) -> CaseCheck:
    return CaseCheck(1, NAMES, progress=False, **settings)


# ---- values that exclude each other ---------------------------------------------------------------------------------


def test_a_label_with_3_and_4_is_ambiguous_and_spoils_those_with_one_of_them(tmp_path):
    cases = cases_of(tmp_path, [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2])
    with pytest.raises(ValueError, match=r"2 of 3 cases in .* cannot be used") as caught:
        check_of(label_values=range(5), exclusive_values=[[3, 4]])(tmp_path, cases)
    assert "case_1: label has both 3 and 4, which mean one tissue in different data" in str(caught.value)
    assert "case_0: label has the value 3, which is ambiguous where 'case_1' has both 3 and 4" in str(caught.value)
    assert check_of(label_values=range(5))(tmp_path, cases) == {}


def test_cases_with_3_beside_cases_with_4_are_two_years(tmp_path):
    cases = cases_of(tmp_path, [0, 1, 2, 3], [0, 1, 2, 4])
    assert check_of(label_values=range(5), exclusive_values=[[3, 4]])(tmp_path, cases) == {}


# ---- names in dataset.json ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("edema", "edema"),
        ("Peritumoral Oedema", "edema"),
        ("ED", "edema"),
        ("surrounding non-enhancing FLAIR hyperintensity (SNFH)", "edema"),
        ("non-enhancing tumor", "necrotic_core"),
        ("nonenhancing", "necrotic_core"),
        ("NCR/NET", "necrotic_core"),
        ("necrotic_core", "necrotic_core"),
        ("NETC", "necrotic_core"),
        ("tumor core", "necrotic_core"),
        ("enhancing tumour", "enhancing_tumor"),
        ("enhancing core", "enhancing_tumor"),
        ("ET", "enhancing_tumor"),
        ("resection cavity", "resection_cavity"),
        ("tumor", ""),
        ("planet", ""),
    ],
)
def test_tissues_are_known_by_their_names(name, meaning):
    assert meaning_of(name) == meaning


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (MSD, '--label_meanings::necrotic_core "[2]" --label_meanings::edema "[1]"'),
        ({"bg": 0, "ED": 1, "NCR": 2, "ET": 3}, '--label_meanings::necrotic_core "[2]" --label_meanings::edema "[1]"'),
        (
            {"1": "NETC", "2": "SNFH", "3": "ET", "4": "RC"},
            '--label_meanings::enhancing_tumor "[3]" --label_meanings::resection_cavity "[4]"',
        ),
        ({"1": "necrosis", "2": "edema", "5": "enhancing"}, '--label_meanings::enhancing_tumor "[5]"'),
    ],
    ids=["MSD", "nnU-Net", "2024", "unknown value"],
)
def test_other_meanings_in_dataset_json_are_refused_with_what_to_pass(tmp_path, labels, options):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    cases = cases_of(tmp_path, [0, 1, 2])
    with pytest.raises(ValueError, match="a network would learn one tissue for another") as caught:
        check_of(label_meanings=BRATS)(tmp_path, cases)
    assert str(caught.value).endswith(f"pass {options}")
    assert str(BRATS) in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "meanings"),
    [
        (MSD, {**BRATS, "necrotic_core": [2], "edema": [1]}),
        ({"1": "NCR", "2": "ED", "4": "ET"}, BRATS),
        ({"1": "NCR", "2": "ED", "3": "ET"}, BRATS),
        ({}, BRATS),
    ],
)
def test_the_same_meanings_pass_without_a_word_on_class_names(tmp_path, caplog, labels, meanings):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with caplog.at_level(logging.WARNING):
        assert check_of(label_meanings=meanings)(tmp_path, cases_of(tmp_path, [0, 1, 2, 3])) == {}
    assert caplog.text == ""


def test_a_name_that_means_no_known_tissue_is_a_warning(tmp_path, caplog):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "none", "1": "tumor"}}))
    with caplog.at_level(logging.WARNING):
        check_of(label_meanings=BRATS)(tmp_path, cases_of(tmp_path, [0, 1]))
    assert "what [1] mean is not clear" in caplog.text


def test_a_label_may_hold_0_and_the_values_with_a_meaning(tmp_path):
    check = check_of(label_meanings={"edema": [2], "enhancing": [4]})
    assert check.label_values == [0, 2, 4]
    with pytest.raises(ValueError, match="label has the values 1; the classes are 0, 2, 4"):
        check(tmp_path, cases_of(tmp_path, [0, 1, 2]))
    assert check_of(label_meanings=BRATS, label_values=[0, 7]).label_values == [0, 7]


@pytest.mark.parametrize(
    ("meanings", "message"),
    [
        ({"edema": [1], "necrotic_core": [1]}, "a value means one thing"),
        ({"edema": [0]}, "0 is the background"),
        ({"edema": 1}, "give each name a list of label values"),
        ({"liver": [1]}, "give each once, of edema, resection_cavity, necrotic_core, enhancing_tumor"),
        ({"ED": [1], "edema": [2]}, "give each once"),
    ],
)
def test_meanings_that_are_none_are_refused(meanings, message):
    with pytest.raises(ValueError, match=message):
        check_of(label_meanings=meanings)
