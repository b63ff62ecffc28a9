"""A teacher of another task is refused before training, and the message names both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNet

from monai_kd.teachers import check_teacher, load_teacher

CLASSES = ["background", "anterior", "posterior"]
PATCH = (8, 8, 8)


def make_bundle(
    root: Path, in_channels: int = 1, out_channels: int = 3, metadata: dict[str, Any] | None = None
) -> Path:
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    arguments = {"spatial_dims": 3, "in_channels": in_channels, "out_channels": out_channels}
    arguments.update({"channels": [4, 8], "strides": [2]})
    (root / "configs" / "inference.json").write_text(json.dumps({"network_def": {"_target_": "UNet", **arguments}}))
    torch.save(UNet(**arguments).state_dict(), root / "models" / "model.pt")
    if metadata is not None:
        (root / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": metadata}))
    return root


def stated(names: list[str], in_channels: int = 1) -> dict[str, Any]:
    channel_def = {str(channel): name for channel, name in enumerate(names)}
    return {"inputs": {"image": {"num_channels": in_channels}}, "outputs": {"pred": {"channel_def": channel_def}}}


def load(root: Path, **changes: Any) -> torch.nn.Module:
    return load_teacher(root, **{"in_channels": 1, "class_names": CLASSES, "patch_size": PATCH, **changes})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("metadata", [None, {}, stated(["Background", "Anterior", "posterior"])])
def test_a_teacher_of_the_same_task_passes(tmp_path, metadata):
    assert isinstance(load(make_bundle(tmp_path / "teacher", metadata=metadata)), UNet)


def test_without_class_names_outputs_are_not_checked(tmp_path):
    root = make_bundle(tmp_path / "teacher", in_channels=4, out_channels=7)
    assert isinstance(load_teacher(root), UNet)


@pytest.mark.parametrize(
    ("bundle", "task", "message"),
    [
        ({"in_channels": 4}, {}, r"cannot take the student's patches \(1, 1, 8, 8, 8\): .*4 channels"),
        ({"metadata": stated(CLASSES, 4)}, {}, "takes images of 4 channels, the student of 1"),
        ({"out_channels": 2}, {}, r"gives 2 channels, the student has 3 classes \['background', 'anterior'"),
        (
            {"metadata": stated(["background", "posterior", "anterior"])},
            {},
            r"classes in the order \['background', 'posterior', 'anterior'\], the student \['background', 'ante",
        ),
        ({}, {"patch_size": (7, 8, 8)}, r"gives \(8, 8, 8\) voxels for a patch of \(7, 8, 8\)"),
    ],
)
def test_each_difference_of_task_is_named(tmp_path, bundle, task, message):
    root = make_bundle(tmp_path / "teacher", **bundle)
    with pytest.raises(ValueError, match=message) as caught:
        load(root, **task)
    assert str(root) in str(caught.value)


def test_other_names_are_a_warning(tmp_path):
    root = make_bundle(tmp_path / "teacher", metadata=stated(["background", "head", "tail"]))
    with pytest.warns(UserWarning, match=r"calls its classes \['background', 'head', 'tail'\]"):
        load(root)


def test_a_network_of_several_outputs_is_refused(tmp_path):
    class Pair(torch.nn.Module):
        def forward(self, image):
            return image, image

    with pytest.raises(ValueError, match="returns tuple; a teacher gives one tensor of logits"):
        check_teacher(Pair(), tmp_path, CLASSES, 1, PATCH)
