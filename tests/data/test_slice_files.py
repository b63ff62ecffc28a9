"""write_slices: PNG files that lie as a radiologist sees them, with their window, their place and their patient."""

from __future__ import annotations

import csv
import json

import nibabel
import numpy as np
import pytest
from monai.transforms import LoadImage
from PIL import Image

from monai_kd.data import CaseSplit, as_classes, image_mask_cases, write_slices

SHAPE = (6, 8, 120)


def volume(folder, name, values, label, affine):
    for key, content in (("imagesTr", values), ("labelsTr", label)):
        (folder / key).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(content.astype(np.float32), affine), folder / key / f"{name}.nii.gz")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_KD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    """In LPS, as scanners write: one bright corner at the patient's right front, in the slice nearest to the head."""
    values, label = np.zeros(SHAPE), np.zeros(SHAPE)
    values[0, 0, -1], label[0, 0, -1] = 300.0, 2.0  # first voxels: right and front, the axes go left and back
    folder = tmp_path / "data"
    for name in ("a_01", "b_02", "c_03"):
        volume(folder, name, values, label, np.diag([-0.5, -0.5, 2.0, 1.0]))
    return folder


def test_a_picture_shows_the_right_at_the_left_and_the_front_above(data, tmp_path):
    out = write_slices(data, tmp_path / "out", window=(0, 300), progress=False)
    top = np.asarray(Image.open(out / "images" / "a_01_0119.png"))
    assert top.shape == (8, 6)
    assert top.dtype == np.uint8
    assert (top[0, 0], int(top.sum())) == (255, 255)
    assert np.asarray(Image.open(out / "labels" / "a_01_0119.png"))[0, 0] == 2
    assert not np.asarray(Image.open(out / "images" / "a_01_0000.png")).any()
    names = sorted(path.stem for path in (out / "images").iterdir())
    assert len(names) == 3 * 120
    assert names[:120] == [f"a_01_{position:04}" for position in range(120)]


def test_the_table_says_where_each_slice_came_from(data, tmp_path):
    out = write_slices(data, tmp_path / "out", window=(-160, 240), progress=False)
    rows = list(csv.DictReader((out / "slices.csv").open()))
    assert len(rows) == 360
    assert rows[121] == {
        "slice": "b_02_0001", "case": "b_02", "position": "1", "pixel_mm_x": "0.5", "pixel_mm_y": "0.5",
        "slice_mm": "2", "low": "-160", "high": "240",
    }  # fmt: skip


def test_the_window_is_explicit_and_without_one_that_of_the_case(data, tmp_path):
    narrow = write_slices(data, tmp_path / "narrow", window=(0, 600), progress=False)
    assert np.asarray(Image.open(narrow / "images" / "a_01_0119.png")).max() == 128
    own = write_slices(data, tmp_path / "own", progress=False)
    row = next(csv.DictReader((own / "slices.csv").open()))
    assert float(row["high"]) == pytest.approx(np.percentile(nibabel.load(data / "imagesTr/a_01.nii.gz").dataobj, 99.5))


def test_slices_are_resampled_in_plane_alone(data, tmp_path):
    out = write_slices(data, tmp_path / "out", pixel_size=1.0, progress=False)
    assert len(list((out / "images").iterdir())) == 360
    assert np.asarray(Image.open(out / "images" / "a_01_0000.png")).shape == (4, 4)  # corners stay where they are


def test_the_folder_is_read_back_and_a_split_keeps_patients_together(data, tmp_path):
    out = write_slices(data, tmp_path / "out", progress=False)
    cases = image_mask_cases(out)
    assert len(cases) == 360
    assert {case["group"] for case in cases} == {"a_01", "b_02", "c_03"}
    ids = CaseSplit(str(out), list_cases=image_mask_cases).ids
    patients = [{name.rpartition("_")[0] for name in names} for names in ids.values()]
    assert all(len(found) == 1 for found in patients)
    assert len(set().union(*patients)) == 3


def test_class_numbers_survive_the_way_through_the_files(data, tmp_path):
    label = nibabel.load(data / "labelsTr/a_01.nii.gz")
    some = np.zeros(SHAPE)
    some[1, 2, 0], some[3, 4, 1], some[2, 2, 1] = 1, 1, 2  # one slice has 0 and 1 alone
    nibabel.save(nibabel.Nifti1Image(some.astype(np.float32), label.affine), data / "labelsTr/a_01.nii.gz")
    out = write_slices(data, tmp_path / "out", progress=False)
    load = LoadImage(image_only=True, reader="PILReader", converter=as_classes)
    assert [sorted(load(out / "labels" / f"a_01_000{k}.png").unique().tolist()) for k in (0, 1, 2)] == [
        [0, 1],
        [0, 1, 2],
        [0],
    ]
    Image.new("RGB", (4, 4)).save(tmp_path / "color.png")
    with pytest.raises(ValueError, match=r"color.png' has the pixel format RGB; class numbers need one channel"):
        as_classes(Image.open(tmp_path / "color.png"))


def test_what_cannot_be_written_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"window is \(5, 5\); give the least and the greatest intensity"):
        write_slices(data, tmp_path / "out", window=(5, 5))
    with pytest.raises(ValueError, match="pixel_size is 0; it must be above 0 mm"):
        write_slices(data, tmp_path / "out", pixel_size=0)
    out = write_slices(data, tmp_path / "out", progress=False)
    with pytest.raises(FileExistsError, match="is there already; give another folder"):
        write_slices(data, out)
    bad = tmp_path / "bad"
    volume(bad, "a", np.zeros((4, 4, 2)), np.full((4, 4, 2), 300.0), np.eye(4))
    volume(bad, "b", np.zeros((4, 4, 2)), np.zeros((4, 4, 2)), np.eye(4))
    (bad / "imagesTr/b.nii.gz").write_bytes((bad / "imagesTr/b.nii.gz").read_bytes()[:40])
    with pytest.raises(ValueError, match="2 of 2 cases cannot be written as slices, nothing was written") as caught:
        write_slices(bad, tmp_path / "other", progress=False)
    assert f"'{bad / 'imagesTr/a.nii.gz'}': label has the values 300; the classes are 0 to 255" in str(caught.value)
    assert f"'{bad / 'imagesTr/b.nii.gz'}': image cannot be read, it is damaged or truncated" in str(caught.value)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="window is 5; give the least and the greatest intensity"):
        write_slices(data, tmp_path / "other", window=5)  # type: ignore[arg-type]
    (bad / "dataset.json").write_text(json.dumps({"training": []}))
    with pytest.raises(ValueError, match="has no labelled case"):
        write_slices(bad, tmp_path / "third", progress=False)
