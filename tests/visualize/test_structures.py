"""Names of label values: from a bundle, a list, a mapping, regions, or none; what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from monai_kd.visualize.structures import bundle_classes, named_structures

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "student"


def named(found: list[int], **source) -> dict[str, tuple[int, ...]]:
    return {structure.name: structure.values for structure in named_structures(found, **source)}


def bundle(folder: Path, channel_def: object) -> Path:
    content = {"network_data_format": {"outputs": {"pred": {"channel_def": channel_def}}}}
    (folder / "configs").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps(content))
    return folder


def test_names_come_from_each_source() -> None:
    assert named([0, 1, 4]) == {"class 1": (1,), "class 4": (4,)}
    assert named([1], class_names=["core", "edema"]) == {"core": (1,), "edema": (2,)}
    assert named([1], class_names="organ") == {"organ": (1,)}
    assert named([1, 4], class_names={0: "background", "1": "core", 4: "rim"}) == {"core": (1,), "rim": (4,)}
    assert named([1, 2], bundle_root=BUNDLE) == {"anterior": (1,), "posterior": (2,)}
    assert named([1, 4], regions={"whole": [1, 2, 4], "core": [1, 4]}) == {"whole": (1, 2, 4), "core": (1, 4)}


def test_regions_overlap_and_classes_do_not() -> None:
    label = np.array([0, 1, 2, 4])
    whole, core = named_structures([1, 2, 4], regions={"whole": [1, 2, 4], "core": [4]})
    assert whole.mask(label).tolist() == [False, True, True, True]
    assert core.mask(label).tolist() == [False, False, False, True]
    assert whole.color != core.color


def test_many_structures_have_a_color_each() -> None:
    colors = [structure.color for structure in named_structures(range(1, 60))]
    assert len(set(colors)) == 59
    assert all(len(color) == 7 and int(color[1:], 16) for color in colors)


@pytest.mark.parametrize(
    ("found", "source", "message"),
    [
        ([4], {"class_names": ["core"]}, r"hold the value 4, which has no name; known: core \(1\)"),
        ([3], {"bundle_root": BUNDLE}, r"value 3, which has no name; known: anterior \(1\), posterior \(2\)"),
        ([5], {"regions": {"core": [1, 4]}}, r"value 5, which has no name; known: core \(1, 4\)"),
        ([-1], {"class_names": ["core"]}, "hold the value -1"),
        ([1], {"class_names": ["a", "a"]}, "'a' names several classes"),
        ([1], {"class_names": {"one": "a"}}, "it must be a list, or a mapping of label values to names"),
        ([1], {"class_names": ["a"], "regions": {"b": [1]}}, "class_names and regions both name the classes"),
        ([1], {"regions": {"core": []}}, r"region 'core' is \[\]; it must be a list of label values above 0"),
        ([1], {"regions": {"core": [0, 1]}}, r"region 'core' is \[0, 1\]"),
        ([1], {"regions": ["core"]}, "regions is"),
    ],
)
def test_what_does_not_fit_is_named(found, source, message) -> None:
    with pytest.raises(ValueError, match=message):
        named_structures(found, **source)


def test_bundle_without_metadata_or_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it has no configs/metadata.json"):
        bundle_classes(tmp_path)
    with pytest.raises(ValueError, match="names no classes"):
        bundle_classes(bundle(tmp_path, None))


def test_bundle_of_regions_asks_for_their_label_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"channel 0 .* is no background.*'whole tumor'.*--regions"):
        bundle_classes(bundle(tmp_path, {"0": "whole tumor", "1": "core"}))
