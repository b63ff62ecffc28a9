"""Faults of brain tumor data are refused by name before the first case is handed out for training."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_kd.data import CaseCheck, CaseSplit, brats_cases, make_brats_phantoms

MEANINGS = {"necrotic_core": [1], "edema": [2], "enhancing_tumor": [3, 4]}
CASE = "BraTS2021_00001"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MONAI_KD_CACHE", str(tmp_path / "cache"))
    return make_brats_phantoms(tmp_path / "data", 3, (24, 24, 24), progress=False)


def train_cases(folder: Path, **arguments) -> list:
    check = CaseCheck(4, ["background", "tumor"], progress=False, label_meanings=MEANINGS, exclusive_values=[[3, 4]])
    return CaseSplit(str(folder), check=check, list_cases=partial(brats_cases, **arguments)).cases("train")


def rewrite(path: Path, *, shift_mm: float = 0.0, crop: int = 0, value: int | None = None) -> None:
    volume = nib.load(path)
    array, affine = np.asarray(volume.dataobj)[crop:].copy(), volume.affine.copy()
    affine[0, 3] += shift_mm
    if value is not None:
        array[0, 0, 0] = value
    nib.save(nib.Nifti1Image(array, affine), path)


def test_sound_cases_are_handed_out(folder):
    assert len(train_cases(folder)) == 1


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("t2", {"shift_mm": 2.0}, f"the affines of '{CASE}_t2.nii.gz' and '{CASE}_t1.nii.gz' differ, by up to 0.667"),
        ("flair", {"crop": 1}, f"'{CASE}_flair.nii.gz' has 23 x 24 x 24 voxels and '{CASE}_t1.nii.gz' 24 x 24 x 24"),
        ("seg", {"shift_mm": 2.0}, "the affines of image and label differ, by up to 0.667 voxels: not the same grid"),
        ("seg", {"value": 5}, "label has the values 5; the classes are 0 to 4"),
        ("seg", {"value": 3}, "label has both 3 and 4, which mean one tissue in different data"),
    ],
)
def test_faults_of_one_case_name_the_case_and_the_file(folder, name, fault, message):
    rewrite(folder / CASE / f"{CASE}_{name}.nii.gz", **fault)
    with pytest.raises(ValueError, match=r"of 3 cases in .* cannot be used") as caught:
        train_cases(folder)
    assert f"  {CASE}: " in str(caught.value)
    assert message in str(caught.value)


def test_a_modality_that_is_not_there_is_named(folder):
    (folder / CASE / f"{CASE}_t2.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"{CASE}' lacks t2: .* it has flair, seg, t1, t1ce"):
        train_cases(folder)
    assert len(train_cases(folder, optional=["t2"])) == 1


def test_the_order_and_the_label_meanings_of_the_decathlon_are_refused_with_what_to_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_KD_CACHE", str(tmp_path / "cache"))
    folder = make_brats_phantoms(tmp_path / "data", 3, (24, 24, 24), layout="msd", progress=False)
    with pytest.raises(ValueError, match=r"pass --modalities \"\['flair','t1','t1ce','t2'\]\""):
        train_cases(folder)
    with pytest.raises(ValueError, match='pass --label_meanings::necrotic_core "\\[2\\]" --label_meanings::edema'):
        train_cases(folder, modalities=["flair", "t1", "t1ce", "t2"])
