"""Labels as regions: every voxel in every region it belongs to, on its own grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_kd.transforms import LabelRegionsd, PrependBackgroundd, RegionsLabeld

LABEL = torch.tensor([[[0, 1], [2, 4]]])
REGIONS = {"whole_tumor": [1, 2, 4], "core": [1, 4], "enhancing": [4]}


@pytest.mark.parametrize("label", [LABEL, LABEL.float(), LABEL.numpy()], ids=["int", "float", "array"])
def test_a_voxel_is_in_every_region_that_holds_its_value(label):
    found = LabelRegionsd("label", REGIONS)({"label": label, "image": 1})
    expected = [[[0, 1], [1, 1]], [[0, 1], [0, 1]], [[0, 0], [0, 1]]]
    assert isinstance(found["label"], type(label))
    assert "float32" in str(found["label"].dtype)
    assert found["label"].tolist() == expected
    assert found["image"] == 1


def test_the_background_is_what_no_region_holds():
    found = PrependBackgroundd("label")(LabelRegionsd("label", REGIONS)({"label": LABEL}))["label"]
    assert found.shape == (4, 2, 2)
    assert found[0].tolist() == [[1, 0], [0, 0]]


def test_the_affine_and_the_file_name_stay():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    label = MetaTensor(torch.ones(1, 2, 2, 2), affine=affine, meta={"filename_or_obj": "a.nii"})
    found = PrependBackgroundd("label")(LabelRegionsd("label", {"all": [1]})({"label": label}))["label"]
    assert isinstance(found, MetaTensor)
    np.testing.assert_array_equal(found.affine, affine)
    assert found.meta["filename_or_obj"] == "a.nii"


@pytest.mark.parametrize("regions", [{}, {"a": []}, {"a": 1}])
def test_regions_without_values_are_refused(regions):
    with pytest.raises(ValueError, match="give at least one, each with a list of label values"):
        LabelRegionsd("label", regions)


def test_a_label_of_several_channels_is_named():
    with pytest.raises(ValueError, match=r"'label' has the shape \(2, 3, 3\)"):
        LabelRegionsd("label", REGIONS)({"label": torch.zeros(2, 3, 3)})


def test_nested_regions_go_back_to_the_label_they_came_from():
    regions = LabelRegionsd("label", REGIONS)({"label": LABEL})
    # a voxel of the core that does not enhance gets the core's own value
    assert RegionsLabeld("label", [2, 1, 4])(regions)["label"].tolist() == LABEL.tolist()
    assert RegionsLabeld("label", [2, 1, 3])(regions)["label"].tolist() == [[[0, 1], [2, 3]]]


def test_values_that_do_not_fit_the_regions_are_refused():
    with pytest.raises(ValueError, match=r"'pred' has 3 channels; values names 2: \(1, 2\)"):
        RegionsLabeld("pred", [1, 2])({"pred": torch.zeros(3, 4, 4)})
    with pytest.raises(ValueError, match="values is empty"):
        RegionsLabeld("pred", [])
