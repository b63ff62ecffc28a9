"""Equalization by tiles: hand-computed maps, the limit, the blend, and a library beside it."""

from __future__ import annotations

import numpy as np
import pytest

from monai_kd.transforms import clahe


def test_one_tile_without_limit_maps_levels_to_their_rank():
    image = np.array([[10, 20], [20, 200]], dtype=np.uint8)
    # a quarter of the pixels is at or below 10, three quarters at or below 20, all at or below 200
    np.testing.assert_allclose(clahe(image, tiles=1, clip_limit=np.inf), 255 * np.array([[0.25, 0.75], [0.75, 1.0]]))


def test_the_limit_cuts_a_peak_and_spreads_what_it_cut():
    image = np.array([[0, 0], [0, 255]], dtype=np.uint8)
    # limit 64 * 4 / 256 = 1 pixel a level: level 0 loses 2 of 3, each of the 256 levels gains 2 / 256
    gain = 2 / 256
    expected = np.array([[1 + gain, 1 + gain], [1 + gain, 4.0]]) / 4 * 255
    np.testing.assert_allclose(clahe(image, tiles=1, clip_limit=64), expected, rtol=1e-6)


def test_the_smallest_limit_leaves_contrast_about_as_it_is():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    np.testing.assert_allclose(clahe(ramp, tiles=1, clip_limit=1), ramp, atol=1.01)


def test_tiles_are_mapped_for_themselves_and_blended_between_their_centers():
    image = np.zeros((2, 8), dtype=np.uint8)
    image[:, 4:] = 100
    image[0, :4] = 50  # left tile: half 0, half 50; right tile: all 100
    found = clahe(image, tiles=(1, 2), clip_limit=np.inf)
    # level 0: 127.5 on the left, 0 on the right; centers at columns 1.5 and 5.5, between them linear
    assert found[1, 0] == found[1, 1] == pytest.approx(127.5)
    assert found[1, 3] == pytest.approx(127.5 * (1 - 1.5 / 4))
    assert found[0, 3] == pytest.approx(255 * (1 - 1.5 / 4))
    # level 100: 255 in both tiles
    np.testing.assert_allclose(found[:, 4:], 255)


def test_agrees_with_scikit_image_up_to_its_rounding():
    exposure = pytest.importorskip("skimage.exposure", reason="pip install 'monai_kd[vessels]'")
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128]
    image = np.clip(90 + 40 * np.sin(x / 20) + 25 * np.sin(y / 7) + generator.normal(0, 5, x.shape), 0, 255).round()
    mine = clahe(image, tiles=4, clip_limit=2.56)
    other = 255 * exposure.equalize_adapthist(image.astype(np.uint8), kernel_size=32, clip_limit=0.01, nbins=256)
    assert np.corrcoef(mine.ravel(), other.ravel())[0, 1] > 0.98
    assert np.corrcoef(image.ravel(), other.ravel())[0, 1] < np.corrcoef(mine.ravel(), other.ravel())[0, 1]


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((4, 4)), {"tiles": 5}, r"tiles is 5 and clip_limit 2.0; give 1 tile to one per pixel of \(4, 4\)"),
        (np.zeros((4, 4)), {"tiles": 1, "clip_limit": 0}, "and a limit above 0"),
        (np.full((4, 4), 256.0), {"tiles": 1}, "the image has the levels 256 to 256; they must lie in 0 to 255"),
        (np.full((4, 4), -1.0), {"tiles": 1}, "they must lie in 0 to 255"),
    ],
)
def test_what_is_out_of_range_is_named(image, options, message):
    with pytest.raises(ValueError, match=message):
        clahe(image, **options)
