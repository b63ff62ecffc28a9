"""Bad cases are found before training, named, and left out only when asked."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_kd.data import CaseCheck, CaseSplit, checks, labelled_cases
from monai_kd.data.checks import case_problems
from monai_kd.data.volumes import VolumeFacts

CLASSES = ["background", "anterior", "posterior"]
BAD = "phantom_001"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_KD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(phantoms, tmp_path) -> Path:
    return Path(shutil.copytree(phantoms, tmp_path / "data"))


def rewrite(path: Path, array: Callable[[np.ndarray], np.ndarray] = lambda a: a, shift_mm: float = 0.0) -> None:
    volume = nib.load(path)
    affine = volume.affine.copy()
    affine[0, 3] += shift_mm
    nib.save(nib.Nifti1Image(array(np.asarray(volume.dataobj)), affine), path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[0, 0, 0] = np.nan
    return array


def with_value_7(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[0, 0, 0] = 7
    return array


DAMAGE = {
    "truncated image": ("imagesTr", truncated, "image cannot be read, it is damaged or truncated"),
    "truncated label": ("labelsTr", truncated, "label cannot be read, it is damaged or truncated"),
    "NaN": ("imagesTr", lambda path: rewrite(path, with_nan), "image has 1 voxels that are NaN or infinite"),
    "value": ("labelsTr", lambda path: rewrite(path, with_value_7), "label has the values 7; the classes are 0 to 2"),
    "half values": (
        "labelsTr",
        lambda path: rewrite(path, lambda a: a.astype(np.float32) / 2),
        "label has the values 0.5; the classes are 0 to 2",
    ),
    "shape": ("labelsTr", lambda path: rewrite(path, lambda a: a[:-1]), "voxels and label"),
    "affine": (
        "labelsTr",
        lambda path: rewrite(path, shift_mm=2.0),
        "the affines of image and label differ, by up to",
    ),
    "channels": (
        "imagesTr",
        lambda path: rewrite(path, lambda a: np.stack([a, a], -1)),
        "image has 2 channels, the network takes 1",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_each_kind_of_bad_case_is_named(folder, damage):
    place, spoil, message = DAMAGE[damage]
    spoil(folder / place / f"{BAD}.nii.gz")
    with pytest.raises(ValueError, match=r"1 of 6 cases in .* cannot be used") as caught:
        CaseSplit(str(folder), check=CaseCheck(1, CLASSES, progress=False)).cases("train")
    assert f"  {BAD}: " in str(caught.value)
    assert message in str(caught.value)
    assert "--skip_bad_cases True" in str(caught.value)


def test_sound_cases_pass(folder):
    split = CaseSplit(str(folder), check=CaseCheck(1, CLASSES, progress=False))
    assert len(split.cases("all")) == 6
    assert split.skipped == {}


def test_real_cases_pass(real_data):
    split = CaseSplit(str(real_data / "Task04_Hippocampus"), check=CaseCheck(1, CLASSES, progress=False))
    assert len(split.cases("all")) == 200
    assert split.skipped == {}


def test_skipping_leaves_out_the_bad_and_keeps_the_others_sections(folder, caplog):
    whole = CaseSplit(str(folder)).ids
    truncated(folder / "imagesTr" / f"{BAD}.nii.gz")
    split = CaseSplit(str(folder), check=CaseCheck(1, CLASSES, skip_bad_cases=True, progress=False))
    with caplog.at_level(logging.WARNING):
        ids = split.ids
    assert ids == {section: [name for name in names if name != BAD] for section, names in whole.items()}
    assert list(split.skipped) == [BAD]
    assert f"1 of 6 cases are left out:\n  {BAD}: image cannot be read" in caplog.text


def test_a_section_that_loses_its_last_case_says_so(folder):
    (only,) = CaseSplit(str(folder)).ids["validation"]
    truncated(folder / "labelsTr" / f"{only}.nii.gz")
    split = CaseSplit(str(folder), check=CaseCheck(1, CLASSES, skip_bad_cases=True, progress=False))
    with pytest.raises(ValueError, match=r"section 'validation' of .* has no usable case, 1 are skipped"):
        split.cases("validation")


def test_ten_bad_cases_are_listed_and_the_rest_counted(tmp_path):
    facts = VolumeFacts(error="EOFError: end of file")
    assert case_problems(facts, facts, 1, range(3))[1] == (
        "label cannot be read, it is damaged or truncated (EOFError: end of file)"
    )
    files = [tmp_path / f"{number}.nii" for number in range(12)]
    for path in files:
        path.write_bytes(b"")
    cases = {path.stem: {"image": str(path), "label": str(path)} for path in files}
    with pytest.raises(ValueError, match="12 of 12 cases") as caught:
        CaseCheck(1, CLASSES, progress=False)(tmp_path, cases)
    assert "  9: image cannot be read" in str(caught.value)
    assert "  and 2 more" in str(caught.value)
    assert "  10: " not in str(caught.value)


def test_a_small_difference_of_affines_is_rounding(folder):
    rewrite(folder / "labelsTr" / f"{BAD}.nii.gz", shift_mm=0.001)
    assert len(CaseSplit(str(folder), check=CaseCheck(1, CLASSES, progress=False)).cases("all")) == 6


def set_labels(folder: Path, labels: dict) -> None:
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "labels": labels}))


@pytest.mark.parametrize(
    "labels",
    [{"0": "background", "1": "Posterior", "2": "Anterior"}, {"background": 0, "posterior": 1, "anterior": 2}],
    ids=["MSD", "nnU-Net"],
)
def test_classes_in_another_order_than_dataset_json_are_refused(folder, labels):
    set_labels(folder, labels)
    with pytest.raises(ValueError, match="the same names in another order") as caught:
        CaseSplit(str(folder), check=CaseCheck(1, CLASSES, progress=False)).cases("train")
    assert "osterior" in str(caught.value)
    assert str(CLASSES) in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "warned"),
    [
        ({"0": "none", "1": "Anterior", "2": "posterior"}, False),
        ({"0": "b", "1": "liver"}, True),
        ({"b": 0, "whole": [1, 2], "core": 2}, False),
    ],
)
def test_other_class_names_are_a_warning(folder, caplog, labels, warned):
    set_labels(folder, labels)
    with caplog.at_level(logging.WARNING):
        CaseSplit(str(folder), check=CaseCheck(1, CLASSES, progress=False)).cases("train")
    assert ("names the classes" in caplog.text) == warned


def test_lists_from_elsewhere_are_checked_and_split_cases_not_twice(folder, monkeypatch):
    check = CaseCheck(1, CLASSES, progress=False)
    listed = CaseSplit(str(folder), check=check).cases("all")
    read = []
    whole = checks.read_volumes
    monkeypatch.setattr(checks, "read_volumes", lambda *given: read.append(len(given[1])) or whole(*given))
    check.check_lists(folder, listed[:2], listed[2:])
    assert read == []
    rewrite(Path(listed[0]["label"]), with_value_7)
    other = CaseCheck(1, CLASSES, skip_bad_cases=True, progress=False)
    with pytest.raises(ValueError, match="1 of 3 listed cases cannot be used") as caught:
        other.check_lists(folder, listed[:3])  # nothing can be left out of a list
    assert f"{listed[0]['image']}: label has the values 7" in str(caught.value)


def test_a_broken_dataset_json_is_named(folder):
    (folder / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset.json' is no valid JSON"):
        CaseCheck(1, CLASSES, progress=False)(str(folder), {})


def test_skip_bad_cases_must_be_a_bool():
    with pytest.raises(TypeError, match="skip_bad_cases is 'false'; it must be True or False"):
        CaseCheck(1, CLASSES, skip_bad_cases="false")  # type: ignore[arg-type]


def test_a_case_is_checked_once(folder):
    calls = []

    def check(_folder, cases):
        calls.append(sorted(cases))
        return {}

    split = CaseSplit(str(folder), check=check)
    for section in ("train", "validation", "train", "all"):
        split.cases(section)
    assert [len(names) for names in calls] == [6]
    assert calls[0] == sorted(case["image"].split("/")[-1][:-7] for case in labelled_cases(folder))


def test_outputs_regions_and_class_names_must_fit_each_other():
    names = ["background", "core", "edema"]
    regions = {"core": [1], "edema": [1, 2]}
    CaseCheck(1, names, out_channels=3)
    CaseCheck(1, names, out_channels=2, regions=regions)
    with pytest.raises(ValueError, match=r"the network has 2 outputs \(network_def::out_channels\) and class_names is"):
        CaseCheck(1, names, out_channels=2)
    with pytest.raises(ValueError, match=r"the network has 3 outputs .* and regions are \['core', 'edema'\]: give 2"):
        CaseCheck(1, names, out_channels=3, regions=regions)
    with pytest.raises(ValueError, match=r"with the regions \['edema', 'core'\] it must be the background and their"):
        CaseCheck(1, names, out_channels=2, regions=dict(reversed(regions.items())))
