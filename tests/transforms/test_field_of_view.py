"""Fields of view: found as shipped, brought to one diameter and back, and the green channel inside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged

from monai_kd.data import as_color, as_grey, image_mask_cases, vessel_phantom
from monai_kd.transforms import (
    FieldOfViewd,
    ResizeFieldOfViewd,
    RetinaGreend,
    field_diameter,
    field_of_view,
    reflect_outside,
)


def disc(height: int, width: int, radius: float) -> torch.Tensor:
    y, x = np.mgrid[:height, :width]
    return torch.from_numpy(np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) < radius)[None].float()


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one * other).sum() / torch.maximum(one, other).sum())


# ---- finding --------------------------------------------------------------------------------------------------------


def test_the_largest_bright_part_without_holes_is_the_field():
    image = np.full((3, 60, 60), 5, dtype=np.uint8)
    image[0, 10:50, 10:50] = 200
    image[0, 20:22, 20:22] = 0  # a hole
    image[0, 2:8, 30:34] = 250  # a label written beside it
    expected = np.zeros((60, 60), dtype=bool)
    expected[10:50, 10:50] = True
    np.testing.assert_array_equal(field_of_view(image), expected)


def test_the_fraction_decides_about_dim_rims():
    image = np.zeros((1, 60, 60), dtype=np.uint8)
    image[0, 10:50, 10:50] = 20
    image[0, 12:48, 12:48] = 200
    assert field_of_view(image, 0.05).sum() == 40 * 40
    assert field_of_view(image, 0.2).sum() == 36 * 36
    found = [FieldOfViewd("image", fraction=part)({"image": image})["fov"].sum() for part in (0.05, 0.2)]
    assert found == [1600, 1296]


def test_bright_corners_are_retina():
    assert field_of_view(np.full((3, 40, 40), 120, dtype=np.uint8)).all()
    assert field_of_view(np.zeros((3, 40, 40), dtype=np.uint8)).all()


@pytest.mark.parametrize("spoiled", [-1.0, np.nan, np.inf])
def test_no_field_is_sought_among_levels_that_are_none(spoiled):
    image = np.full((1, 60, 60), 5.0)
    image[0, 10:50, 10:50] = 200
    image[0, 30, 30] = spoiled
    with pytest.raises(ValueError, match=r"the image has the levels .*; give finite ones of 0 or more"):
        field_of_view(image)


@pytest.mark.parametrize("domain", ["chase_db1", "stare", "drive"])
def test_fields_of_phantoms_are_found(domain):
    for index in range(3):
        phantom = vessel_phantom(0, index, domain)
        found = field_of_view(phantom.image.transpose(2, 0, 1))
        assert (found & phantom.fov).sum() / (found | phantom.fov).sum() > 0.98


def test_a_found_mask_has_the_images_metadata_and_a_shipped_one_is_kept():
    image = MetaTensor(torch.zeros(3, 60, 60), meta={"filename_or_obj": "eye.png"})
    image[:, 10:50, 10:50] = 100
    found = FieldOfViewd("image", "mask")({"image": image})
    assert found["mask"].shape == (1, 60, 60)
    assert found["mask"].dtype == torch.float32
    assert found["mask"].meta["filename_or_obj"] == "eye.png"
    shipped = disc(60, 60, 20) * 255
    kept = FieldOfViewd("image")({"image": image, "fov": shipped})["fov"]
    assert kept.unique().tolist() == [0, 1]
    assert torch.equal(kept, disc(60, 60, 20))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8, 4)])
def test_the_whole_image_is_the_field_where_that_is_asked_for_and_no_mask_is_shipped(shape):
    image = torch.zeros(shape)
    image[0, 2:6, 2:6] = 1.0
    found = FieldOfViewd("image", whole=True)({"image": image})["fov"]
    assert torch.equal(found, torch.ones(1, *shape[1:]))
    shipped = torch.zeros(1, *shape[1:])
    shipped[0, 3] = 255
    assert torch.equal(FieldOfViewd("image", whole=True)({"image": image, "fov": shipped})["fov"], shipped / 255)


def test_masks_that_do_not_fit_are_named():
    image = torch.zeros(3, 8, 8)
    mask = MetaTensor(torch.zeros(1, 8, 8), meta={"filename_or_obj": "m.gif"})
    with pytest.raises(ValueError, match=r"'fov' of 'm.gif' is empty; leave the key out"):
        FieldOfViewd("image")({"image": image, "fov": mask})
    with pytest.raises(ValueError, match=r"'fov' has the shape \(1, 8, 9\); 'image' needs \(1, 8, 8\)"):
        FieldOfViewd("image")({"image": image, "fov": torch.ones(1, 8, 9)})
    with pytest.raises(ValueError, match=r"the field of view of 'm.gif' is empty"):
        field_diameter(mask)
    with pytest.raises(ValueError, match="fraction is 0; it must be above 0 and below 1"):
        FieldOfViewd("image", fraction=0)
    with pytest.raises(ValueError, match="a case has one field of view"):
        FieldOfViewd(["image", "label"])


REAL = {"CHASE_DB1": (893, 922, 0.989, 0.993), "DRIVE/training": (536, 541, 0.988, 0.997)}


@pytest.mark.parametrize("folder", REAL)
def test_found_fields_are_those_that_are_shipped(real_data, folder):
    least, most, worst, mean = REAL[folder]
    load = Compose(
        [
            LoadImaged("image", reader="PILReader", converter=as_color),
            LoadImaged("fov", reader="PILReader", converter=as_grey),
            EnsureChannelFirstd(["image", "fov"]),
        ]
    )
    overlaps = []
    for case in image_mask_cases(real_data / folder)[::3]:
        item = load({key: case[key] for key in ("image", "fov")})
        shipped = FieldOfViewd("image")(item)["fov"]
        overlaps.append(overlap(FieldOfViewd("image")({"image": item["image"]})["fov"], shipped))
        assert least <= field_diameter(shipped) <= most
    assert min(overlaps) > worst
    assert np.mean(overlaps) > mean


def test_found_fields_of_stare_are_of_one_width(real_data):
    load = Compose([LoadImaged("image", reader="PILReader", converter=as_color), EnsureChannelFirstd("image")])
    cases = image_mask_cases(real_data / "STARE")
    found = [field_diameter(FieldOfViewd("image")(load({"image": case["image"]}))["fov"]) for case in cases[:8]]
    assert sorted(found)[-2] <= 650
    assert min(found) >= 645


# ---- resizing -------------------------------------------------------------------------------------------------------


def photograph(height: int = 90, width: int = 100, radius: float = 40.0) -> dict[str, MetaTensor]:
    y, x = np.mgrid[:height, :width]
    pixels = torch.from_numpy(100 + 50 * np.sin(x / 9) + 30 * np.cos(y / 11)).float()[None]
    return {"image": MetaTensor(pixels), "fov": MetaTensor(disc(height, width, radius))}


def test_diameter_is_the_longer_side_of_the_field():
    mask = torch.zeros(1, 20, 30)
    mask[0, 4:10, 5:25] = 1
    assert field_diameter(mask) == 20
    assert field_diameter(MetaTensor(mask)) == 20


@pytest.mark.parametrize("diameter", [40, 80, 133])
def test_fields_come_out_in_the_asked_diameter(diameter):
    for radius in (20.0, 40.0, 44.5):
        item = photograph(radius=radius)
        found = ResizeFieldOfViewd(["image", "fov"], diameter, mode=["bilinear", "nearest"])(item)
        assert abs(field_diameter(found["fov"]) - diameter) <= 2
        scale = diameter / field_diameter(item["fov"])
        assert found["image"].shape == (1, round(90 * scale), round(100 * scale))


@pytest.mark.parametrize("diameter", [50, 160])
def test_a_prediction_returns_to_the_pixels_of_its_file(diameter):
    item = photograph()
    pipeline = Compose([ResizeFieldOfViewd("image", diameter)])
    batch = list_data_collate([pipeline(item)])
    batch["pred"] = batch["image"].clone()
    back = Invertd("pred", pipeline, orig_keys="image", nearest_interp=False)(decollate_batch(batch)[0])["pred"]
    assert back.shape == item["image"].shape
    assert back.applied_operations == []
    torch.testing.assert_close(back.affine, item["image"].affine)
    inner = item["fov"].bool()
    assert (back - item["image"]).abs()[inner].mean() < 1.0
    nearest = Invertd("pred", pipeline, orig_keys="image", nearest_interp=True)(decollate_batch(batch)[0])["pred"]
    assert not torch.equal(nearest, back)


def test_smoothing_and_modes_change_the_pixels():
    item = photograph()
    item["image"] = MetaTensor(torch.rand(1, 90, 100, generator=torch.Generator().manual_seed(0)))
    smooth, rough = (ResizeFieldOfViewd("image", 30, anti_aliasing=flag)(item)["image"] for flag in (True, False))
    assert smooth.std() < 0.8 * rough.std()
    nearest = ResizeFieldOfViewd("image", 30, mode="nearest")(item)["image"]
    assert set(nearest.unique().tolist()) <= set(item["image"].unique().tolist())


def test_area_gives_the_part_of_a_pixel_that_a_vessel_covers():
    fov = torch.ones(1, 8, 8)
    label = torch.zeros(1, 8, 8)
    label[0, :, 3] = 1
    found = ResizeFieldOfViewd("label", 4, mode="area")({"label": MetaTensor(label), "fov": fov})["label"]
    assert found[0, 0].tolist() == [0, 0.5, 0, 0]


def test_a_case_without_a_mask_or_of_another_size_is_named():
    item = photograph()
    with pytest.raises(KeyError, match=r"'fov' is not in the case, which has .*FieldOfViewd makes it"):
        ResizeFieldOfViewd("image", 50)({"image": item["image"]})
    with pytest.raises(ValueError, match=r"'image' has \(80, 100\) pixels and 'fov' \(90, 100\)"):
        ResizeFieldOfViewd("image", 50)({"image": item["image"][:, :80], "fov": item["fov"]})
    with pytest.raises(ValueError, match="diameter is 0; give pixels, 1 or more"):
        ResizeFieldOfViewd("image", 0)
    found = ResizeFieldOfViewd(["image", "label"], 50, "mask", allow_missing_keys=True)(
        {"image": item["image"], "mask": item["fov"]}
    )
    assert set(found) == {"image", "mask"}


# ---- the green channel ----------------------------------------------------------------------------------------------


def test_pixels_outside_take_the_value_behind_the_border():
    image = np.array([[9.0, 9.0, 1.0, 2.0, 3.0, 9.0, 9.0, 9.0]])
    inside = np.array([[False, False, True, True, True, False, False, False]])
    # mirrored at the nearest pixel inside: 3 2 | 1 2 3 | 2 1, and what would lie beyond takes the border
    assert reflect_outside(image, inside).tolist() == [[3, 2, 1, 2, 3, 2, 1, 3]]


def test_the_field_has_mean_0_and_deviation_1_and_the_surround_0():
    item = photograph()
    rgb = torch.cat([torch.full_like(item["image"], 200.0), item["image"], torch.full_like(item["image"], 10.0)])
    found = RetinaGreend("image")({"image": MetaTensor(rgb, meta={"filename_or_obj": "a.png"}), "fov": item["fov"]})
    green, inside = found["image"], item["fov"].bool()
    assert green.shape == (1, 90, 100)
    assert green.meta["filename_or_obj"] == "a.png"
    assert green[inside].mean() == pytest.approx(0, abs=1e-5)
    assert green[inside].std(correction=0) == pytest.approx(1, abs=1e-5)
    assert (green[~inside] == 0).all()
    plain = RetinaGreend("image", clip_limit=0, rim=0)({"image": rgb, "fov": item["fov"]})["image"]
    seen = item["image"][inside]
    torch.testing.assert_close(plain[inside], ((seen - seen.mean()) / seen.std(correction=0)).as_tensor())


def test_every_argument_changes_the_image():
    item = photograph()
    default = RetinaGreend("image")(item)["image"]
    for options in ({"tiles": 2}, {"clip_limit": 1.2}, {"clip_limit": 0}, {"rim": 0.1}, {"outside": "reflect"}):
        assert not torch.equal(RetinaGreend("image", **options)(item)["image"], default)
    other = RetinaGreend("image", "mask")({"image": item["image"], "mask": disc(90, 100, 30)})["image"]
    assert not torch.equal(other, default)


def test_no_seam_at_the_rim():
    item = photograph(height=100)
    dark = item["image"] * item["fov"]
    found = RetinaGreend("image", clip_limit=0, rim=0.03, outside="reflect")({"image": dark, "fov": item["fov"]})[
        "image"
    ]
    steps = torch.maximum((found[:, 1:, 1:] - found[:, :-1, 1:]).abs(), (found[:, 1:, 1:] - found[:, 1:, :-1]).abs())
    near = disc(100, 100, 44).bool()[:, 1:, 1:]  # farther out the mirror images of neighbors part
    wide = RetinaGreend("image", clip_limit=0, rim=0)({"image": dark, "fov": disc(100, 100, 42)})["image"]
    seam = (wide[:, 1:, 1:] - wide[:, :-1, 1:]).abs().max()  # of a mask that reaches into the dark
    assert steps[near].max() < 0.4 * seam
    assert (
        RetinaGreend("image", clip_limit=0, rim=0)({"image": torch.full((1, 9, 9), 7.0), "fov": torch.ones(1, 9, 9)})[
            "image"
        ]
        == 0
    ).all()


def test_what_is_no_photograph_is_named():
    item = photograph()
    two = torch.zeros(2, 90, 100)
    with pytest.raises(ValueError, match=r"'image' has the shape \(2, 90, 100\) .* it must have 1 or 3 channels"):
        RetinaGreend("image")({"image": two, "fov": item["fov"]})
    with pytest.raises(KeyError, match="FieldOfViewd makes it"):
        RetinaGreend("image")({"image": item["image"]})
    for spoiled, words in ((-1.0, "-1 to"), (256.0, "to 256"), (float("nan"), "nan to nan")):
        image = item["image"].clone()
        image[0, 45, 50] = spoiled
        for limit in (0, 2.0):
            with pytest.raises(ValueError, match=rf"'image' has the levels .*{words}.*; they must lie in 0 to 255"):
                RetinaGreend("image", clip_limit=limit)({"image": image, "fov": item["fov"]})
    for options in ({"rim": float("nan")}, {"clip_limit": float("nan")}):
        with pytest.raises(ValueError, match=r"give 0 to 0\.5, and 0 or more"):
            RetinaGreend("image", **options)
    with pytest.raises(ValueError, match=r"outside is 'mean'; known: zero, reflect"):
        RetinaGreend("image", outside="mean")
    with pytest.raises(ValueError, match=r"rim is 0.7 and clip_limit 2.0; give 0 to 0.5, and 0 or more"):
        RetinaGreend("image", rim=0.7)
