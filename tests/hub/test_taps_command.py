"""`taps`: the stages that terms can read, of a bundle and of the teacher in it."""

from __future__ import annotations

import json
import shutil

import pytest

from monai_kd.hub import bundle_taps


def test_shapes_strides_and_paths_of_both_networks(repository):
    found = bundle_taps(repository / "bundles" / "student", [1, 1, 40, 56, 40])
    assert (found.network, found.teacher, found.input_shape) == ("UNet", "DynUNet", (1, 1, 40, 56, 40))
    stages = {stage.name: stage for stage in found.stages}
    assert list(stages) == ["encoder_1", "encoder_2", "bottleneck", "decoder_1"]
    assert stages["encoder_1"].shape == (1, 16, 20, 28, 20)
    assert stages["bottleneck"].stride == (4.0, 4.0, 4.0)
    assert found.teacher_stages[0].path == "input_block"
    text = found.table()
    assert "student/encoder_2   32        10 x 14 x 10  4 x 4 x 4  model.1.submodule.0" in text
    assert "student/bottleneck with teacher/decoder_3" in text


def test_open_axes_of_the_metadata_are_64_voxels(repository):
    assert bundle_taps(repository / "bundles" / "teacher").input_shape == (1, 1, 64, 64, 64)


def test_a_bundle_without_a_teacher_names_stages_without_an_owner(repository):
    text = bundle_taps(repository / "bundles" / "teacher").table()
    assert "\n  bottleneck" in text
    assert "teacher" not in text


def test_the_shape_can_be_given(repository):
    found = bundle_taps(repository / "bundles" / "student", [1, 1, 16, 24, 32])
    assert {stage.name: stage.shape[2:] for stage in found.stages}["encoder_1"] == (8, 12, 16)


def test_nothing_is_written(repository, tmp_path):
    copy = tmp_path / "student"
    shutil.copytree(repository / "bundles" / "student" / "configs", copy / "configs")
    before = sorted(copy.rglob("*"))
    bundle_taps(copy)
    assert sorted(copy.rglob("*")) == before


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([1, 1], r"input_shape is \[1, 1\]; give"),
        ([1, 1, 0, 8, 8], "input_shape is"),
        ([1, 3, 16, 16, 16], r"UNet of .* cannot take an image of \[1, 3, 16, 16, 16\]"),
    ],
)
def test_a_wrong_shape_is_named(repository, shape, message):
    with pytest.raises(ValueError, match=message):
        bundle_taps(repository / "bundles" / "student", shape)


def test_metadata_without_a_shape_says_what_to_give(repository, tmp_path):
    copy = tmp_path / "student"
    shutil.copytree(repository / "bundles" / "student" / "configs", copy / "configs")
    path = copy / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    del content["network_data_format"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"does not state the image's shape .*give --input_shape"):
        bundle_taps(copy)
