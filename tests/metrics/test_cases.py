"""Per-case scores: values by hand, millimeters, and misses that are counted."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks import one_hot

from monai_kd.metrics import score_case, summarize

NAMES = ["background", "head", "tail"]


def hot(label: torch.Tensor) -> torch.Tensor:
    return one_hot(label[None, None].float(), 3)[0]


def boxes(head: slice, tail: slice | None = None) -> torch.Tensor:
    label = torch.zeros(10, 10, 10)
    label[head, 2:6, 2:6] = 1
    if tail is not None:
        label[tail, 2:6, 2:6] = 2
    return label


def test_dice_by_hand():
    scores = score_case(hot(boxes(slice(0, 3))), hot(boxes(slice(1, 4))), NAMES, (1, 1, 1))
    assert scores["dice"]["head"] == pytest.approx(2 * 2 / (3 + 3))
    assert scores["dice"]["tail"] is None
    assert scores["hd95_mm"]["tail"] is None


def test_hd95_is_in_millimeters_along_the_right_axis():
    # shifted by one voxel along the first axis, whose voxels are 3 mm
    a, b = hot(boxes(slice(0, 3))), hot(boxes(slice(1, 4)))
    assert score_case(a, b, NAMES, (3.0, 1.0, 1.0))["hd95_mm"]["head"] == pytest.approx(3.0)
    assert score_case(a, b, NAMES, (1.0, 3.0, 3.0))["hd95_mm"]["head"] == pytest.approx(1.0)


def test_perfect_prediction_scores_one_and_zero():
    label = hot(boxes(slice(0, 3), slice(5, 8)))
    scores = score_case(label, label, NAMES, (1, 1, 1))
    assert scores["dice"] == {"head": 1.0, "tail": 1.0}
    assert scores["hd95_mm"] == {"head": 0.0, "tail": 0.0}
    assert scores["missed"] == scores["false_positive"] == []


def test_missed_class_counts_zero_and_the_image_diagonal():
    scores = score_case(hot(boxes(slice(0, 3))), hot(boxes(slice(0, 3), slice(5, 8))), NAMES, (1.0, 2.0, 2.0))
    assert scores["dice"]["tail"] == 0.0
    assert scores["hd95_mm"]["tail"] == pytest.approx(math.sqrt(10**2 + 20**2 + 20**2))
    assert scores["missed"] == ["tail"]


def test_false_positive_is_named_and_scored_zero():
    scores = score_case(hot(boxes(slice(0, 3), slice(5, 8))), hot(boxes(slice(0, 3))), NAMES, (1, 1, 1))
    assert scores["dice"]["tail"] == 0.0
    assert scores["false_positive"] == ["tail"]
    assert scores["missed"] == []


def test_summary_does_not_hide_misses():
    full, half = hot(boxes(slice(0, 3), slice(5, 8))), hot(boxes(slice(0, 3)))
    cases = [score_case(full, full, NAMES, (1, 1, 1)), score_case(half, full, NAMES, (1, 1, 1))]
    summary = summarize(cases, NAMES)
    assert summary["dice"]["tail"] == 0.5
    assert summary["dice"]["mean"] == pytest.approx(0.75)
    assert summary["missed"] == {"head": 0, "tail": 1}
    assert summary["hd95_mm"]["tail"] == pytest.approx(math.sqrt(300) / 2)
    assert summary["n_cases"] == 2


def test_class_without_a_scored_case_has_no_mean():
    only_head = hot(boxes(slice(0, 3)))
    summary = summarize([score_case(only_head, only_head, NAMES, (1, 1, 1))], NAMES)
    assert summary["dice"] == {"head": 1.0, "tail": None, "mean": 1.0}


def test_channels_must_match_the_class_names():
    label = hot(boxes(slice(0, 3)))
    with pytest.raises(ValueError, match=r"each of the 2 classes \(background, head\)"):
        score_case(label, label, NAMES[:2], (1, 1, 1))
    with pytest.raises(ValueError, match="must be one-hot"):
        score_case(label[:, 1:], label, NAMES, (1, 1, 1))
