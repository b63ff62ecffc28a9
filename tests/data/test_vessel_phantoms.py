"""Fundus phantoms: the same bytes each time, three looks of one anatomy, and files as the data sets have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from monai_kd.data import image_mask_cases, make_vessel_phantoms, vessel_phantom
from monai_kd.data.raster import read_raster
from monai_kd.data.vessel_phantoms import VESSEL_DOMAINS

DOMAINS = ("chase_db1", "stare", "drive")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_vessel_phantoms(tmp_path_factory.mktemp("vessels") / "a", 5, 2, size=64, progress=False)


def test_same_arguments_give_the_same_bytes_and_fewer_the_first(folder, tmp_path):
    whole = files_of(folder)
    assert files_of(make_vessel_phantoms(tmp_path / "a", 5, 2, size=64, progress=False)) == whole
    fewer = files_of(make_vessel_phantoms(tmp_path / "a", 3, 1, size=64, progress=False))
    images = [name for name in fewer if not name.endswith(".json")]
    assert len(images) == 4 * 3 + 2 + 3
    assert all(fewer[name] == whole[name] for name in images)
    other = files_of(make_vessel_phantoms(tmp_path / "b", 3, 1, size=64, seed=1, progress=False))
    assert not any(other[name] == whole[name] for name in images if "images/" in name)


def test_files_hold_the_phantoms(folder):
    chase, stare, drive = (VESSEL_DOMAINS[name] for name in DOMAINS)
    for look, name, index in ((stare, "im0101", 100), (drive, "101", 100), (chase, "Image_01R", 1)):
        domain = next(known for known, value in VESSEL_DOMAINS.items() if value is look)
        phantom = vessel_phantom(0, index, domain, 64)
        place = folder / look.folder
        label = read_raster(place / look.label.format(name), is_label=True)
        np.testing.assert_array_equal(label[0].T, phantom.label * 255)
        image = read_raster(place / look.image.format(name), is_label=False)
        np.testing.assert_allclose(image.T, phantom.image, atol=60 if look is chase else 0)  # JPEG
        if look.fov:
            np.testing.assert_array_equal(read_raster(place / look.fov.format(name), True)[0].T, phantom.fov * 255)
    # as the data sets: 1-bit labels of CHASE_DB1, and its masks with white as the first color
    assert Image.open(folder / "CHASE_DB1" / "labels_1stHO" / "Image_01L_1stHO.png").mode == "1"
    stored = np.asarray(Image.open(folder / "CHASE_DB1" / "fov_masks" / "Image_01L.gif"))
    assert stored[0, 0] == 1
    assert stored[31, 32] == 0


def test_the_split_keeps_children_apart_and_other_domains_for_testing(folder, tmp_path):
    split = json.loads((folder / "splits" / "retina.json").read_text())
    assert split == {
        "protocol": "retina",
        "train": ["Image_01L", "Image_01R", "Image_02L", "Image_02R"],
        "validation": ["Image_03L"],
        "test": ["Image_51L", "Image_51R"],
        "targets": ["STARE", "DRIVE/training"],
    }
    only = make_vessel_phantoms(tmp_path / "a", 3, 1, domains=["stare"], size=64, progress=False)
    assert len(image_mask_cases(only / "STARE")) == 4
    assert json.loads((only / "splits" / "retina.json").read_text())["targets"] == []


def test_phantoms_replace_phantoms_and_nothing_else(tmp_path):
    make_vessel_phantoms(tmp_path / "a", 3, 1, size=64, progress=False)
    make_vessel_phantoms(tmp_path / "a", 3, 1, domains=["stare"], size=64, progress=False)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["STARE", "phantoms.json", "splits"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is not empty and holds no phantoms of monai_kd.data.vessel_phantoms"):
        make_vessel_phantoms(tmp_path / "b", 3, 1, progress=False)


def test_anatomy_does_not_depend_on_domain_or_size():
    shown = [vessel_phantom(0, 3, domain, 128) for domain in DOMAINS]
    centers = [np.array(ndimage.center_of_mass(phantom.label)) - np.array(phantom.label.shape) / 2 for phantom in shown]
    assert np.abs(centers[0] - centers[2]).max() < 3
    small, large = (vessel_phantom(0, 3, "drive", size).label for size in (96, 192))
    both = ndimage.zoom(large.astype(float), 0.5, order=1)[: small.shape[0], : small.shape[1]] > 0.5
    assert 2 * (both & small[: both.shape[0], : both.shape[1]]).sum() / (both.sum() + small.sum()) > 0.75


def test_vessels_are_dark_in_green_and_thin_out():
    for domain in DOMAINS:
        phantoms = [vessel_phantom(1, index, domain, 160) for index in range(4)]
        for phantom in phantoms:
            share = phantom.label.sum() / phantom.fov.sum()
            assert 0.06 < share < 0.22
            assert not (phantom.label & ~phantom.fov).any()
            near = ndimage.binary_dilation(phantom.label, iterations=3) & ~phantom.label & phantom.fov
            green = phantom.image[..., 1].astype(float)
            assert green[phantom.label].mean() < 0.93 * green[near].mean()
            depth = ndimage.distance_transform_edt(phantom.label)
            assert depth.max() >= 2  # a trunk
            assert (depth[phantom.label] == 1).mean() > 0.5  # and many twigs


def test_domains_differ_in_contrast_color_and_noise():
    chase, stare, drive = ([vessel_phantom(2, index, domain, 128) for index in range(4)] for domain in DOMAINS)
    brightness = [np.mean([p.image[p.fov].mean() for p in domain]) for domain in (chase, stare, drive)]
    assert brightness[0] < brightness[2] < brightness[1]
    outside = [np.mean([p.image[~p.fov].mean() for p in domain]) for domain in (chase, stare, drive)]
    assert outside[1] > 10 > max(outside[0], outside[2])
    shapes = [domain[0].image.shape for domain in (chase, stare, drive)]
    assert shapes == [(123, 128, 3), (111, 128, 3), (128, 124, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 2}, "num_train must be a whole number from 3 to 98; got 2"),
        ({"num_test": 0}, "num_test must be a whole number from 1 to 98; got 0"),
        ({"size": 32}, "size must be a whole number >= 64; got 32"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"domains": ["hrf"]}, r"domains is \['hrf'\]; give at least one, each once, of chase_db1, stare, drive"),
        ({"domains": "stare"}, "domains is 'stare'; give at least one"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_vessel_phantoms(tmp_path / "a", **arguments)
    assert not (tmp_path / "a").exists()
