"""A real third-party teacher on a real CT: what comes out of the file is a spleen, not noise.

The network is the ``segmentation_3d`` model of Project-MONAI/tutorials ``full_gpu_inference_pipeline`` (commit
11445c9a, equal by SHA-256). It is a serving demo, not the model zoo's ``spleen_ct_segmentation``: 478,349 parameters,
and its batch norm counts 320 training batches. The preprocessing here is the one published beside it (window,
foreground crop, whole volume resized to 224 x 224 x 224), without its largest-component step. The zoo bundle's
preprocessing (1.5 x 1.5 x 2 mm, windows of 96, overlap 0.5) does not suit this network: Dice 0.009 here, less than with
swapped channels.

n = 1 patient, and its label is TotalSegmentator's output: a fixture that pins behavior, no measure of quality.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Resize,
    ScaleIntensityRanged,
)

from monai_kd.teachers import load_report, load_teacher

SHA256 = "46be168176155787e12dca4f35b14c94ed76243f0a4d731ab2b7f7a6d52f8a91"
MEASURED_DICE = 0.246  # float32 on CPU; swapped channels: 0.013
SPLEEN = 1  # in TotalSegmentator's label map


def dice(prediction: torch.Tensor, target: torch.Tensor) -> float:
    return float(2 * (prediction & target).sum() / (prediction.sum() + target.sum()))


def ct_and_spleen(data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The windowed CT and the spleen mask, ``(1, *spatial)``, cropped to the body, on the CT's own 3 mm grid (RAS)."""
    folder = data / "TotalSegmentator_example"
    files = {
        "image": folder / "images/example_ct.nii.gz",
        "label": folder / "labels/example_seg_fast_force_split.nii.gz",
    }
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        pytest.skip(f"MONAI_KD_DATA lacks {', '.join(missing)}: this test needs them")
    keys = list(files)
    load = Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            ScaleIntensityRanged("image", a_min=-57, a_max=164, b_min=0, b_max=1, clip=True),
            CropForegroundd(keys, source_key="image"),
        ]
    )
    case = load({key: str(path) for key, path in files.items()})
    return case["image"].as_tensor(), case["label"].as_tensor() == SPLEEN


@pytest.fixture(scope="module")
def teacher(real_data: Path) -> torch.nn.Module:
    folder = real_data / "weights/monai_spleen_unet"
    if not folder.is_dir():
        pytest.skip(f"MONAI_KD_DATA lacks {folder}: this test needs it")
    return load_teacher(folder)


def test_the_folder_without_configs_loads_as_torchscript(teacher):
    report = load_report(teacher)
    assert report.sha256 == SHA256
    assert report.config_file is None
    assert sum(parameter.numel() for parameter in teacher.parameters()) == 478_349


def test_the_teacher_finds_the_spleen_only_with_its_channels_in_order(teacher, real_data):
    image, spleen = ct_and_spleen(real_data)
    resized = torch.as_tensor(Resize((224, 224, 224))(image))
    with torch.no_grad():
        logits = teacher(resized[None])[0]  # (2, 224, 224, 224)
    back = Resize(image.shape[1:], mode="nearest")
    masks = [torch.as_tensor(back(order.argmax(0, keepdim=True).float())) > 0 for order in (logits, logits.flip(0))]
    assert dice(masks[0], spleen) == pytest.approx(MEASURED_DICE, abs=0.02)
    assert dice(masks[1], spleen) < 0.1
