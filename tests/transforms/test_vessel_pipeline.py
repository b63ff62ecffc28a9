"""Photographs from file to file: cases listed, prepared, predicted, brought back, scored and saved over the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    RandFlipd,
    RandGaussianNoise,
    RandSpatialCropd,
    SaveImaged,
)
from PIL import Image

from monai_kd.data import as_color, as_grey, image_mask_cases, make_vessel_phantoms
from monai_kd.data.raster import read_raster
from monai_kd.metrics import score_pixels
from monai_kd.transforms import FieldOfViewd, PhotometricViewsd, ResizeFieldOfViewd, RetinaGreend

FOLDERS = ["CHASE_DB1", "STARE", "DRIVE/training"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_vessel_phantoms(tmp_path_factory.mktemp("vessels") / "a", 3, 2, size=128, progress=False)


def prepared(keys: list[str], diameter: int) -> Compose:
    """Loaded and, for the image alone or with its label, of one field of view."""
    return Compose(
        [
            LoadImaged("image", reader="PILReader", converter=as_color),
            LoadImaged(["label", "fov"], reader="PILReader", converter=as_grey, allow_missing_keys=True),
            EnsureChannelFirstd(["image", "label", "fov"], allow_missing_keys=True),
            AsDiscreted("label", threshold=128, allow_missing_keys=True),
            FieldOfViewd("image"),
            RetinaGreend("image"),
            ResizeFieldOfViewd(keys, diameter),
        ]
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_prediction_at_the_working_size_lies_on_the_photograph(made, folder, tmp_path):
    pipeline = prepared(["image"], 100)
    case = image_mask_cases(made / folder)[0]
    loader = DataLoader(Dataset([case], pipeline), batch_size=1)
    batch = next(iter(loader))
    assert batch["image"].shape[1] == 1
    batch["pred"] = (batch["image"] < -0.9).float()  # vessels are dark
    (item,) = decollate_batch(batch)
    item = Invertd("pred", pipeline, orig_keys="image", nearest_interp=False)(item)
    assert item["pred"].shape == item["label"].shape == item["fov"].shape
    scores, _ = score_pixels(item["pred"][0].as_tensor(), item["label"][0], item["fov"][0])
    assert scores["dice"] > 0.45
    flipped, _ = score_pixels(item["pred"][0].as_tensor().flip(0), item["label"][0], item["fov"][0])
    assert flipped["dice"] < 0.7 * scores["dice"]
    item = AsDiscreted("pred", threshold=0.5)(item)
    save = SaveImaged(
        "pred", output_dir=tmp_path, output_ext=".png", output_postfix="seg", resample=False, scale=255,
        separate_folder=False, output_dtype=np.uint8, print_log=False,
    )  # fmt: skip
    save(item)
    saved = Image.open(next(tmp_path.glob("*_seg.png")))
    assert saved.size == Image.open(case["image"]).size
    drawn = np.asarray(saved).T > 0
    np.testing.assert_array_equal(drawn, item["pred"][0] > 0)
    label = read_raster(case["label"], is_label=True)[0] > 0
    assert 2 * (drawn & label).sum() / (drawn.sum() + label.sum()) > 0.45


def test_training_patches_of_all_domains_are_one_batch_with_views(made):
    pipeline = Compose(
        [
            prepared(["image", "label", "fov"], 100),
            AsDiscreted(["label", "fov"], threshold=0.5),
            RandSpatialCropd(["image", "label", "fov"], roi_size=(64, 64), random_size=False),
            RandFlipd(["image", "label", "fov"], prob=0.5, spatial_axis=0),
            PhotometricViewsd("image", "views", [RandGaussianNoise(prob=1.0, std=0.1)] * 2),
        ]
    ).set_random_state(0)
    cases = [image_mask_cases(made / folder)[0] for folder in FOLDERS]
    cases = [{role: case[role] for role in ("image", "label", "fov") if role in case} for case in cases]
    batch = next(iter(DataLoader(Dataset(cases, pipeline), batch_size=3)))
    assert batch["image"].shape == batch["label"].shape == batch["fov"].shape == (3, 1, 64, 64)
    assert batch["views"].shape == (3, 2, 1, 64, 64)
    assert batch["label"].unique().tolist() == batch["fov"].unique().tolist()[-2:] == [0, 1]
    assert (batch["views"][:, 0] - batch["image"].as_tensor()).std() == pytest.approx(0.06, abs=0.05)
    widths = torch.stack([image[image != 0].std() for image in batch["image"]])
    assert (widths > 0.5).all()
