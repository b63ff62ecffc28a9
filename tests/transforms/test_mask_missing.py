"""Missing modalities: their channels are 0, and every case says which it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate

from monai_kd.transforms import MaskMissingd

IMAGE = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])


@pytest.mark.parametrize("image", [IMAGE, IMAGE.int(), IMAGE.numpy()], ids=["float", "int", "array"])
def test_a_missing_channel_is_zero_and_the_others_stay(image):
    found = MaskMissingd("image")({"image": image, "available": [0, 1], "label": 1})
    assert type(found["image"]) is type(image)
    assert found["image"].dtype == image.dtype
    assert found["image"].tolist() == [[[0, 0]], [[3, 4]]]
    assert found["available"].dtype == torch.float32
    assert found["available"].tolist() == [0, 1]
    assert found["label"] == 1


def test_without_a_word_every_channel_is_there():
    found = MaskMissingd("image")({"image": IMAGE})
    assert found["image"].tolist() == IMAGE.tolist()
    assert found["available"].tolist() == [1, 1]


def test_what_stands_in_a_missing_place_does_not_matter():
    image = IMAGE.clone()
    image[0] = float("nan")
    assert MaskMissingd("image")({"image": image, "available": [0, 1]})["image"].tolist() == [[[0, 0]], [[3, 4]]]


def test_the_affine_stays_and_the_given_case_too():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    case = {"image": MetaTensor(torch.ones(2, 2, 2, 2), affine=affine), "available": (1, 0)}
    found = MaskMissingd("image")(case)["image"]
    np.testing.assert_array_equal(found.affine, affine)
    assert found.sum(dim=(1, 2, 3)).tolist() == [8, 0]
    assert case["image"].sum() == 16


def test_masked_twice_is_masked_once_and_cases_make_a_batch():
    mask = MaskMissingd("image", available_key="has")
    cases = [mask(mask({"image": IMAGE, "has": has})) for has in ([1, 0], np.array([0, 1]))]
    assert list_data_collate(cases)["has"].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("available", "message"),
    [
        ([1, 0, 1], r"'available' has the shape \(3,\), 'image' 2 channels: give one entry per channel"),
        (1, r"'available' has the shape \(\), 'image' 2 channels"),
        ([1, 0.5], r"'available' is \[1.0, 0.5\]; 1 is there, 0 is missing"),
    ],
)
def test_what_does_not_fit_the_channels_is_named(available, message):
    with pytest.raises(ValueError, match=message):
        MaskMissingd("image")({"image": IMAGE, "available": available})
    with pytest.raises(KeyError):
        MaskMissingd("image")({"available": available})
    assert MaskMissingd("image", allow_missing_keys=True)({"available": available}) == {"available": available}
