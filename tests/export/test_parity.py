"""Parity: numbers computed by hand, and verdicts that nothing slips through."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from monai_kd.export import Limits, Parity, measure_parity


class Answers(nn.Module):
    """Answers every input with the next of its tensors."""

    def __init__(self, *answers: Tensor) -> None:
        super().__init__()
        self.answers = iter(answers)

    def forward(self, _image: Tensor) -> Tensor:
        return next(self.answers)


def logits(labels: list[int], classes: int = 3) -> Tensor:
    return nn.functional.one_hot(torch.tensor(labels), classes).T[None].float()


def test_dice_agreement_and_difference_have_the_values_computed_by_hand():
    expected, got = logits([0, 1, 1, 2]), logits([0, 1, 2, 2])
    parity = measure_parity(Answers(got * 3), [(torch.zeros(1), expected)])
    assert parity.max_logit_difference == 3.0  # 3 for 0 where the label differs
    assert parity.label_agreement == 0.75
    assert parity.dice == pytest.approx(2 / 3)  # both classes: 2 * 1 / (2 + 1)
    assert parity.windows == 1
    assert parity.foreground == 0.75


def test_voxels_of_all_windows_are_pooled_before_dice():
    one, other = logits([1, 1, 1, 0]), logits([0, 0, 0, 1])
    parity = measure_parity(Answers(one, logits([0, 0, 0, 0])), [(torch.zeros(1), one), (torch.zeros(1), other)])
    assert parity.dice == pytest.approx(2 * 3 / (4 + 3))  # not the mean of 1 and 0


def test_classes_that_neither_has_do_not_count():
    background = logits([0, 0, 0])
    parity = measure_parity(Answers(background), [(torch.zeros(1), background)])
    assert (parity.dice, parity.foreground) == (1.0, 0.0)


def test_background_alone_is_no_agreement_where_labels_decide_alone():
    background = logits([0, 0, 0])
    parity = measure_parity(Answers(42 * background), [(torch.zeros(1), background)])
    assert parity.max_logit_difference == 41.0
    assert "background alone in all 1 windows" in str(Limits(None, 0.95).objection(parity))
    assert Limits(None, 0.0).objection(parity) is None  # asks nothing of labels
    assert Limits(50.0, 0.99).objection(parity) is None  # logits decide


def test_foreground_on_one_side_alone_is_judged_by_dice():
    parity = measure_parity(Answers(logits([0, 1])), [(torch.zeros(1), logits([0, 0]))])
    assert (parity.foreground, parity.dice) == (0.5, 0.0)
    assert "Dice of 0.0000" in str(Limits(None, 0.95).objection(parity))


def test_one_channel_is_judged_at_zero():
    expected, got = torch.tensor([[[1.0, 1.0, -1.0]]]), torch.tensor([[[1.0, -1.0, -1.0]]])
    parity = measure_parity(Answers(got), [(torch.zeros(1), expected)])
    assert parity.dice == pytest.approx(2 / 3)


def test_logits_that_are_not_numbers_do_not_pass():
    broken = logits([0, 1]) * torch.nan
    parity = measure_parity(Answers(broken), [(torch.zeros(1), logits([0, 1]))])
    assert math.isnan(parity.max_logit_difference)
    for limits in (Limits(1e-3, 0.0), Limits(None, 0.0)):
        assert limits.objection(parity) is not None


@pytest.mark.parametrize(
    ("limits", "words"),
    [(Limits(0.1, 0.9), "2.00e-01 logits, more than 1e-01"), (Limits(None, 0.99), "Dice of 0.9500 .* less than 0.99")],
)
def test_each_limit_objects_on_its_own(limits, words):
    import re

    objection = limits.objection(Parity(0.2, 1.0, 0.95, 1, 0.5))
    assert objection
    assert re.search(words, objection)
    assert limits.objection(Parity(0.05, 1.0, 0.995, 1, 0.5)) is None


def test_another_shape_and_no_input_are_refused():
    with pytest.raises(ValueError, match=r"returns \(1, 3, 2\), PyTorch \(1, 3, 4\)"):
        measure_parity(Answers(logits([0, 1])), [(torch.zeros(1), logits([0, 1, 1, 2]))])
    with pytest.raises(ValueError, match="at least one input"):
        measure_parity(nn.Identity(), [])


def test_a_share_of_voxels_may_differ_by_more_where_that_is_allowed():
    expected = logits([0, 1, 1, 0])
    got = expected.clone()
    got[..., 0] += 0.2
    parity = measure_parity(Answers(got), [(torch.zeros(1), expected)], limit=0.1)
    assert parity.outliers == 0.25
    assert measure_parity(Answers(got), [(torch.zeros(1), expected)]).outliers is None
    assert Limits(0.1, 0.99, max_outliers=0.3).objection(parity) is None
    assert "more than 1e-01 logits in 25.0 % of voxels, more than 20 %" in str(
        Limits(0.1, 0.99, max_outliers=0.2).objection(parity)
    )
    assert "2.00e-01 logits" in str(Limits(0.1, 0.99).objection(parity))
    assert "Dice of" in str(Limits(0.1, 1.01, max_outliers=0.3).objection(parity))
    broken = got.clone()
    broken[..., 0] = torch.nan
    parity = measure_parity(Answers(broken), [(torch.zeros(1), expected)], limit=0.1)
    assert "nan logits" in str(Limits(0.1, 0.0, max_outliers=1.0).objection(parity))
