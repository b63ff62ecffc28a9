"""Views: one copy a transform, the anchor untouched, the same seed the same views."""

from __future__ import annotations

import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandRotate90,
    RandSimulateLowResolution,
    ScaleIntensity,
    SpatialPad,
)

from monai_kd.transforms import PhotometricViewsd


def random_views(spatial_dims: int = 2) -> PhotometricViewsd:
    upsample = {2: "bilinear", 3: "trilinear"}[spatial_dims]
    transforms = [
        RandAdjustContrast(prob=1.0, gamma=(0.5, 2.0)),
        RandGaussianNoise(prob=1.0, std=0.3),
        Compose([RandSimulateLowResolution(prob=1.0, upsample_mode=upsample), RandGaussianSmooth(prob=1.0)]),
        RandBiasField(prob=1.0, coeff_range=(0.2, 0.4)),
    ]
    return PhotometricViewsd("image", "views", transforms)


def test_each_transform_makes_one_copy_and_the_image_stays():
    image = MetaTensor(torch.tensor([[[1.0, 2.0], [3.0, 5.0]]]))
    make = PhotometricViewsd("image", "views", [lambda x: x * 2, lambda x: x.add_(1), ScaleIntensity()])
    found = make({"image": image, "label": 1})
    assert found["views"].tolist() == [[[[2, 4], [6, 10]]], [[[2, 3], [4, 6]]], [[[0, 0.25], [0.5, 1]]]]
    assert type(found["views"]) is torch.Tensor
    assert found["image"] is image
    assert image.tolist() == [[[1, 2], [3, 5]]]
    assert found["label"] == 1


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 20), (1, 12, 12, 12)])
def test_views_of_flat_images_and_volumes(shape):
    views = random_views(len(shape) - 1).set_random_state(0)({"image": torch.rand(shape)})["views"]
    assert views.shape == (4, *shape)
    assert views.isfinite().all()


def test_the_same_seed_gives_the_same_views_and_another_others():
    image = {"image": torch.rand(1, 16, 16)}
    first, again, other = (random_views().set_random_state(seed)(image)["views"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    for view in range(4):
        assert not torch.equal(first[view], other[view])
    make = random_views().set_random_state(3)
    assert torch.equal(make(image)["views"], first)
    assert not torch.equal(make(image)["views"], first)


def test_a_pipeline_seeds_its_views_and_a_cache_does_not_freeze_them():
    pipeline = Compose([random_views()]).set_random_state(5)
    again = Compose([random_views()]).set_random_state(5)
    item = {"image": torch.rand(1, 8, 8)}
    assert torch.equal(pipeline(item)["views"], again(item)["views"])
    cached = CacheDataset([item, item], Compose([random_views()]), num_workers=1, progress=False)
    assert not torch.equal(cached[0]["views"], cached[0]["views"])
    batch = next(iter(DataLoader(cached, batch_size=2)))
    assert batch["views"].shape == (2, 4, 1, 8, 8)


def test_wrong_arguments_and_geometry_are_named():
    with pytest.raises(ValueError, match="transforms is empty"):
        PhotometricViewsd("image", "views", [])
    with pytest.raises(ValueError, match="give one key, and another one for the copies"):
        PhotometricViewsd(["image", "other"], "views", [ScaleIntensity()])
    with pytest.raises(ValueError, match="give one key, and another one for the copies"):
        PhotometricViewsd("image", "image", [ScaleIntensity()])
    with pytest.raises(ValueError, match=r"SpatialPad makes \(1, 8, 8\) of 'image' with \(1, 4, 6\); views may not"):
        PhotometricViewsd("image", "views", [SpatialPad((8, 8))])({"image": torch.rand(1, 4, 6)})
    with pytest.raises(ValueError, match="views may not change the shape"):
        PhotometricViewsd("image", "views", [RandRotate90(prob=1.0, max_k=1)])({"image": torch.rand(1, 4, 6)})
    with pytest.raises(KeyError):
        PhotometricViewsd("image", "views", [ScaleIntensity()])({})
    assert PhotometricViewsd("image", "views", [ScaleIntensity()], allow_missing_keys=True)({}) == {}
