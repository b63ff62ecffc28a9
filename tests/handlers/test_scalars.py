"""named_scalars: the loss and the terms, nothing that is an image."""

from __future__ import annotations

import torch

from monai_kd.handlers import named_scalars

OUTPUT = {
    "image": torch.zeros(1, 8, 8),
    "label": torch.zeros(1),  # one element, and still no scalar of the training
    "pred": torch.zeros(3, 8, 8),
    "loss": torch.tensor(0.9),
    "seg": 0.5,
    "soft": torch.tensor([0.25]),
    "name": "case",
}


def test_loss_and_terms_come_out_as_floats_and_tensors_stay_behind():
    scalars = named_scalars(OUTPUT)
    assert scalars == {"loss": torch.tensor(0.9).item(), "seg": 0.5, "soft": 0.25}
    assert all(type(value) is float for value in scalars.values())


def test_a_decollated_output_gives_the_scalars_of_the_batch():
    assert named_scalars([OUTPUT, OUTPUT]) == named_scalars(OUTPUT)
