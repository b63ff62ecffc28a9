"""HideLabeld: the label of a case without the flag is gone before anything reads it."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandCropByPosNegLabeld

from monai_kd.transforms import HideLabeld


def case(**flag):
    label = torch.zeros(1, 4, 4, 200)
    label[..., 7] = 1
    image = torch.arange(200.0).expand(1, 4, 4, 200).clone()
    return {"image": MetaTensor(image), "label": MetaTensor(label), **flag}


def test_labels_without_the_flag_are_filled_and_others_kept():
    hidden = HideLabeld("label")(case(labelled=0))
    assert (hidden["label"] == 255).all()
    assert torch.equal(HideLabeld("label")(case(labelled=1))["label"], case()["label"])
    assert (HideLabeld("label", value=9)(case(labelled=0))["label"] == 9).all()
    assert HideLabeld("label", flag="seen")(case(seen=0))["label"].max() == 255


def test_a_case_without_a_flag_is_labelled_and_says_so():
    found = HideLabeld("label")(case())
    assert found["labelled"] == 1
    assert found["label"].max() == 1


@pytest.mark.filterwarnings("ignore:.*unable to generate class balanced samples")
def test_a_crop_that_looks_for_foreground_finds_no_trace_of_it():
    crop = RandCropByPosNegLabeld(
        ["image", "label"], label_key="label", spatial_size=[-1, -1, 1], pos=1, neg=0, num_samples=200
    ).set_random_state(0)

    def places(flag):
        return [int(item["image"][0, 0, 0, 0]) for item in Compose([HideLabeld("label"), crop])(case(labelled=flag))]

    assert set(places(1)) == {7}
    assert len(set(places(0))) > 80
