"""OnLabelled: only images with a label count, and a batch without any costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.losses import DiceCELoss
from two_processes import in_two_processes

from monai_kd.distillers import Term
from monai_kd.losses import OnLabelled

LOSS = DiceCELoss(softmax=True, to_onehot_y=True)


def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 8, 8, generator=generator).requires_grad_()
    return logits, torch.randint(3, (4, 1, 8, 8), generator=generator)


def test_the_loss_is_that_of_the_labelled_images():
    logits, label = batch()
    flags = torch.tensor([1, 0, 1, 0])
    loss = OnLabelled(LOSS)(logits, label, labelled=flags)
    torch.testing.assert_close(loss, LOSS(logits[[0, 2]], label[[0, 2]]))
    loss.backward()
    assert [bool(g.any()) for g in logits.grad] == [True, False, True, False]


def test_without_any_label_the_loss_is_zero_with_a_gradient():
    logits, label = batch()
    loss = OnLabelled(LOSS)(logits, label, labelled=torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_term_hands_the_flags_over():
    logits, label = batch()
    term = Term(OnLabelled(LOSS), "student/logits", "label", inputs={"labelled": "labelled"})
    views = {"student/logits": logits, "label": label, "labelled": torch.tensor([0, 1, 1, 1])}
    torch.testing.assert_close(term(views), LOSS(logits[1:], label[1:]))


def test_another_number_of_flags_is_refused():
    logits, label = batch()
    with pytest.raises(ValueError, match="labelled has 3 flags for 4 images; give one each"):
        OnLabelled(LOSS)(logits, label, labelled=torch.ones(3))


def one_share(rank: int) -> torch.Tensor:
    logits, label = batch()
    share = slice(2 * rank, 2 * rank + 2)
    flags = torch.tensor([1, 1, 0, 1])[share]
    return OnLabelled(torch.nn.CrossEntropyLoss())(logits[share], label[share, 0], labelled=flags).detach()


def test_two_processes_have_the_mean_of_all_labelled_images(tmp_path: Path):
    found = in_two_processes(one_share, tmp_path)
    logits, label = batch()
    keep = [0, 1, 3]
    torch.testing.assert_close(sum(found) / 2, torch.nn.CrossEntropyLoss()(logits[keep], label[keep, 0]).detach())
