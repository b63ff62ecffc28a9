"""A volume with too few slices for a patch is refused by name."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_kd.transforms import RequireSlicesd


def volume(*size: int) -> MetaTensor:
    return MetaTensor(torch.zeros(1, *size), meta={"filename_or_obj": "thin.nii.gz"})


def test_only_the_axis_of_the_slices_counts():
    check = RequireSlicesd("image", patch_size=[40, 56, 24], window=[40, 56, -1])
    found = check({"image": volume(8, 8, 24), "label": 1})
    assert found["image"].shape == (1, 8, 8, 24)
    assert found["label"] == 1
    with pytest.raises(ValueError, match=r"'thin.nii.gz' has 23 slices along axis 2 .*--patch_size \"\[40, 56, 23\]\""):
        check({"image": volume(80, 80, 23)})


def test_another_axis_and_none():
    with pytest.raises(ValueError, match="has 5 slices along axis 0"):
        RequireSlicesd("image", [6, 8, 8], [-1, 8, 8])({"image": volume(5, 9, 9)})
    RequireSlicesd("image", [6, 8, 8], [6, 8, 8])({"image": volume(5, 9, 9)})  # a 3-D window: nothing to see across


def test_settings_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"patch_size is \[6, 8\] and window \[6, 8, -1\]"):
        RequireSlicesd("image", [6, 8], [6, 8, -1])
