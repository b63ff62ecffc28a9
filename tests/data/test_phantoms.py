"""Phantoms: the same arguments give the same bytes, and what the docstrings promise is in the files."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from monai_kd.data import make_phantoms, phantom_case
from monai_kd.data.phantom_anatomy import TISSUES, tissue_fractions
from monai_kd.data.phantoms import CONTRAST

SMALL = (20, 26, 18)
FOUR = tuple(CONTRAST)


def relative_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def spacing_mm(affine: np.ndarray) -> np.ndarray:
    return np.linalg.norm(affine[:3, :3], axis=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_phantoms(tmp_path_factory.mktemp("phantoms"), 4, 2, spatial_size=SMALL, progress=False)


@pytest.fixture(scope="module")
def cases():
    """Ten cases of the default size with every modality."""
    return [phantom_case(0, index, FOUR) for index in range(10)]


# --- determinism -----------------------------------------------------------------------------------------------------


def test_same_arguments_give_the_same_bytes(dataset, tmp_path):
    again = make_phantoms(tmp_path, 4, 2, spatial_size=SMALL, progress=False)
    assert relative_files(again) == relative_files(dataset)


def test_smaller_set_is_the_beginning_of_a_larger_one(dataset, tmp_path):
    smaller = relative_files(make_phantoms(tmp_path, 2, 1, spatial_size=SMALL, progress=False))
    larger = relative_files(dataset)
    volumes = [name for name in smaller if name.endswith(".nii.gz")]
    assert len(volumes) == 2 + 2 + 1
    assert all(smaller[name] == larger[name] for name in volumes)


def test_training_case_i_in_the_folder_is_phantom_case_i(dataset):
    case = phantom_case(0, 3, spatial_size=SMALL)
    stored = nib.load(dataset / "imagesTr" / "phantom_003.nii.gz")
    np.testing.assert_array_equal(stored.get_fdata(dtype=np.float32), case.image[0])
    np.testing.assert_allclose(stored.affine, case.affine, atol=1.0e-4)


def test_test_images_are_no_training_images_of_a_larger_set(dataset):
    names = {path.name for path in (dataset / "imagesTs").iterdir()}
    assert names == {"phantom_100000.nii.gz", "phantom_100001.nii.gz"}


def test_anatomy_and_channel_do_not_depend_on_other_modalities():
    alone, together = phantom_case(0, 1, ("T2",), SMALL), phantom_case(0, 1, ("FLAIR", "T2"), SMALL)
    np.testing.assert_array_equal(alone.label, together.label)
    np.testing.assert_array_equal(alone.affine, together.affine)
    np.testing.assert_array_equal(alone.image[0], together.image[1])


# --- layout ----------------------------------------------------------------------------------------------------------


def test_monai_loads_the_training_and_test_lists(dataset):
    training = load_decathlon_datalist(dataset / "dataset.json", True, "training")
    test = load_decathlon_datalist(dataset / "dataset.json", True, "test")
    assert [len(training), len(test)] == [4, 2]
    assert all(Path(item[key]).is_file() for item in training for key in ("image", "label"))
    assert all(Path(item["image"]).is_file() and "label" not in item for item in test)


def test_dataset_json_describes_the_files(dataset):
    content = json.loads((dataset / "dataset.json").read_text())
    assert content["labels"] == {"0": "background", "1": "anterior", "2": "posterior"}
    assert content["modality"] == content["channel_names"] == {"0": "T1"}
    assert (content["numTraining"], content["numTest"], content["tensorImageSize"]) == (4, 2, "3D")
    assert len(list((dataset / "labelsTr").iterdir())) == 4


def test_image_and_label_share_grid_and_units(dataset):
    for item in load_decathlon_datalist(dataset / "dataset.json"):
        image, label = nib.load(item["image"]), nib.load(item["label"])
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1.0e-4)
        assert image.shape == label.shape == SMALL
        assert image.header.get_xyzt_units()[0] == "mm"
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.float32, np.uint8)


def test_several_modalities_are_stored_last_and_differ(tmp_path):
    folder = make_phantoms(tmp_path, 1, 0, FOUR, SMALL, progress=False)
    volume = nib.load(folder / "imagesTr" / "phantom_000.nii.gz").get_fdata(dtype=np.float32)
    content = json.loads((folder / "dataset.json").read_text())
    assert volume.shape == (*SMALL, 4)
    assert content["modality"] == {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    assert content["tensorImageSize"] == "4D"
    correlation = np.corrcoef(volume.reshape(-1, 4).T)
    assert (np.abs(correlation[~np.eye(4, dtype=bool)]) < 0.97).all()


# --- content ---------------------------------------------------------------------------------------------------------


def test_every_class_is_present_in_every_case_even_on_the_coarsest_grid(cases):
    coarse = [phantom_case(7, index, spatial_size=(16, 16, 16)) for index in range(60)]
    for case in [*cases, *coarse]:
        assert case.label.dtype == np.uint8
        counts = np.bincount(case.label.ravel())
        assert len(counts) == 3
        assert (counts > 10).all()


def test_anatomies_differ_between_cases(cases):
    organs = [case.label > 0 for case in cases if nib.aff2axcodes(case.affine) == ("R", "A", "S")]
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for i, a in enumerate(organs) for b in organs[:i]]
    assert len(dice) > 2
    assert max(dice) < 0.9


def testtissue_fractions_sum_to_one():
    fractions = tissue_fractions(np.random.default_rng(0), SMALL)
    assert fractions.shape == (len(TISSUES), *SMALL)
    assert fractions.min() > -1.0e-5
    np.testing.assert_allclose(fractions.sum(0), 1.0, atol=1.0e-5)


def test_voxels_are_anisotropic_and_vary_over_cases(cases):
    spacings = np.array([spacing_mm(case.affine) for case in cases])
    np.testing.assert_allclose(spacings, np.tile((1.0, 1.0, 1.5), (10, 1)), rtol=0.041)
    assert (spacings.std(axis=0) > 0.005).all()


def test_spatial_size_samples_the_same_anatomy_in_the_same_field_of_view():
    coarse, fine = phantom_case(0, 0, spatial_size=SMALL), phantom_case(0, 0, spatial_size=(40, 52, 36))
    assert coarse.label.shape == SMALL
    np.testing.assert_allclose(spacing_mm(coarse.affine), 2 * spacing_mm(fine.affine))
    volumes_mm3 = [(case.label > 0).sum() * np.prod(spacing_mm(case.affine)) for case in (coarse, fine)]
    assert volumes_mm3[0] == pytest.approx(volumes_mm3[1], rel=0.05)


def test_affine_is_turned_by_ten_to_twenty_degrees():
    for index in range(10):
        affine = phantom_case(0, index, spatial_size=SMALL, axis_codes=("RAS",)).affine
        rotation = affine[:3, :3] / spacing_mm(affine)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1.0e-9)
        assert 9.99 < np.rad2deg(np.arccos((np.trace(rotation) - 1) / 2)) < 20.01
        assert np.rad2deg(nib.affines.obliquity(affine)).max() > 5.0


def test_default_orientations_are_both_drawn(cases):
    assert {"".join(nib.aff2axcodes(case.affine)) for case in cases} == {"RAS", "LPS"}


@pytest.mark.parametrize("code", ["LPS", "PIR", "SLA"])
def test_axis_codes_change_the_storage_but_not_the_patient(code):
    stored = phantom_case(0, 0, spatial_size=SMALL, axis_codes=(code,))
    reference = phantom_case(0, 0, spatial_size=SMALL, axis_codes=("RAS",))
    assert nib.aff2axcodes(stored.affine) == tuple(code)
    back = nib.as_closest_canonical(nib.Nifti1Image(stored.image[0], stored.affine))
    np.testing.assert_array_equal(back.get_fdata(dtype=np.float32), reference.image[0])
    np.testing.assert_allclose(back.affine, reference.affine, atol=1.0e-4)


def test_intensity_scales_are_arbitrary_whole_numbers(cases):
    maxima = np.array([case.image.max(axis=(1, 2, 3)) for case in cases])
    assert maxima.min() >= 100
    assert maxima.max() <= 1.0e6
    assert maxima.max() / maxima.min() > 1000
    assert all((case.image == np.rint(case.image)).all() and case.image.min() >= 0 for case in cases)


@pytest.mark.parametrize("name", FOUR)
def test_contrast_between_the_classes_follows_the_table(cases, name):
    """The bias field changes single cases, so the mean log ratio over ten cases is compared."""
    channel = FOUR.index(name)
    means = np.array([[case.image[channel][case.label == k].mean() for k in (1, 2)] for case in cases])
    expected = np.log(CONTRAST[name][TISSUES.index("anterior")] / CONTRAST[name][TISSUES.index("posterior")])
    assert np.log(means[:, 0] / means[:, 1]).mean() == pytest.approx(expected, abs=0.08)


def test_only_t1ce_shows_the_class_boundary_well():
    boundary = {name: abs(np.log(row[-2] / row[-1])) for name, row in CONTRAST.items()}
    assert boundary["T2"] == 0
    assert max(boundary, key=lambda name: boundary[name]) == "T1ce"


def test_organ_is_darker_than_its_surroundings_in_t1_and_brighter_in_t2(cases):
    for channel, is_brighter in ((FOUR.index("T1"), False), (FOUR.index("T2"), True)):
        organ = np.array([case.image[channel][case.label > 0].mean() for case in cases])
        rest = np.array([case.image[channel][case.label == 0].mean() for case in cases])
        assert ((organ > rest) == is_brighter).all()


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"index": 1},
        {"modalities": ("T2",)},
        {"spatial_size": (22, 26, 18)},
        {"axis_codes": ("PIR",)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_option_of_a_case_changes_it(changed):
    options = {"seed": 0, "index": 0, "modalities": ("T1",), "spatial_size": SMALL, "axis_codes": ("RAS",)}
    assert not np.array_equal(phantom_case(**options).image, phantom_case(**(options | changed)).image)


def test_seed_reaches_the_files(dataset, tmp_path):
    other = relative_files(make_phantoms(tmp_path, 4, 2, spatial_size=SMALL, seed=1, progress=False))
    first = relative_files(dataset)
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_progress_shows_a_bar(tmp_path, capsys):
    make_phantoms(tmp_path, 1, 0, spatial_size=(16, 16, 16), progress=False)
    assert capsys.readouterr().err == ""
    make_phantoms(tmp_path, 1, 0, spatial_size=(16, 16, 16), progress=True)
    assert "phantoms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, r"num_train must be a whole number from 1 to 100000; got 0"),
        ({"num_train": 2.5}, r"num_train .* got 2\.5"),
        ({"num_test": -1}, r"num_test must be a whole number from 0 to 100000; got -1"),
        ({"seed": -3}, r"seed must be a whole number >= 0; got -3"),
        ({"modalities": ("T1", "CT")}, r"modalities holds 'CT'; known: T1, T1ce, T2, FLAIR"),
        ({"modalities": "T1"}, r"modalities must be a list of one or more names; got 'T1'"),
        ({"modalities": ()}, r"modalities must be a list of one or more names; got \(\)"),
        ({"modalities": ("T1", "T1")}, r"modalities must not repeat; got \('T1', 'T1'\)"),
        ({"spatial_size": (40, 52)}, r"spatial_size must be three whole numbers >= 16; got \(40, 52\)"),
        ({"spatial_size": (40, 52, 8)}, r"spatial_size\[2\] must be a whole number >= 16; got 8"),
        ({"axis_codes": ("RAR",)}, r"axis_codes holds 'RAR'; known: RAS, LPS and the other 46"),
    ],
)
def test_bad_argument_is_named_with_what_would_be_right(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_phantoms(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# --- the output folder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("foreign", ["notes.txt", "dataset.json"])
def test_refuses_a_folder_with_something_else_and_leaves_it_alone(foreign, tmp_path):
    (tmp_path / foreign).write_text('{"name": "precious"}')
    with pytest.raises(FileExistsError, match=f"'{tmp_path}' is not empty and holds no phantoms"):
        make_phantoms(tmp_path, 1, 0, progress=False)
    assert relative_files(tmp_path) == {foreign: b'{"name": "precious"}'}


def test_refuses_a_file_as_output_dir(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(FileExistsError, match="is a file; give a new or empty directory"):
        make_phantoms(tmp_path / "out", 1, 0)


def test_replaces_its_own_phantoms_and_leaves_no_stale_ones(tmp_path):
    make_phantoms(tmp_path, 3, 1, spatial_size=SMALL, progress=False)
    make_phantoms(tmp_path, 2, 0, spatial_size=SMALL, progress=False)
    assert sorted(relative_files(tmp_path)) == [
        "dataset.json",
        *(f"{folder}/phantom_00{i}.nii.gz" for folder in ("imagesTr", "labelsTr") for i in (0, 1)),
    ]
