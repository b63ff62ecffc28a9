"""Volumes by protocol: values by hand, the published convention case by case, and what the strict one does instead."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.networks import one_hot
from scipy import ndimage
from scipy.spatial.distance import cdist

from monai_kd.metrics import score_case, summarize
from monai_kd.metrics.protocols import PROTOCOLS, score_volume, summarize_volumes

NAMES = ["background", "liver", "spleen"]
UNIT = (1.0, 1.0, 1.0)
each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


def volume(liver: slice | None = None, spleen: slice | None = None) -> torch.Tensor:
    label = torch.zeros(12, 10, 10)
    for value, part in ((1, liver), (2, spleen)):
        if part is not None:
            label[part, 2:6, 2:6] = value
    return one_hot(label[None, None], 3)[0]


def test_both_protocols_are_counted():
    assert PROTOCOLS == {"strict": "hd95_mm", "transunet": "hd95_voxels"}


@each_protocol
def test_truth_against_itself_is_perfect(protocol):
    label = volume(slice(0, 4), slice(7, 11))
    scores = score_volume(label, label, NAMES, (3.0, 0.7, 0.7), protocol)
    assert scores["dice"] == {"liver": 1.0, "spleen": 1.0}
    assert scores[PROTOCOLS[protocol]] == {"liver": 0.0, "spleen": 0.0}
    assert scores["missed"] == scores["false_positive"] == []


@each_protocol
def test_a_shifted_truth_scores_by_hand(protocol):
    """A box of 4 x 4 x 4 one slice on: 3 of 4 slices overlap; more than 5 % of the surface lies one voxel apart."""
    scores = score_volume(volume(slice(1, 5)), volume(slice(2, 6)), NAMES, UNIT, protocol)
    assert scores["dice"]["liver"] == pytest.approx(2 * 3 / (4 + 4))
    assert scores[PROTOCOLS[protocol]]["liver"] == pytest.approx(1.0)


def test_directions_are_taken_together_under_the_published_protocol():
    """One voxel against a row of 41: the distances are 0, and 0 to 40."""
    pred, label = torch.zeros(2, 41, 3, 3), torch.zeros(2, 41, 3, 3)
    pred[1, 0, 1, 1] = label[1, :, 1, 1] = 1
    names = NAMES[:2]
    published = score_volume(pred, label, names, UNIT, "transunet")
    assert published["hd95_voxels"]["liver"] == pytest.approx(np.percentile([0, *range(41)], 95))
    assert published["hd95_voxels"]["liver"] == pytest.approx(37.95)
    assert score_volume(pred, label, names, UNIT)["hd95_mm"]["liver"] == pytest.approx(38.0)


def test_the_published_protocol_has_no_spacing_and_the_strict_one_does():
    pred, label = volume(slice(1, 5)), volume(slice(2, 6))
    spacings = [UNIT, (5.0, 0.7, 0.7)]
    strict, published = (
        [score_volume(pred, label, NAMES, spacing, protocol)[distance]["liver"] for spacing in spacings]
        for protocol, distance in PROTOCOLS.items()
    )
    assert strict == pytest.approx([1.0, 5.0])
    assert published == pytest.approx([1.0, 1.0])


def test_a_missed_organ_costs_the_diagonal_or_nothing():
    spacing = (3.0, 2.0, 1.0)
    pred, label = volume(slice(0, 4)), volume(slice(0, 4), slice(7, 11))
    strict = score_volume(pred, label, NAMES, spacing)
    assert strict["dice"]["spleen"] == 0.0
    assert strict["hd95_mm"]["spleen"] == pytest.approx(math.hypot(36, 20, 10))
    published = score_volume(pred, label, NAMES, spacing, "transunet")
    assert (published["dice"]["spleen"], published["hd95_voxels"]["spleen"]) == (0.0, 0.0)
    assert strict["missed"] == published["missed"] == ["spleen"]


def test_a_false_alarm_costs_the_diagonal_or_is_perfect():
    pred, label = volume(slice(0, 4), slice(7, 11)), volume(slice(0, 4))
    strict, published = (score_volume(pred, label, NAMES, UNIT, protocol) for protocol in PROTOCOLS)
    assert strict["dice"]["spleen"] == 0.0
    assert strict["hd95_mm"]["spleen"] == pytest.approx(math.hypot(12, 10, 10))
    assert (published["dice"]["spleen"], published["hd95_voxels"]["spleen"]) == (1.0, 0.0)
    assert strict["false_positive"] == published["false_positive"] == ["spleen"]


def test_an_organ_in_neither_is_left_out_or_counts_zero():
    label = volume(slice(0, 4))
    strict, published = (score_volume(label, label, NAMES, UNIT, protocol) for protocol in PROTOCOLS)
    assert (strict["dice"]["spleen"], strict["hd95_mm"]["spleen"]) == (None, None)
    assert (published["dice"]["spleen"], published["hd95_voxels"]["spleen"]) == (0.0, 0.0)
    assert strict["missed"] == strict["false_positive"] == published["missed"] == published["false_positive"] == []


@pytest.mark.parametrize("shape", [(9, 14, 11), (20, 17)])
def test_published_scores_are_those_of_the_definition_on_random_masks(shape):
    generator = np.random.default_rng(0)
    for density in (0.02, 0.3, 0.7):
        pred, label = (generator.random(shape) < density for _ in range(2))
        surfaces = []
        for mask in (pred, label):
            padded = np.pad(mask, 1)
            inside = padded.copy()
            for axis in range(mask.ndim):
                for step in (-1, 1):
                    inside &= np.roll(padded, step, axis)
            surfaces.append(np.argwhere(padded & ~inside))
        apart = cdist(*surfaces)
        expected = np.percentile(np.hstack([apart.min(axis=1), apart.min(axis=0)]), 95)
        hot = [torch.from_numpy(np.stack([~mask, mask])) for mask in (pred, label)]
        scores = score_volume(*hot, NAMES[:2], [1.0] * len(shape), "transunet")
        assert scores["hd95_voxels"]["liver"] == pytest.approx(expected, abs=1e-12)
        assert scores["dice"]["liver"] == 2 * (pred & label).sum() / (pred.sum() + label.sum())


def test_the_empty_surroundings_change_no_bit():
    generator = np.random.default_rng(1)
    parts = [generator.random((6, 7, 8)) < 0.4 for _ in range(2)]
    scores = []
    for margin in (0, 5):
        hot = [torch.from_numpy(np.stack([~mask, mask])) for mask in (np.pad(part, margin) for part in parts)]
        scores.append(score_volume(*hot, NAMES[:2], UNIT, "transunet")["hd95_voxels"]["liver"])
    whole = [np.pad(part, 5) for part in parts]
    faces = ndimage.generate_binary_structure(3, 1)
    edges = [mask ^ ndimage.binary_erosion(mask, structure=faces, iterations=1) for mask in whole]
    far = [ndimage.distance_transform_edt(~edges[1 - side])[edges[side]] for side in (0, 1)]
    assert scores[0] == scores[1] == np.percentile(np.hstack(far), 95)


def test_strict_is_the_score_of_cases():
    pred, label = volume(slice(1, 5)), volume(slice(2, 6), slice(8, 11))
    assert score_volume(pred, label, NAMES, (2.0, 1.0, 1.0)) == score_case(pred, label, NAMES, (2.0, 1.0, 1.0))


@each_protocol
def test_means_are_over_organs_and_cases(protocol):
    full, half = volume(slice(0, 4), slice(7, 11)), volume(slice(0, 4))
    cases = [score_volume(pred, full, NAMES, UNIT, protocol) for pred in (full, half)]
    summary = summarize_volumes(cases, NAMES, protocol)
    assert summary["protocol"] == protocol
    assert summary["n_cases"] == 2
    expected = {"liver": 1.0, "spleen": 0.5, "mean": 0.75, "mean_of_cases": 0.75}
    assert summary["dice"] == pytest.approx(expected)
    diagonal = math.hypot(12, 10, 10) if protocol == "strict" else 0.0
    assert summary[PROTOCOLS[protocol]]["mean_of_cases"] == pytest.approx(diagonal / 4)
    assert summary["missed"] == {"liver": 0, "spleen": 1}


def test_where_an_organ_is_absent_both_orders_of_the_mean_are_given():
    both, one = volume(slice(0, 4), slice(7, 11)), volume(slice(0, 4))
    cases = [score_volume(one, both, NAMES, UNIT), score_volume(one, one, NAMES, UNIT)]
    summary = summarize_volumes(cases, NAMES)
    assert summary["dice"]["mean"] == summarize(cases, NAMES)["dice"]["mean"] == pytest.approx((1 + 0) / 2)
    assert summary["dice"]["mean_of_cases"] == pytest.approx(((1 + 0) / 2 + 1) / 2)
    published = [score_volume(one, label, NAMES, UNIT, "transunet") for label in (both, one)]
    dice = summarize_volumes(published, NAMES, "transunet")["dice"]
    assert dice == pytest.approx({"liver": 1.0, "spleen": 0.0, "mean": 0.5, "mean_of_cases": 0.5})


def test_unknown_and_mixed_protocols_are_refused():
    label = volume(slice(0, 4))
    with pytest.raises(ValueError, match="protocol is 'medpy'; known: strict, transunet"):
        score_volume(label, label, NAMES, UNIT, "medpy")
    cases = [score_volume(label, label, NAMES, UNIT)]
    with pytest.raises(ValueError, match=r"the cases have no 'hd95_voxels': score all of them with score_volume"):
        summarize_volumes(cases, NAMES, "transunet")


@each_protocol
def test_channels_must_match_the_class_names(protocol):
    label = volume(slice(0, 4))
    with pytest.raises(ValueError, match=r"each of the 2 classes \(background, liver\)"):
        score_volume(label, label, NAMES[:2], UNIT, protocol)
