"""What the networks see of a modality: mean 0 and SD 1 over the brain, 0 around it, whatever the scanner's scale.

MONAI's own transform does this; the test is that of the dossier, since the reference of multi-modality distillation fed
raw intensities.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd

from monai_kd.data import brats_cases, make_brats_phantoms

LOAD = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])
NORMALIZE = NormalizeIntensityd("image", nonzero=True, channel_wise=True)


def assert_standardized(image: torch.Tensor) -> None:
    """Each channel by itself; the brain of a modality is where it is not 0."""
    seen = NORMALIZE({"image": image})["image"]
    assert len(image) == 4
    for before, after in zip(image, seen, strict=True):
        brain = before != 0
        assert 0 < brain.float().mean() < 1
        assert after[~brain].abs().max() == 0
        assert after[brain].double().mean().item() == pytest.approx(0, abs=1.0e-3)
        assert after[brain].double().std(correction=0).item() == pytest.approx(1, rel=1.0e-3)


def test_each_modality_of_a_phantom_is_standardized_over_its_brain(tmp_path: Path):
    folder = make_brats_phantoms(tmp_path / "data", 2, (24, 24, 24), progress=False)
    for case in brats_cases(folder):
        assert_standardized(LOAD(case)["image"].as_tensor())


def test_each_modality_of_real_cases_is_standardized_over_its_brain(real_data: Path):
    cases = brats_cases(real_data / "BraTS_1p5mm")
    assert len(cases) == 19
    for case in cases[::6]:
        assert_standardized(LOAD(case)["image"].as_tensor())


def test_the_scale_of_one_modality_changes_nothing():
    image = torch.from_numpy(np.random.default_rng(0).uniform(1, 100, (2, 8, 8, 8)).astype(np.float32))
    image[:, :2] = 0
    scaled = image * torch.tensor([1000.0, 0.01]).reshape(2, 1, 1, 1)
    first, second = (NORMALIZE({"image": volume})["image"] for volume in (image, scaled))
    torch.testing.assert_close(first, second, rtol=1.0e-4, atol=1.0e-5)
