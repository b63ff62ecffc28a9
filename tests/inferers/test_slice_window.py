"""Windows of a network on slices."""

from __future__ import annotations

import pytest

from monai_kd.inferers import slice_window


@pytest.mark.parametrize(
    ("axis", "window"),
    [(2, [40, 56, -1]), (0, [-1, 56, 24]), (-1, [40, 56, -1]), ("none", [40, 56, 24])],
)
def test_the_window_takes_all_slices_and_the_patch_in_plane(axis, window):
    assert slice_window([40, 56, 24], axis) == window


@pytest.mark.parametrize("axis", [None, 3, -4, True, "2", 1.0])
def test_other_axes_are_refused(axis):
    with pytest.raises(ValueError, match=r"slice_axis is .*; give the axis of the slices, 0 to 2, or 'none'"):
        slice_window([40, 56, 24], axis)
