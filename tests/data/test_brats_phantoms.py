"""Brain tumor phantoms: what each layout promises is in the files, and each modality shows its part of the tumor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from scipy.stats import rankdata

from monai_kd.data import CaseCheck, CaseSplit, brats_cases, brats_phantom_case, case_id, make_brats_phantoms

SMALL = (24, 26, 28)
MODALITIES = ("t1", "t1ce", "t2", "flair")
STORED = ("flair", "t1", "t1ce", "t2")  # of the 4-D files
LAYOUTS = {"2018": [0, 1, 2, 4], "2021": [0, 1, 2, 4], "2023": [0, 1, 2, 3], "msd": [0, 1, 2, 3]}
NAMES = {"2018": "Brats18_PHANTOM_001_1", "2021": "BraTS2021_00001", "2023": "BraTS-GLI-00001-000", "msd": "BRATS_001"}


def relative_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("brats_phantoms")
    return {name: make_brats_phantoms(root / name, 3, SMALL, layout=name, progress=False) for name in LAYOUTS}


@pytest.fixture(scope="module")
def cases():
    return [brats_phantom_case(0, index) for index in range(8)]


def separation(case, modality: str, values: list[int], others: list[int]) -> float:
    """The chance that a voxel of some label values is brighter than one of the others: 0.5 tells nothing."""
    image = case.image[MODALITIES.index(modality)]
    first, second = (image[(image > 0) & np.isin(case.label, wanted)] for wanted in (values, others))
    ranks = rankdata(np.concatenate([first, second]))[: len(first)]
    return (ranks.mean() - (len(first) + 1) / 2) / len(second)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_arguments_give_the_same_bytes_and_fewer_cases_the_first(folders, layout, tmp_path):
    again = relative_files(make_brats_phantoms(tmp_path / "a", 3, SMALL, layout=layout, progress=False))
    assert again == relative_files(folders[layout])
    fewer = relative_files(make_brats_phantoms(tmp_path / "a", 2, SMALL, layout=layout, progress=False))
    volumes = [name for name in fewer if name.endswith(".nii.gz")]
    assert len(volumes) == 2 * (2 if layout == "msd" else 5)
    assert all(fewer[name] == again[name] for name in volumes)
    other = relative_files(make_brats_phantoms(tmp_path / "b", 2, SMALL, layout=layout, seed=1, progress=False))
    assert not any(other[name] == again[name] for name in volumes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_listed_and_its_cases_pass_the_check(folders, layout, tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_KD_CACHE", str(tmp_path))
    modalities = STORED if layout == "msd" else MODALITIES
    listed = brats_cases(folders[layout], modalities)
    assert [case_id(case["image"]) for case in listed][1] == NAMES[layout]
    meanings = {"necrotic_core": [1], "edema": [2], "enhancing_tumor": [3, 4]}
    if layout == "msd":
        meanings |= {"necrotic_core": [2], "edema": [1]}
    check = CaseCheck(4, ["background", "tumor"], False, False, label_meanings=meanings, exclusive_values=[[3, 4]])
    split = CaseSplit(str(folders[layout]), check=check, list_cases=lambda folder: brats_cases(folder, modalities))
    assert len(split.cases("all")) == 3
    assert split.skipped == {}


def test_a_case_is_the_same_in_every_layout_but_for_its_label_values(folders):
    load = Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])
    expected = brats_phantom_case(0, 2, STORED, SMALL)
    for layout, values in LAYOUTS.items():
        found = load(brats_cases(folders[layout], STORED)[2])
        np.testing.assert_array_equal(found["image"].numpy(), expected.image)
        np.testing.assert_array_equal(found["image"].affine, expected.affine)
        label = found["label"][0].numpy()
        assert np.unique(label).tolist() == values
        swapped = {1: 2, 2: 1} if layout == "msd" else {1: 1, 2: 2}
        for stored, value in {**swapped, values[-1]: 4}.items():
            np.testing.assert_array_equal(label == stored, expected.label == value)


def test_phantoms_replace_phantoms_and_nothing_else(tmp_path):
    make_brats_phantoms(tmp_path / "a", 2, SMALL, progress=False)
    make_brats_phantoms(tmp_path / "a", 1, SMALL, layout="msd", progress=False)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "dataset.json",
        "imagesTr",
        "labelsTr",
        "phantoms.json",
    ]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    for taken, message in (
        (tmp_path / "b", "is not empty and holds no phantoms"),
        (tmp_path / "b/notes.txt", "is a file"),
    ):
        with pytest.raises(FileExistsError, match=message):
            make_brats_phantoms(taken, 1, SMALL, progress=False)


# ---- anatomy and contrast -------------------------------------------------------------------------------------------


def test_every_case_has_every_tissue_also_on_the_coarsest_grid():
    for index in range(20):
        label = brats_phantom_case(3, index, ("t1",), (24, 24, 24)).label
        assert np.unique(label).tolist() == [0, 1, 2, 4]


def test_the_background_is_zero_and_the_brain_above_it(cases):
    for case in cases:
        assert case.image.dtype == np.int16
        assert case.image.min() == 0
        brain = case.image[0] > 0
        assert 0.2 < brain.mean() < 0.5
        assert all((channel > 0).tolist() == brain.tolist() for channel in case.image)
        assert case.label[~brain].max() == 0
        assert set(case.label[0].ravel().tolist()) == {0}


def test_flair_shows_the_whole_tumor_t1ce_the_rim_and_t1_little(cases):
    shown = {
        (name, part): np.mean([separation(case, name, *values) for case in cases])
        for name in MODALITIES
        for part, values in {"whole": ([1, 2, 4], [0]), "edema": ([2], [0]), "rim": ([4], [0, 1, 2])}.items()
    }
    assert shown["flair", "whole"] > 0.97
    assert shown["t2", "whole"] > 0.8
    assert shown["t1ce", "rim"] > 0.97
    for modality in ("t1", "t1ce"):
        assert 0.4 < shown[modality, "edema"] < 0.65
    assert 0.4 < shown["t1", "rim"] < 0.6


def test_scales_differ_by_orders_between_cases_and_modalities(cases):
    largest = np.array([case.image.max(axis=(1, 2, 3)) for case in cases])
    assert largest.min() >= 100
    assert largest.max() <= 30000
    assert (largest.max(axis=0) > 10 * largest.min(axis=0)).all()


def test_a_channel_does_not_depend_on_the_others_and_spacing_is_the_affines():
    alone = brats_phantom_case(0, 1, ("t2",), SMALL, (1.0, 1.5, 2.0))
    together = brats_phantom_case(0, 1, ("flair", "t2"), SMALL)
    np.testing.assert_array_equal(alone.image[0], together.image[1])
    np.testing.assert_array_equal(alone.label, together.label)
    assert np.linalg.norm(alone.affine[:3, :3], axis=0).tolist() == [1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "2022"}, "layout is '2022'; known: 2018, 2021, 2023, msd"),
        ({"num_cases": 0}, "num_cases must be a whole number from 1 to 1000; got 0"),
        ({"spatial_size": (24, 24, 16)}, r"spatial_size\[2\] must be a whole number >= 24; got 16"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "give three numbers each, the spacing above 0"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_brats_phantoms(tmp_path / "a", **arguments)
    with pytest.raises(ValueError, match=r"modalities is \['dwi'\]; known: t1, t1ce, t2, flair"):
        brats_phantom_case(0, 0, ["dwi"])
    assert not (tmp_path / "a").exists()
