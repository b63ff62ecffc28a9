"""Pixel scores: hand-computed values, masks that count, cases without an answer, pools that add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_kd.metrics import (
    area_under_curve,
    center_line_dice,
    pool_pixels,
    score_pixels,
    summarize_pixels,
)
from monai_kd.metrics.pixels import PIXEL_METRICS

PROBABILITY = torch.tensor([[0.9, 0.6, 0.4], [0.5, 0.2, 0.1]])
LABEL = torch.tensor([[1, 1, 1], [0, 0, 0]])


def test_scores_by_hand():
    scores, _ = score_pixels(PROBABILITY, LABEL)
    assert list(scores) == list(PIXEL_METRICS)
    # 2 true positives, 1 false negative, 3 true negatives (0.5 is background)
    assert scores["dice"] == pytest.approx(4 / 5)
    assert scores["iou"] == pytest.approx(2 / 3)
    assert scores["sensitivity"] == pytest.approx(2 / 3)
    assert scores["specificity"] == 1
    assert scores["accuracy"] == pytest.approx(5 / 6)
    # of 9 pairs of a positive and a negative pixel only (0.4, 0.5) stands the wrong way round
    assert scores["auc"] == pytest.approx(8 / 9)


def test_a_tie_is_background_as_argmax_has_it():
    probability = torch.tensor([[0.25, 0.5, 0.75]])
    expected = torch.stack([1 - probability, probability]).argmax(dim=0)
    assert score_pixels(probability, expected, cldice=False)[0]["dice"] == 1


def test_the_threshold_moves_all_but_auc():
    low, high = (score_pixels(PROBABILITY, LABEL, threshold=value)[0] for value in (0.3, 0.55))
    assert (low["sensitivity"], low["specificity"]) == (1, pytest.approx(2 / 3))
    assert (high["sensitivity"], high["specificity"]) == (pytest.approx(2 / 3), 1)
    assert low["auc"] == high["auc"]


def test_what_is_outside_of_the_mask_does_not_count():
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    scores, counts = score_pixels(PROBABILITY, LABEL, mask * 255)
    assert [scores[name] for name in ("dice", "sensitivity", "specificity", "accuracy", "auc", "cldice")] == [1] * 6
    assert counts.confusion == (2, 0, 0, 2)
    assert counts.histogram.sum() == 4


def test_equal_probabilities_count_half():
    score = torch.tensor([0.2, 0.5, 0.5, 0.7])
    positive = torch.tensor([False, False, True, True])
    assert area_under_curve(score, positive) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    generator = np.random.default_rng(0)
    values, truth = generator.integers(0, 20, 500) / 20, generator.random(500) < 0.3
    differences = values[truth][:, None] - values[~truth]  # of each pair
    expected = (differences > 0).mean() + (differences == 0).mean() / 2
    assert area_under_curve(torch.from_numpy(values), torch.from_numpy(truth)) == pytest.approx(expected)


def test_scores_without_an_answer_are_none():
    empty = torch.zeros(2, 3)
    nowhere, counts = score_pixels(PROBABILITY, LABEL, empty)
    assert nowhere == dict.fromkeys(PIXEL_METRICS)
    assert counts.confusion == (0, 0, 0, 0)
    no_vessel, _ = score_pixels(PROBABILITY, empty)
    assert (no_vessel["sensitivity"], no_vessel["auc"]) == (None, None)
    assert (no_vessel["dice"], no_vessel["cldice"], no_vessel["specificity"]) == (0, 0, pytest.approx(4 / 6))
    nothing, _ = score_pixels(empty, empty)
    assert (nothing["dice"], nothing["iou"], nothing["cldice"]) == (None, None, None)
    assert (nothing["specificity"], nothing["accuracy"]) == (1, 1)
    all_vessel, _ = score_pixels(PROBABILITY, empty + 1)
    assert (all_vessel["specificity"], all_vessel["auc"]) == (None, None)
    assert all_vessel["sensitivity"] == pytest.approx(2 / 6)


def test_what_is_no_probability_or_not_one_grid_is_named():
    with pytest.raises(ValueError, match=r"probabilities are -1 to 3; they must lie in 0 to 1: take the softmax"):
        score_pixels(torch.tensor([[-1.0, 3.0]]), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="they must lie in 0 to 1"):
        score_pixels(torch.tensor([[0.5, float("nan")]]), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=r"have the shapes \[\(2, 3\), \(3, 2\), None\]; give \(H, W\) on one grid"):
        score_pixels(PROBABILITY, LABEL.T)
    with pytest.raises(ValueError, match="on one grid"):
        score_pixels(PROBABILITY, LABEL, torch.ones(1, 2, 3))


# ---- center lines ---------------------------------------------------------------------------------------------------


def line(width: int, length: int = 20, gap: slice | None = None) -> np.ndarray:
    image = np.zeros((15, 24), dtype=bool)
    image[7 - width // 2 : 8 + width // 2, 2 : 2 + length] = True
    if gap is not None:
        image[:, gap] = False
    return image


def test_width_does_not_matter_and_a_gap_does():
    # thinning takes a pixel off the end of a thick line, so 1 of 20 may be missed
    assert center_line_dice(line(3), line(1)) == center_line_dice(line(1), line(3)) > 0.97
    assert center_line_dice(line(3), line(3)) == 1
    # all of the prediction's line lies in the label, 15 of the label's 20 pixels in the prediction
    gap = center_line_dice(line(1, gap=slice(8, 13)), line(1))
    assert gap == pytest.approx(2 * 0.75 / 1.75)


def test_center_lines_of_nothing():
    nothing = np.zeros((15, 24), dtype=bool)
    assert center_line_dice(nothing, nothing) is None
    assert center_line_dice(nothing, line(1)) == center_line_dice(line(1), nothing) == 0
    assert center_line_dice(np.roll(line(1), 4, axis=0), line(1)) == 0


def test_cldice_can_be_left_out():
    scores, _ = score_pixels(PROBABILITY, LABEL, cldice=False)
    assert list(scores) == [name for name in PIXEL_METRICS if name != "cldice"]


# ---- pools ----------------------------------------------------------------------------------------------------------


def images(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of different sizes, with probabilities as those of a confident network."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(count):
        label = (torch.rand(20 + 7 * index, 30, generator=generator) < 0.2).long()
        logits = 6 * label - 5 + 3 * torch.randn(label.shape, generator=generator)
        made.append((logits.sigmoid(), label))
    return made


def test_pooled_scores_are_those_of_all_pixels_as_one_image():
    pairs = images()
    pooled = pool_pixels(score_pixels(*pair, cldice=False)[1] for pair in pairs)
    whole, _ = score_pixels(
        torch.cat([probability.flatten() for probability, _ in pairs])[None],
        torch.cat([label.flatten() for _, label in pairs])[None],
        cldice=False,
    )
    for name in ("dice", "iou", "sensitivity", "specificity", "accuracy"):
        assert pooled[name] == pytest.approx(whole[name], abs=1e-12)
    assert 0 < pooled["auc_error"] < 2e-4
    assert abs(pooled["auc"] - whole["auc"]) <= pooled["auc_error"] + 1e-12


def test_the_pooled_error_bounds_even_coarse_probabilities():
    label = torch.tensor([[1, 0, 1, 0]])
    _, counts = score_pixels(torch.tensor([[0.5, 0.5, 1.0, 0.0]]), label)
    pooled = pool_pixels([counts])
    assert pooled["auc"] == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    assert pooled["auc_error"] == pytest.approx(0.5 / 4)


def test_pools_of_nothing_have_no_scores():
    assert set(pool_pixels([]).values()) == {None}
    one_class = pool_pixels([score_pixels(PROBABILITY, LABEL * 0)[1]])
    assert one_class["auc"] is None
    assert one_class["specificity"] == pytest.approx(4 / 6)


def test_summary_leaves_out_what_has_no_score():
    scored = [score_pixels(PROBABILITY, label) for label in (LABEL, LABEL * 0)]
    summary = summarize_pixels([scores for scores, _ in scored], [counts for _, counts in scored])
    assert summary["mean"]["dice"] == pytest.approx((4 / 5 + 0) / 2)
    assert summary["sd"]["dice"] == pytest.approx(4 / 5 / 2**0.5)
    assert summary["mean"]["sensitivity"] == pytest.approx(2 / 3)
    assert (summary["n"]["sensitivity"], summary["n"]["dice"], summary["sd"]["sensitivity"]) == (1, 2, None)
    assert summary["pooled"]["specificity"] == pytest.approx(7 / 9)
    nothing = summarize_pixels([score_pixels(PROBABILITY, LABEL, LABEL * 0)[0]], [])
    assert nothing["mean"]["auc"] is None
