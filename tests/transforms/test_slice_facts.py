"""SliceFactsd: every cropped slice knows its patient and its place."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandCropByPosNegLabeld,
    RandSpatialCropd,
    Spacingd,
    SqueezeDimd,
)

from monai_kd.transforms import SliceFactsd


@pytest.fixture
def cases(tmp_path):
    """Two patients whose voxels hold the number of their slice."""
    found = []
    for name, slices in (("a_001", 7), ("b_002", 5)):
        values = np.broadcast_to(np.arange(slices, dtype=np.float32), (6, 8, slices))
        for key in ("image", "label"):
            (tmp_path / key).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values.copy(), np.eye(4)), tmp_path / key / f"{name}.nii.gz")
        found.append({key: str(tmp_path / key / f"{name}.nii.gz") for key in ("image", "label")})
    return found


def pipeline(*crop, axis=-1):
    load = [LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])]
    return Compose([*load, *crop, SliceFactsd("image", axis=axis), SqueezeDimd(["image", "label"], dim=axis)])


def slices(**settings):
    return RandCropByPosNegLabeld(
        ["image", "label"], label_key="label", spatial_size=[-1, -1, 1], num_samples=4, **settings
    )


def test_position_is_the_slice_that_was_cropped_and_group_the_file(cases):
    loader = DataLoader(Dataset(cases, pipeline(slices())), batch_size=2)
    (batch,) = loader
    assert batch["image"].shape == (8, 1, 6, 8)
    assert torch.equal(batch["position"], batch["image"][:, 0, 0, 0].as_tensor().long())
    groups = batch["group"].tolist()
    assert groups[:4] == [groups[0]] * 4
    assert groups[4:] == [groups[4]] * 4
    assert groups[0] != groups[4]
    assert groups[0] == pipeline(slices())(cases[0])[0]["group"] >= 0


def test_the_group_is_the_name_of_the_file_wherever_it_lies(cases, tmp_path):
    moved = tmp_path / "elsewhere" / "a_001.nii"
    moved.parent.mkdir()
    nibabel.save(nibabel.load(cases[0]["image"]), moved)
    item = {"image": str(moved), "label": str(moved)}
    assert pipeline(slices())(item)[0]["group"] == pipeline(slices())(cases[0])[0]["group"]


def test_cases_that_name_a_group_are_one_patient(cases):
    first, second = ({**case, "group": "patient 7"} for case in cases)
    numbers = {pipeline(slices())(case)[0]["group"] for case in (first, second)}
    assert len(numbers) == 1
    assert numbers != {pipeline(slices())(cases[0])[0]["group"]}


def test_positions_are_those_of_the_volume_that_was_cropped(cases):
    spacing = Spacingd(["image", "label"], pixdim=(1.0, 1.0, 2.0), mode=["nearest", "nearest"])
    for item in pipeline(spacing, slices())(cases[0]):
        assert 0 <= item["position"] < 4
        assert item["image"][0, 0, 0] == 2 * item["position"]


def test_slices_may_lie_along_any_axis(cases):
    crop = RandSpatialCropd(["image", "label"], roi_size=[1, -1, -1], random_size=False)
    values = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None], (6, 8, 5))
    nibabel.save(nibabel.Nifti1Image(values.copy(), np.eye(4)), cases[1]["image"])
    draw = pipeline(crop, axis=-3).set_random_state(0)
    found = [draw(cases[1]) for _ in range(12)]
    assert all(item["image"].shape == (1, 8, 5) for item in found)
    assert all(item["position"] == item["image"][0, 0, 0] for item in found)
    assert len({item["position"] for item in found}) > 2


def test_a_later_crop_in_the_slice_moves_nothing(cases):
    inner = RandSpatialCropd(["image", "label"], roi_size=[4, 4, 1], random_size=False)
    found = pipeline(slices(pos=1.0, neg=0.0), inner).set_random_state(0)(cases[0])
    assert all(item["position"] == item["image"][0, 0, 0] for item in found)
    assert len({item["position"] for item in found}) > 1


def test_names_with_dots_are_patients_of_their_own(cases, tmp_path):
    numbers = set()
    for name in ("1.3.6.1.nii.gz", "1.3.6.2.nii.gz", "1.3.7.nii"):
        nibabel.save(nibabel.load(cases[0]["image"]), tmp_path / name)
        item = {"image": str(tmp_path / name), "label": str(tmp_path / name)}
        numbers.add(pipeline(slices())(item)[0]["group"])
    assert len(numbers) == 3


def test_what_is_no_slice_or_knows_nothing_is_refused(cases):
    with pytest.raises(ValueError, match="give the image's key alone"):
        SliceFactsd(["image", "label"])
    with pytest.raises(ValueError, match="takes one slice along axis -1; crop it to one before"):
        SliceFactsd("image")({"image": MetaTensor(torch.rand(1, 4, 4, 3))})
    with pytest.raises(ValueError, match="the image does not know its file: load it by LoadImaged"):
        SliceFactsd("image")({"image": MetaTensor(torch.rand(1, 4, 4, 1))})
    known = MetaTensor(torch.rand(1, 4, 4, 1), meta={"filename_or_obj": "a.nii"})
    with pytest.raises(ValueError, match="'image' has no crop on record: place SliceFactsd behind the crop"):
        SliceFactsd("image")({"image": known})
