"""Reading a case: RAS order, one grid, whole numbers; volumes and Dice by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from viewer_cases import SHAPE, SPACING_MM, blocks, gray, save, save_case, small_case

from monai_kd.visualize.structures import named_structures
from monai_kd.visualize.viewer_case import ViewerCase, read_case

ANY_NAMES = partial(named_structures, class_names=["a", "b"])


def read(prediction: Path, image: Path, label: Path | None, channel: int = 0) -> ViewerCase:
    return read_case("case 7", prediction, image, label, ANY_NAMES, channel)


def test_volume_is_voxels_times_spacing_and_dice_twice_the_overlap() -> None:
    case = small_case()
    a, b = case.structures
    assert case.volume_ml("prediction", a) == pytest.approx(64 * 6.0 / 1000)  # voxels of 1 x 2 x 3 mm
    assert case.volume_ml("truth", b) == pytest.approx(32 * 6.0 / 1000)
    assert case.dice(a) == pytest.approx(2 * 32 / 128)
    assert case.dice(b) == 0.0
    assert small_case(truth=False).dice(a) is None


def test_any_orientation_comes_out_in_ras_order_at_its_place(tmp_path: Path) -> None:
    affine = np.array([[-1.0, 0, 0, 9], [0, 0, 3.0, -7], [0, -2.0, 0, 5], [0, 0, 0, 1]])  # L, I, A
    prediction, truth = blocks()
    files = [save(tmp_path / f"{i}.nii.gz", voxels, affine) for i, voxels in enumerate((prediction, gray(), truth))]
    case = read(*files)
    assert nib.aff2axcodes(case.affine) == ("R", "A", "S")
    assert case.spacing_mm == (1.0, 3.0, 2.0)
    assert case.oblique_degrees == pytest.approx(0, abs=1e-3)
    before = nib.affines.apply_affine(affine, np.argwhere(prediction == 1)).mean(0)
    after = nib.affines.apply_affine(case.affine, np.argwhere(case.maps["prediction"] == 1)).mean(0)
    assert after == pytest.approx(before)
    assert case.image[case.maps["truth"] == 1].min() == 200.0


def test_files_in_other_orientations_of_one_grid_fit_together(tmp_path: Path) -> None:
    prediction, image, label = save_case(tmp_path)
    turned = nib.load(prediction).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, tmp_path / "turned.nii.gz")
    case, same = read(tmp_path / "turned.nii.gz", image, label), read(prediction, image, label)
    assert np.array_equal(case.maps["prediction"], same.maps["prediction"])


def test_oblique_grid_tells_its_angle() -> None:
    angle = np.radians(25)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert small_case(affine=affine).oblique_degrees == pytest.approx(25)


def test_channel_of_a_4d_image_is_chosen(tmp_path: Path) -> None:
    prediction, _, _ = save_case(tmp_path)
    image = save(tmp_path / "4d.nii.gz", np.stack([gray(), 2 * gray()], -1))
    assert [read(prediction, image, None, channel).image.max() for channel in (0, 1)] == [200.0, 400.0]
    with pytest.raises(ValueError, match=r"channel is 2; the image .* has the channels 0 to 1"):
        read(prediction, image, None, 2)


def test_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    prediction, image, _ = save_case(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.nii.gz' does not exist"):
        read(prediction, image, tmp_path / "nowhere.nii.gz")
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(prediction.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cut.nii.gz' cannot be read"):
        read(cut, image, None)
    (tmp_path / "text.nii").write_text("no image")
    with pytest.raises(ValueError, match=r"text.nii' cannot be read"):
        read(prediction, tmp_path / "text.nii", None)


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.zeros((*SHAPE, 2), dtype=np.uint8), r"has 4 dimensions, \(20, 16, 12, 2\); a label map has 3"),
        (np.full(SHAPE, 0.5, dtype=np.float32), "holds the value 0.5; a label map holds whole numbers"),
        (np.full(SHAPE, np.nan, dtype=np.float32), "holds the value nan"),
        (np.arange(20 * 16 * 12, dtype=np.int16).reshape(SHAPE), "holds 3840 different values"),
        (np.zeros((20, 16, 11), dtype=np.uint8), "has 20 x 16 x 11 voxels and the image .* 20 x 16 x 12"),
        (np.full(SHAPE, 3, dtype=np.uint8), "the label maps hold the value 3, which has no name"),
    ],
)
def test_map_that_does_not_fit_is_named(tmp_path: Path, voxels: np.ndarray, message: str) -> None:
    _, image, _ = save_case(tmp_path)
    with pytest.raises(ValueError, match=message):
        read(save(tmp_path / "odd_seg.nii.gz", voxels), image, None)


def test_whole_numbers_in_float_and_a_last_axis_of_one_are_read(tmp_path: Path) -> None:
    prediction, image, _ = save_case(tmp_path)
    same = save(tmp_path / "float.nii.gz", blocks()[0].astype(np.float32)[..., None])
    assert np.array_equal(read(same, image, None).maps["prediction"], read(prediction, image, None).maps["prediction"])


@pytest.mark.parametrize(("shift_mm", "fits"), [(0.05, True), (0.5, False)])
def test_grids_apart_by_more_than_a_tenth_of_a_voxel_are_refused(tmp_path: Path, shift_mm: float, fits: bool) -> None:
    _, image, _ = save_case(tmp_path)
    affine = np.diag([*SPACING_MM, 1.0])
    affine[0, 3] = shift_mm
    moved = save(tmp_path / "moved.nii.gz", blocks()[0], affine)
    if fits:
        read(moved, image, None)
    else:
        with pytest.raises(
            ValueError, match=r"the affines of .*moved.* and of the image .* differ, by up to 0.5 voxels"
        ):
            read(moved, image, None)
