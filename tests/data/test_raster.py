"""What MONAI's reader and writer do with photographs: axes, channels, palettes, 16 bits; a saved mask overlays."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, SaveImage, SaveImaged
from PIL import Image

from monai_kd.data import ColorClasses, as_color, as_grey
from monai_kd.data.raster import is_raster, read_raster
from monai_kd.data.volumes import volume_facts

HEIGHT, WIDTH = 4, 6
COLORS = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3) * 3
MASK = COLORS[..., 0] > 60


def saved(path: Path, image: Image.Image) -> str:
    image.save(path)
    return str(path)


def palette_mask() -> Image.Image:
    """As CHASE_DB1 ships them: the first color is white, so what is inside has the number 0."""
    image = Image.fromarray((~MASK).astype(np.uint8)).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


def load(path: str, converter=None) -> MetaTensor:
    options = {"converter": converter} if converter else {}
    return LoadImage(reader="PILReader", ensure_channel_first=True, dtype=None, **options)(path)


# ---- facts about MONAI that the bundles build on --------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif", "ppm", "bmp"])
def test_monai_reads_width_first_and_channels_in_front(tmp_path, ending):
    image = load(saved(tmp_path / f"a.{ending}", Image.fromarray(COLORS)))
    assert tuple(image.shape) == (3, WIDTH, HEIGHT)
    np.testing.assert_array_equal(image.numpy(), COLORS.transpose(2, 1, 0))
    assert image.affine.tolist() == torch.eye(4).tolist()
    assert image.pixdim.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("ending", ["tif", "gif", "ppm"])
def test_monai_finds_no_reader_by_these_endings(tmp_path, ending):
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(COLORS))
    with pytest.raises(RuntimeError, match="cannot find a suitable reader"):
        LoadImage()(path)


def test_monai_hands_out_numbers_of_a_palette_and_as_grey_their_colors(tmp_path):
    path = saved(tmp_path / "a.gif", palette_mask())
    np.testing.assert_array_equal(load(path)[0].numpy().T, ~MASK)
    np.testing.assert_array_equal(load(path, as_grey)[0].numpy().T, MASK * 255)


def test_sixteen_bits_are_read_whole(tmp_path):
    levels = COLORS[..., 0].astype(np.uint16) * 256
    path = saved(tmp_path / "a.png", Image.fromarray(levels))
    np.testing.assert_array_equal(load(path)[0].numpy().T, levels)
    np.testing.assert_array_equal(load(path, as_grey)[0].numpy().T, levels)
    with pytest.raises(ValueError, match=r"a.png' has the pixel format I;16; save it with 8 bits a channel"):
        as_color(Image.open(path))


# ---- converters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(MASK),
        Image.fromarray(MASK.astype(np.uint8)),
        Image.fromarray(MASK.astype(np.uint8) * 255),
        palette_mask(),
        Image.fromarray(np.repeat(MASK[..., None], 3, -1).astype(np.uint8) * 255),
        Image.fromarray(np.dstack([MASK.astype(np.uint8) * 255, np.full_like(MASK, 9, np.uint8)]), "LA"),
    ],
    ids=["bit", "class numbers", "gray", "palette", "color", "alpha"],
)
def test_masks_of_any_kind_are_0_and_255(tmp_path, image):
    path = saved(tmp_path / "a.png", image)
    np.testing.assert_array_equal(load(path, as_grey).numpy(), MASK.T[None] * 255)
    assert volume_facts(path, is_label=True).values == (0.0, 255.0)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(COLORS),
        Image.fromarray(np.dstack([COLORS, np.full((HEIGHT, WIDTH), 100, np.uint8)])),
        Image.fromarray(COLORS).quantize(256),
    ],
    ids=["color", "alpha", "palette"],
)
def test_images_of_any_kind_have_three_channels(tmp_path, image):
    path = saved(tmp_path / "a.png", image)
    np.testing.assert_allclose(load(path, as_color).numpy(), COLORS.transpose(2, 1, 0), atol=8)
    assert volume_facts(path, is_label=False).channels == 3


def test_facts_of_a_photograph_are_those_of_the_loaded_one(tmp_path):
    path = saved(tmp_path / "a.JPG", Image.fromarray(COLORS[..., 0]))
    facts = volume_facts(path, is_label=False)
    assert (facts.channels, facts.shape, facts.values, facts.error) == (1, (WIDTH, HEIGHT), (), "")
    assert facts.affine == tuple(np.eye(4).ravel())
    assert read_raster(path, False).shape == (1, WIDTH, HEIGHT)
    assert is_raster(path)
    assert not is_raster("a.nii.gz")


# ---- colors of classes ----------------------------------------------------------------------------------------------

POLYPS = [["black"], ["red"], ["green"]]
VESSELS = [["black"], ["red"], ["blue"], ["green", "white"]]


def painted(*colors: tuple[int, int, int], size: int = 24) -> np.ndarray:
    """Columns of equal width, one of each color."""
    return np.repeat(np.array([colors], np.uint8), size, axis=1).repeat(size, axis=0)


def numbers(path: str | Path, converter: ColorClasses) -> list[int]:
    """The classes of a mask along its upper edge, each once in their order."""
    row = load(Path(path), converter)[0, :, 0].int().tolist()
    return [row[0], *(after for before, after in pairwise(row) if after != before)]


def test_colors_become_classes_and_several_may_be_one(tmp_path):
    picture = painted((255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255), (0, 255, 0), (9, 250, 0))
    path = saved(tmp_path / "a.png", Image.fromarray(picture))
    assert numbers(path, ColorClasses(VESSELS)) == [3, 0, 1, 2, 3]
    other = ColorClasses([["black", "blue"], [[255, 255, 255]], ["red", [10, 250, 0]], ["green"]])
    assert numbers(path, other) == [1, 0, 2, 0, 3, 2]
    assert numbers(saved(tmp_path / "b.png", Image.fromarray(picture).quantize(8)), ColorClasses(VESSELS))[0] == 3


@pytest.mark.parametrize("quality", [75, 95])
def test_smeared_borders_of_a_jpeg_go_to_the_nearest_color(tmp_path, quality):
    picture = Image.fromarray(painted((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 0), size=21))
    picture.save(tmp_path / "a.jpeg", quality=quality)
    found = load(tmp_path / "a.jpeg", ColorClasses(POLYPS, tolerance=150, smear=5))[0].numpy().T
    exact = np.asarray(ColorClasses(POLYPS)(picture))
    assert (found != exact).mean() < 0.05
    with pytest.raises(ValueError, match=r"a.jpeg' has the color"):
        ColorClasses(POLYPS)(Image.open(tmp_path / "a.jpeg"))


def test_an_unknown_color_is_refused_and_named(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(painted((0, 0, 0), (250, 250, 0), (255, 0, 0))))
    message = r"a.png' has the color \(250, 250, 0\), 250 levels from the nearest .* 576 pixels .* Known: black; red"
    with pytest.raises(ValueError, match=message):
        ColorClasses(POLYPS, tolerance=150, smear=5)(Image.open(path))
    with pytest.raises(RuntimeError, match=message):  # MONAI tries its other readers, and tells of all
        load(path, ColorClasses(POLYPS))


def test_thin_strips_alone_are_borne(tmp_path):
    picture = painted((0, 0, 0), (0, 0, 0))
    picture[:, 10:14] = (0, 0, 255)
    thin = saved(tmp_path / "a.png", Image.fromarray(picture))
    assert numbers(thin, ColorClasses(POLYPS, smear=5)) == [0]
    with pytest.raises(ValueError, match="has the color"):
        ColorClasses(POLYPS, smear=4)(Image.open(thin))


def test_a_mask_without_colors_is_refused_unless_it_is_empty(tmp_path):
    for pixels in (MASK.astype(np.uint8), MASK, MASK.astype(np.uint8) * 255):
        path = saved(tmp_path / "a.png", Image.fromarray(pixels))
        with pytest.raises(ValueError, match=r"a.png' has the pixel format [1L], without colors; as_grey reads"):
            ColorClasses(POLYPS)(Image.open(path))
    empty = ColorClasses(POLYPS)(Image.fromarray(np.zeros((4, 6), np.uint8)))
    assert (empty.mode, empty.size, empty.getextrema()) == ("L", (6, 4), (0, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"colors": [["black"]]}, "a list of colors for each class, the background first"),
        ({"colors": ["black", "red"]}, "a list of colors for each class"),
        ({"colors": [["black"], []]}, "a list of colors for each class"),
        ({"colors": [["black"], ["crimson"]]}, "'crimson' is no color; give three levels of 0 to 255, or one of black"),
        ({"colors": [["black"], [[0, 0, 256]]]}, r"\[0, 0, 256\] is no color"),
        ({"colors": [["black"], ["red", [255, 0, 0]]]}, "each color may stand once"),
        ({"tolerance": -1}, "tolerance is -1; it must be 0 or more levels"),
        ({"smear": 0}, "smear is 0; it must be a whole number of pixels"),
        ({"smear": 2.5}, "smear is 2.5; it must be a whole number of pixels"),
    ],
)
def test_wrong_colors_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ColorClasses(**{"colors": POLYPS, **arguments})


# ---- a prediction on its photograph ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_a_prediction_saved_as_png_overlays_its_photograph(tmp_path, ending):
    bright = np.zeros((20, 31, 3), np.uint8)
    bright[3:9, 17:25] = 255
    path = saved(tmp_path / f"eye.{ending}", Image.fromarray(bright))
    item = Compose(
        [
            LoadImaged("image", reader="PILReader", converter=as_color),
            EnsureChannelFirstd("image"),
        ]
    )({"image": path})
    item["pred"] = (item["image"][:1] > 128).float()
    SaveImaged(
        "pred", output_dir=tmp_path / "out", output_ext=".png", output_postfix="seg", resample=False, scale=255,
        separate_folder=False, output_dtype=np.uint8, print_log=False,
    )(item)  # fmt: skip
    mask = Image.open(tmp_path / "out" / "eye_seg.png")
    assert (mask.mode, mask.size) == ("L", (31, 20))
    np.testing.assert_array_equal(np.asarray(mask), (bright[..., 0] > 128) * 255)


def test_without_a_scale_the_file_holds_class_numbers(tmp_path):
    pred = load(saved(tmp_path / "a.png", Image.fromarray(MASK.astype(np.uint8))))
    SaveImage(
        tmp_path / "out", output_ext=".png", output_postfix="seg", resample=False, scale=None,
        separate_folder=False, output_dtype=np.uint8, print_log=False,
    )(pred)  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a_seg.png")), MASK)


def test_the_package_needs_no_pillow_until_a_picture_is_written(phantoms, tmp_path):
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'PIL'\", name='PIL')")
    code = f"import monai_kd.data as data; print('imported'); data.write_slices({str(phantoms)!r}, 'out')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    given = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, "-c", code], check=False, **given)
    assert done.stdout == "imported\n", done.stderr
    assert done.stderr.rstrip().endswith("PNG files need Pillow; install the extra: pip install 'monai_kd[vessels]'")
    assert not (tmp_path / "out").exists()
