"""A bank of patches: drawn once, with the outputs of a teacher on those very patches."""

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, RandGaussianNoised, RandSpatialCropSamplesd
from monai.utils import set_determinism

from monai_kd.data import DrawnBank

CASES = [{"image": torch.full((1, 8, 8), float(value))} for value in range(3)]


@pytest.fixture(autouse=True)
def seeded():
    set_determinism(0)
    yield
    set_determinism(None)


def draw(**settings) -> DrawnBank:
    transform = Compose(
        [
            RandGaussianNoised("image", prob=1.0, std=0.1),
            RandSpatialCropSamplesd("image", roi_size=4, num_samples=2, random_size=False),
        ]
    )
    return DrawnBank(CASES, transform, **{"draws": 2, "progress": False, **settings})


def mean_of(batch) -> dict[str, torch.Tensor]:
    return {"mean": batch["image"].mean(dim=(1, 2, 3))}


def test_every_case_is_drawn_so_often_and_anew_each_time():
    bank = draw()
    assert len(bank) == 3 * 2 * 2
    images = torch.stack([patch["image"] for patch in bank.patches])
    assert images.shape == (12, 1, 4, 4)
    assert images.mean(dim=(1, 2, 3)).round().tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert len(torch.unique(images.flatten(1), dim=0)) == 12
    assert torch.equal(bank[3]["image"], bank[3]["image"])  # not drawn again


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_outputs_belong_to_their_patches_whatever_the_batch(batch_size):
    for patch in draw(compute=mean_of, batch_size=batch_size).patches:
        torch.testing.assert_close(patch["mean"], patch["image"].mean())


def test_nothing_is_drawn_before_it_is_needed_and_then_once():
    asked = []

    def compute(batch):
        asked.append(len(batch["image"]))
        return mean_of(batch)

    bank = draw(compute=compute, batch_size=2)
    assert asked == []
    assert len(bank) == 12
    list(DataLoader(bank, batch_size=5))
    assert asked == [4, 2, 4, 2]


def test_a_batch_of_the_bank_has_the_outputs_beside_the_images():
    batch = next(iter(DataLoader(draw(compute=mean_of), batch_size=5)))
    assert batch["image"].shape == (5, 1, 4, 4)
    torch.testing.assert_close(batch["mean"], batch["image"].mean(dim=(1, 2, 3)).as_tensor())


def test_nbytes_counts_every_tensor_and_rows_do_not_keep_the_batch_alive():
    bank = draw(compute=mean_of)
    assert bank.nbytes == 12 * (16 + 1) * 4
    assert all(patch["mean"].untyped_storage().nbytes() == 4 for patch in bank.patches)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"draws": 0}, "draws is 0"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_sizes_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        draw(**settings)


@pytest.mark.parametrize(
    ("compute", "match"),
    [
        (lambda batch: {"mean": batch["image"].as_tensor().mean()[None]}, "'mean' has 1 rows for 4 patches"),
        (lambda batch: {"image": batch["image"]}, "has 'image' already"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(compute, match):
    with pytest.raises(ValueError, match=match):
        len(draw(compute=compute))


def test_by_case_an_index_gives_one_of_its_draws_chosen_at_random():
    bank = draw(compute=mean_of, draws=3, by_case=True)
    assert len(bank) == 3
    assert len(bank.patches) == 3 * 3 * 2
    seen = {index: {tuple(patch["mean"].item() for patch in bank[index]) for _ in range(40)} for index in range(3)}
    for index, draws in seen.items():
        assert len(draws) == 3  # draws stay together, and each has its turn
        assert all(len(means) == 2 and round(mean) == index for means in draws for mean in means)
    batch = next(iter(DataLoader(bank, batch_size=2)))
    assert batch["image"].shape == (4, 1, 4, 4)
    with pytest.raises(IndexError):
        bank[3]


def test_patches_do_not_keep_the_volumes_that_they_were_cropped_from():
    crop = RandSpatialCropSamplesd("image", roi_size=4, num_samples=2, random_size=False)
    patches = DrawnBank(CASES, crop, draws=2, progress=False).patches
    assert all(patch["image"].untyped_storage().nbytes() == 16 * 4 for patch in patches)


def test_workers_do_not_each_draw_a_bank():
    with pytest.raises(RuntimeError, match="each worker would draw a bank of its own; set num_workers 0"):
        next(iter(DataLoader(draw(by_case=True), num_workers=1)))
    bank = draw(by_case=True)
    assert len(bank.patches) == 12
    assert len(next(iter(DataLoader(bank, num_workers=1)))["image"]) == 2
