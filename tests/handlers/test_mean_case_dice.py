"""MeanCaseDice: the selecting metric is the reported one, false positives included."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.networks import one_hot

from monai_kd.handlers import MeanCaseDice
from monai_kd.metrics import score_case, summarize

NAMES = ["background", "head", "tail"]


def hot(*values: int) -> torch.Tensor:
    return one_hot(torch.tensor(values).float().reshape(1, 1, 1, 1, -1), 3)[0]


def metric(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    found = MeanCaseDice(NAMES, output_transform=lambda output: output)
    for pred, label in pairs:
        found.update(([pred], [label]))
    return found.compute()


def test_equals_the_summary_of_the_tables():
    torch.manual_seed(0)
    pairs = [(hot(*torch.randint(0, 3, (8,))), hot(*torch.randint(0, 3, (8,)))) for _ in range(5)]
    cases = [score_case(pred, label, NAMES, (1, 1, 1)) for pred, label in pairs]
    assert metric(pairs) == pytest.approx(summarize(cases, NAMES)["dice"]["mean"], rel=1e-6)


def test_false_positive_of_an_absent_class_costs():
    perfect, wrong = (hot(0, 1, 1), hot(0, 1, 1)), (hot(2, 1, 1), hot(0, 1, 1))
    assert metric([perfect, perfect]) == 1.0
    # head 1 and 1; tail: absent in both, then invented: 0
    assert metric([perfect, wrong]) == pytest.approx((1.0 + 0.0) / 2)


def test_a_label_of_another_shape_is_named():
    label = MetaTensor(hot(0, 1), meta={"filename_or_obj": "/data/labelsTr/a.nii.gz"})
    with pytest.raises(ValueError, match=r"a.nii.gz' has shape \(1, 1, 2\), its image has \(1, 1, 3\)"):
        metric([(hot(0, 1, 1), label)])


def test_nothing_anywhere_is_zero():
    assert metric([(hot(0, 0), hot(0, 0))]) == 0.0
