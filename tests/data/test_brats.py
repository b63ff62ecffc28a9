"""Cases of BraTS folders, whatever the year that named them, checked and loaded as one image."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import NibabelReader
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from monai_kd.data import CaseCheck, CaseSplit, brats_cases, case_id

YEARS = {
    2018: ("Brats18_{}", "_", ("t1", "t1ce", "t2", "flair", "seg")),
    2021: ("BraTS2021_{}", "_", ("t1", "t1ce", "t2", "flair", "seg")),
    2023: ("BraTS-GLI-{}-000", "-", ("t1n", "t1c", "t2w", "t2f", "seg")),
    2013: ("HG_{}", "_", ("T1", "T1Gd", "T2", "FLAIR", "seg")),
}


def write_case(folder: Path, year: int, number: int, shape: tuple[int, ...] = (6, 5, 4), **affines) -> Path:
    """A case whose channel k is full of k + 1, and whose label holds 0 and 4."""
    name, separator, endings = YEARS[year]
    case = folder / name.format(number)
    case.mkdir(parents=True)
    for index, ending in enumerate(endings):
        values = np.full(shape, index + 1, dtype=np.float32)
        if ending == "seg":
            values = np.zeros(shape, dtype=np.uint8)
            values[0] = 4
        affine = affines.get(ending, np.diag([1.0, 1.0, 2.0, 1.0]))
        nib.save(nib.Nifti1Image(values, affine), case / f"{case.name}{separator}{ending}.nii.gz")
    return case


@pytest.mark.parametrize("year", YEARS)
def test_the_modalities_of_any_year_are_channels_in_the_order_asked_for(year, tmp_path):
    case = write_case(tmp_path, year, 7)
    (found,) = brats_cases(tmp_path, ["flair", "t1ce"])
    loaded = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])(found)
    assert loaded["image"].shape == (2, 6, 5, 4)
    assert loaded["image"][:, 0, 0, 0].tolist() == [4.0, 2.0]
    assert loaded["label"].shape == (1, 6, 5, 4)
    assert case_id(found["image"]) == case_id(found["label"]) == case.name
    assert case_id(loaded["image"].meta["filename_or_obj"]) == case.name


def test_cases_without_a_label_are_left_out_and_the_others_sorted(tmp_path):
    for number in (3, 1, 2):
        write_case(tmp_path, 2021, number)
    (tmp_path / "BraTS2021_2" / "BraTS2021_2_seg.nii.gz").unlink()
    (tmp_path / "notes.txt").write_text("no case")
    assert [case_id(case["image"]) for case in brats_cases(tmp_path)] == ["BraTS2021_1", "BraTS2021_3"]


def test_images_alone_are_listed_where_no_label_is_asked_for(tmp_path):
    for number in (1, 2):
        write_case(tmp_path, 2021, number)
    (tmp_path / "BraTS2021_2" / "BraTS2021_2_seg.nii.gz").unlink()
    found = brats_cases(tmp_path, ["t1ce"], labeled=False)
    assert [list(case) for case in found] == [["image"], ["image"]]
    assert [case_id(case["image"]) for case in found] == ["BraTS2021_1", "BraTS2021_2"]
    with pytest.raises(ValueError, match="has no case: no folder in it holds a file ending in _t1"):
        brats_cases(tmp_path / "BraTS2021_1", labeled=False)


def test_a_split_lists_them_and_the_check_counts_the_channels_of_all_files(tmp_path):
    for number in range(4):
        write_case(tmp_path, 2021, number)
    names = ["background", "whole_tumor", "tumor_core", "enhancing"]
    check = CaseCheck(4, names, progress=False, label_values=[0, 1, 2, 4])
    split = CaseSplit(str(tmp_path), check=check, list_cases=brats_cases)
    assert sum(len(split.cases(section)) for section in ("train", "validation", "test")) == 4
    for wrong, message in (
        (CaseCheck(3, names, progress=False, label_values=[0, 1, 2, 4]), "image has 4 channels, the network takes 3"),
        (CaseCheck(4, names, progress=False), "label has the values 4; the classes are 0 to 3"),
        (CaseCheck(4, names, progress=False, label_values=[0, 2]), "label has the values 4; the classes are 0, 2"),
    ):
        with pytest.raises(ValueError, match=message):
            CaseSplit(str(tmp_path), check=wrong, list_cases=brats_cases).cases("train")


def test_files_of_one_image_on_two_grids_are_named(tmp_path):
    case = write_case(tmp_path, 2021, 1)
    t2 = case / f"{case.name}_t2.nii.gz"
    check = CaseCheck(4, ["background", "tumor"], progress=False, label_values=[0, 4])
    cases = {case.name: brats_cases(tmp_path)[0]}
    assert check(tmp_path, cases) == {}
    nib.save(nib.Nifti1Image(np.ones((6, 5, 3), dtype=np.float32), np.diag([1.0, 1.0, 2.0, 1.0])), t2)
    with pytest.raises(ValueError, match=rf"'{t2.name}' has 6 x 5 x 3 voxels and '{case.name}_t1.nii.gz' 6 x 5 x 4"):
        check(tmp_path, cases)
    nib.save(nib.Nifti1Image(np.ones((6, 5, 4), dtype=np.float32), np.eye(4)), t2)
    with pytest.raises(ValueError, match=rf"the affines of '{t2.name}' and '{case.name}_t1.nii.gz' differ"):
        check(tmp_path, cases)
    t2.write_bytes(b"broken")
    with pytest.raises(ValueError, match=rf"'{t2.name}'"):
        check(tmp_path, cases)


def test_files_of_equal_names_in_two_folders_are_two_channels(tmp_path):
    image = []
    for folder, shape in (("t1", (6, 5, 3)), ("t2", (6, 5, 4))):
        (tmp_path / folder).mkdir()
        image.append(str(tmp_path / folder / "case_1.nii.gz"))
        nib.save(nib.Nifti1Image(np.ones(shape, dtype=np.float32), np.eye(4)), image[-1])
    label = tmp_path / "case_1_seg.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((6, 5, 4), dtype=np.uint8), np.eye(4)), label)
    check = CaseCheck(1, ["background", "tumor"], progress=False)
    with pytest.raises(ValueError, match=r"'case_1\.nii\.gz' has 6 x 5 x 4 voxels and 'case_1\.nii\.gz' 6 x 5 x 3"):
        check(tmp_path, {"case_1": {"image": image, "label": str(label)}})


def test_a_modality_twice_is_refused(tmp_path):
    write_case(tmp_path, 2021, 1)
    with pytest.raises(ValueError, match=r"modalities is \['t1', 't1'\]; give at least one, each once"):
        brats_cases(tmp_path, ["t1", "t1"])


def test_a_name_stands_for_a_case_only_before_a_modality():
    assert case_id("heart/heart_003.nii.gz") == "heart_003"
    assert case_id("case_7/case_7-t1c.nii") == "case_7"
    assert case_id("imagesTr/case_7_t1.nii.gz") == "case_7_t1"


@pytest.mark.parametrize(
    ("prepare", "arguments", "error", "message"),
    [
        (
            lambda case: None,
            {"modalities": ["t1", "dwi"]},
            ValueError,
            r"modalities is \['t1', 'dwi'\]; give at least one, each once",
        ),
        (
            lambda case: next(case.glob("*_t2.nii.gz")).unlink(),
            {},
            FileNotFoundError,
            "lacks t2: no file ending in t2 or",
        ),
        (
            lambda case: (case / f"{case.name}_t1c.nii").write_bytes(b""),
            {},
            ValueError,
            r"several files for t1ce: .*_t1ce.nii.gz, .*_t1c.nii; keep one",
        ),
        (lambda case: next(case.glob("*_seg.nii.gz")).unlink(), {}, ValueError, "has no labelled case"),
    ],
)
def test_what_cannot_be_listed_is_named(tmp_path, prepare, arguments, error, message):
    prepare(write_case(tmp_path, 2021, 1))
    with pytest.raises(error, match=message):
        brats_cases(tmp_path, **arguments)
    with pytest.raises(FileNotFoundError, match="is not a folder; pass --dataset_dir DIR with one folder per case"):
        brats_cases(tmp_path / "nowhere")


def test_monais_reader_of_several_files_is_not_made_for_threads(tmp_path):
    """Where this fails MONAI has mended it, and overlays may read BraTS cases by several threads again."""
    write_case(tmp_path, 2021, 7)
    (case,) = brats_cases(tmp_path)
    reader = NibabelReader()
    images = reader.read(case["image"])
    reader.read(case["label"])  # another thread, with the same reader
    values, _ = reader.get_data(images)
    assert values.shape == (6, 5, 4), "one file of four"


# ---- modalities that a case may lack --------------------------------------------------------------------------------


def test_a_case_may_lack_an_optional_modality_and_says_so(tmp_path):
    case = write_case(tmp_path, 2021, 1)
    write_case(tmp_path, 2021, 2)
    (case / f"{case.name}_t1.nii.gz").unlink()
    without, whole = brats_cases(tmp_path, ["t1", "flair", "t1ce"], optional=["t1", "flair"])
    assert (without["available"], whole["available"]) == ([0, 1, 1], [1, 1, 1])
    loaded = Compose([LoadImaged(["image"]), EnsureChannelFirstd(["image"])])(without)
    assert loaded["image"][1:, 0, 0, 0].tolist() == [4.0, 2.0]  # the first place is taken by any file
    assert "available" not in brats_cases(tmp_path, ["flair", "t1ce"])[0]
    assert brats_cases(tmp_path, ["t1", "flair"], labeled=False, optional=["t1"])[0]["available"] == [0, 1]


def test_a_missing_modality_that_is_not_optional_is_named(tmp_path):
    case = write_case(tmp_path, 2021, 1)
    (case / f"{case.name}_t1ce.nii.gz").unlink()
    for optional in ([], ["t1"]):
        with pytest.raises(
            FileNotFoundError, match=r"BraTS2021_1' lacks t1ce: no file ending in .*; it has flair, seg"
        ):
            brats_cases(tmp_path, ["t1", "t1ce"], optional=optional)
    with pytest.raises(FileNotFoundError, match=r"lacks every one of the modalities \['t1ce'\]; it has flair, seg"):
        brats_cases(tmp_path, ["t1ce"], optional=["t1ce"])


@pytest.mark.parametrize("optional", [["dwi"], ["t2"], "t1"])
def test_only_modalities_asked_for_can_be_optional(tmp_path, optional):
    with pytest.raises(ValueError, match=r"optional is .*; give a list of some of the modalities \['t1', 'flair'\]"):
        brats_cases(tmp_path, ["t1", "flair"], optional=optional)


def test_the_check_takes_a_case_that_lacks_a_modality(tmp_path):
    case = write_case(tmp_path, 2021, 1)
    (case / f"{case.name}_t1.nii.gz").unlink()
    cases = {case.name: brats_cases(tmp_path, optional=["t1"])[0]}
    assert CaseCheck(4, ["background", "tumor"], progress=False, label_values=[0, 4])(tmp_path, cases) == {}


# ---- one 4-D file per case ------------------------------------------------------------------------------------------

TASK01 = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
STORED = ["flair", "t1", "t1ce", "t2"]


def write_task01(folder: Path, modality: object = TASK01, channels: int = 4) -> Path:
    """Two labelled cases of the layout of MSD Task01, and a test image; channel k is full of k + 1."""
    volume = np.ones((6, 5, 4, channels), dtype=np.float32) * np.arange(1, channels + 1, dtype=np.float32)
    names = [f"BRATS_{number:03d}.nii.gz" for number in (2, 1)]
    for place, name in [("imagesTr", name) for name in names] + [("imagesTs", "BRATS_485.nii.gz")]:
        (folder / place).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / place / name)
    (folder / "labelsTr").mkdir()
    for name in names:
        nib.save(nib.Nifti1Image((volume[..., 0] > 9).astype(np.uint8), np.eye(4)), folder / "labelsTr" / name)
    content = {"training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]}
    (folder / "dataset.json").write_text(json.dumps({**content, **({"modality": modality} if modality else {})}))
    return folder


@pytest.mark.parametrize("modality", [TASK01, list(TASK01.values()), ["t2f", "T1", "T1ce", "T2"]])
def test_files_of_four_channels_are_cases_where_their_order_is_the_one_asked_for(tmp_path, modality):
    write_task01(tmp_path, modality)
    cases = brats_cases(tmp_path, STORED)
    assert [case_id(case["image"]) for case in cases] == ["BRATS_001", "BRATS_002"]
    loaded = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])(cases[0])
    assert loaded["image"][:, 0, 0, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert loaded["label"].shape == (1, 6, 5, 4)


def test_channels_in_another_order_are_refused_with_the_order_to_pass(tmp_path):
    write_task01(tmp_path)
    with pytest.raises(ValueError, match=r"dataset\.json' has the channels \['flair', 't1', 't1ce', 't2'\]") as caught:
        brats_cases(tmp_path)
    assert "the modalities asked for are ['t1', 't1ce', 't2', 'flair']" in str(caught.value)
    assert "pass --modalities \"['flair','t1','t1ce','t2']\"" in str(caught.value)
    with pytest.raises(ValueError, match="or write t1ce as files of their own"):
        brats_cases(tmp_path, ["t1ce"], labeled=False)


def test_channels_without_names_are_taken_in_the_order_asked_for_with_a_warning(tmp_path, caplog):
    write_task01(tmp_path, modality=None)
    with caplog.at_level(logging.WARNING, "monai_kd"):
        assert len(brats_cases(tmp_path)) == 2
    assert "taken for ['t1', 't1ce', 't2', 'flair'], in this order" in caplog.text


def test_test_images_are_listed_without_labels_and_else_training_images(tmp_path):
    write_task01(tmp_path)
    assert brats_cases(tmp_path, STORED, labeled=False) == [{"image": str(tmp_path / "imagesTs" / "BRATS_485.nii.gz")}]
    (tmp_path / "imagesTs" / "BRATS_485.nii.gz").unlink()
    assert len(brats_cases(tmp_path, STORED, labeled=False)) == 2


def test_a_wrong_number_of_channels_is_a_bad_case(tmp_path):
    write_task01(tmp_path, channels=3)
    split = CaseSplit(
        str(tmp_path),
        check=CaseCheck(4, ["background", "tumor"], progress=False),
        list_cases=partial(brats_cases, modalities=STORED),
    )
    with pytest.raises(ValueError, match="BRATS_001: image has 3 channels, the network takes 4"):
        split.cases("all")


@pytest.mark.parametrize(
    ("modality", "arguments", "message"),
    [
        ({"0": "CT"}, {}, r"names the modalities \['CT'\]; 'CT' is none of t1, t1n, t1w"),
        ({"0": "T1", "2": "T2"}, {}, "must name the channels 0, 1, ... or list their names"),
        (TASK01, {"modalities": STORED, "optional": ["t1"]}, "hold all modalities in one 4-D file"),
    ],
)
def test_what_is_wrong_with_files_of_four_channels_is_named(tmp_path, modality, arguments, message):
    write_task01(tmp_path, modality)
    with pytest.raises(ValueError, match=message):
        brats_cases(tmp_path, **arguments)


# ---- files of one modality ------------------------------------------------------------------------------------------


def test_a_folder_of_files_of_one_modality_is_listed_for_inference(tmp_path):
    for name in ("b.nii.gz", "a_t1c.nii", "a_flair.nii.gz", "a_seg.nii.gz", "._b.nii.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    listed = [{"image": str(tmp_path / name)} for name in ("a_t1c.nii", "b.nii.gz")]
    assert brats_cases(tmp_path, ["t1ce"], labeled=False) == listed
    for arguments in ({"modalities": ["t1ce", "t2"], "labeled": False}, {"modalities": ["t1ce"]}):
        with pytest.raises(ValueError, match=r"has no (labelled )?case"):
            brats_cases(tmp_path, **arguments)


def test_one_modality_of_a_folder_of_cases_has_a_channel_axis(tmp_path):
    write_case(tmp_path, 2023, 1)
    (case,) = brats_cases(tmp_path, ["t1ce"], labeled=False)
    loaded = Compose([LoadImaged(["image"]), EnsureChannelFirstd(["image"])])(case)["image"]
    assert loaded.shape == (1, 6, 5, 4)
    assert loaded.unique().tolist() == [2.0]
