"""named_scalars: the loss and the terms, raw and weighted, nothing that is an image."""

from __future__ import annotations

import torch

from monai_kd.handlers import named_scalars
from monai_kd.handlers.scalars import raw_scalars

OUTPUT = {
    "image": torch.zeros(1, 8, 8),
    "label": torch.zeros(1),  # one element, and still no scalar of the training
    "pred": torch.zeros(3, 8, 8),
    "loss": torch.tensor(0.9),
    "seg": 0.5,
    "soft": torch.tensor([0.25]),
    "weighted/seg": 0.5,
    "weighted/soft": torch.tensor(0.125),
    "name": "case",
}


def test_loss_and_terms_come_out_as_floats_and_tensors_stay_behind():
    scalars = named_scalars(OUTPUT)
    weighted = {"weighted/seg": 0.5, "weighted/soft": 0.125}
    assert scalars == {"loss": torch.tensor(0.9).item(), "seg": 0.5, "soft": 0.25, **weighted}
    assert all(type(value) is float for value in scalars.values())


def test_a_decollated_output_gives_the_scalars_of_the_batch():
    assert named_scalars([OUTPUT, OUTPUT]) == named_scalars(OUTPUT)


def test_raw_scalars_leave_the_weighted_terms_out():
    assert raw_scalars([OUTPUT]) == {"loss": torch.tensor(0.9).item(), "seg": 0.5, "soft": 0.25}
