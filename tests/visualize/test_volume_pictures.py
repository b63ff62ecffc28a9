"""Slices and GIF of a volume: scale, letters, the chosen point, what is drawn of prediction and truth."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from viewer_cases import SPACING_MM, small_case

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

from matplotlib.figure import Figure
from PIL import Image

from monai_kd.visualize.volume_gif import gif_slices, save_gif
from monai_kd.visualize.volume_panels import case_planes, chosen_voxel, draw_letters, draw_scale_bar, gray_range
from monai_kd.visualize.volume_slices import save_slices, slices_figure

PATH_OF_LETTERS = {"axial": "LRAP", "coronal": "LRSI", "sagittal": "PASI"}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


# ---- where ----------------------------------------------------------------------------------------------------------


def test_slices_with_most_label_are_chosen() -> None:
    i, j, k = chosen_voxel(small_case())
    assert i in (6, 7)  # prediction and truth overlap there, so both count
    assert (j, k) == (4, 4)


def test_middle_is_chosen_where_nothing_is_labeled() -> None:
    case = small_case(truth=False)
    case.maps["prediction"][:] = 0
    assert chosen_voxel(case) == (10, 8, 6)


def test_point_in_millimeters_leads_to_its_voxel() -> None:
    assert chosen_voxel(small_case(), [3.2, 9.8, 30.4]) == (3, 5, 10)
    with pytest.raises(ValueError, match=r"lies outside the volume, which spans 0 to 19, 0 to 30, 0 to 33 mm"):
        chosen_voxel(small_case(), [3, 9, 40])
    with pytest.raises(ValueError, match="it must be three numbers"):
        chosen_voxel(small_case(), [3, 9])


def test_dark_border_is_cut_off_and_structures_are_not() -> None:
    case = small_case()
    case.image[:] = 0
    case.image[6:14, 4:8, 4:8] = 200
    axial = case_planes(case, (7, 5, 5))[0]
    assert axial.window == (slice(2, 16), slice(2, 10))  # the prediction begins at 4, and 2 voxels are room


def test_planes_have_the_scale_of_the_spacing_on_one_page() -> None:
    figure = slices_figure(small_case())
    x, y, z = np.array(SPACING_MM) * (20, 16, 12)
    for axes, (width, height) in zip(figure.axes[:3], [(x, y), (x, z), (y, z)], strict=True):
        left, right, bottom, top = axes.images[0].get_extent()
        assert (right - left, bottom - top) == (width, height)
        inches = axes.get_position().width * figure.get_figwidth(), axes.get_position().height * figure.get_figheight()
        assert inches == pytest.approx((10.5 / (x + x + y) * width, 10.5 / (x + x + y) * height))


# ---- what -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATH_OF_LETTERS)
def test_letters_stand_where_the_body_is(name: str) -> None:
    """A bright voxel at the right, front and top end lies toward the letters R, A and S."""
    case = small_case()
    case.image[:] = 1
    case.image[19, 15, 11] = 50
    plane = next(plane for plane in case_planes(case, (19, 15, 11)) if plane.name == name)
    axes = Figure().add_subplot()
    draw_letters(axes, plane)
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert "".join(places) == PATH_OF_LETTERS[name]
    row, column = np.argwhere(plane.cut(case.image) == 50)[0]
    rows, columns = plane.cut(case.image).shape
    to_right, to_top = column > columns / 2, row < rows / 2
    assert {letter for letter, (x, _) in places.items() if (x > 0.9 and to_right)} <= {"R", "A"}
    assert {letter for letter, (_, y) in places.items() if (y > 0.9 and to_top)} <= {"A", "S"}
    assert to_right
    assert to_top


@pytest.mark.parametrize(("spacing", "length"), [(1.0, 5), (4.0, 20), (0.1, 1)])
def test_scale_bar_is_round_and_as_long_as_it_says(spacing: float, length: int) -> None:
    plane = case_planes(small_case(affine=np.diag([spacing, spacing, spacing, 1.0])), (7, 5, 5))[0]
    axes = Figure().add_subplot()
    assert draw_scale_bar(axes, plane) == length
    left, right = axes.lines[0].get_xdata()
    assert right - left == pytest.approx(length)
    assert axes.texts[0].get_text() == f"{length} mm"


def test_rows_are_image_prediction_and_truth() -> None:
    figure = slices_figure(small_case())
    assert len(figure.axes) == 9
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["image", "prediction", "truth"]
    drawn = [len(axes.collections) for axes in figure.axes[::3]]
    assert drawn == [0, 2, 4]  # a fill and a line of each class in this slice
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        *("axial, z = 12.0 mm", "coronal, y = 8.0 mm", "sagittal, x = 6.0 mm")
    ]


def test_point_changes_the_slices_and_a_cross_marks_it() -> None:
    figure = slices_figure(small_case(), [12, 10, 15])
    assert figure.axes[0].get_title() == "axial, z = 15.0 mm"
    across, down = (line.get_xydata() for line in figure.axes[0].lines[:2])
    assert across[0][0] == 12.5  # mm from the left border, voxel centers are half a voxel inside
    assert down[0][1] == 16 * 2 - (5 + 0.5) * 2


def test_legend_has_the_dice_of_the_whole_volume() -> None:
    legend = [text.get_text() for text in slices_figure(small_case()).legends[0].get_texts()]
    assert legend == ["a  Dice 0.500", "b  Dice 0.000"]
    alone = slices_figure(small_case(truth=False))
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["a", "b"]
    assert len(alone.axes) == 6


def test_regions_that_overlap_are_both_drawn() -> None:
    case = small_case(regions={"all": [1, 2], "b": [2]})
    axial = slices_figure(case, [13, 10, 15]).axes[6]  # the truth's row: "all" and "b" filled and outlined
    assert len(axial.collections) == 4


def test_empty_prediction_is_called_so_and_oblique_grid_too() -> None:
    angle = np.radians(25)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    case = small_case(affine=affine)
    case.maps["prediction"][:] = 0
    figure = slices_figure(case)
    assert figure.axes[3].get_ylabel() == "prediction: empty"
    assert figure.get_suptitle() == "case 7   (oblique grid: axes are 25° off the letters)"
    assert slices_figure(small_case()).get_suptitle() == "case 7"


def test_gray_range_leaves_out_air_and_the_brightest() -> None:
    case = small_case()
    case.image[:] = 0
    case.image[5:15, 5:15] = np.linspace(50, 100, 10 * 10 * 12).reshape(10, 10, 12)
    case.image[0, 0, 0] = 1000
    low, high = gray_range(case)
    assert low == 0
    assert 99 < high < 200


def test_window_sets_black_and_white() -> None:
    assert gray_range(small_case(), [-160, 240]) == (-160.0, 240.0)
    assert slices_figure(small_case(), window=(50, 150)).axes[0].images[0].get_clim() == (50, 150)
    for wrong in ([240, -160], [1], 5):
        with pytest.raises(ValueError, match="it must be two rising gray values"):
            gray_range(small_case(), wrong)  # type: ignore[arg-type]


def test_png_is_written_the_same_twice_without_pyplot(tmp_path: Path) -> None:
    first, second = (save_slices(tmp_path / f"{i}.png", small_case(), dpi=40) for i in "ab")
    assert first.read_bytes() == second.read_bytes()
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


# ---- the GIF --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "frames"), [("axial", 12), ("coronal", 16), ("sagittal", 20)])
def test_gif_shows_every_slice_of_its_axis(axis: str, frames: int) -> None:
    plane, slices = gif_slices(small_case(), axis)
    assert plane.name == axis
    assert slices == list(range(frames))


def test_gif_of_many_slices_skips_evenly() -> None:
    assert gif_slices(small_case(), "sagittal", 7)[1] == [0, 3, 6, 9, 12, 15, 18]


def test_gif_has_the_pace_and_the_size_that_were_asked_for(tmp_path: Path) -> None:
    path = save_gif(tmp_path / "a.gif", small_case(), fps=5, size=200, max_frames=4, progress=False)
    with Image.open(path) as gif:
        assert gif.n_frames == 4
        assert gif.info["duration"] == 200
        assert gif.info["loop"] == 0
        assert max(gif.size) == pytest.approx(200, abs=2)
        shown = []
        for frame in range(4):
            gif.seek(frame)
            shown.append(np.asarray(gif.convert("RGB")).astype(int))
    assert all(np.abs(a - b).max() > 50 for a, b in pairwise(shown))


def test_gif_draws_prediction_truth_and_progress_in_their_colors(tmp_path: Path) -> None:
    case = small_case()
    path = save_gif(tmp_path / "a.gif", case, size=300, max_frames=2, progress=False)
    with Image.open(path) as gif:
        bars = []
        for frame in (0, 1):
            gif.seek(frame)
            rgb = np.asarray(gif.convert("RGB")).astype(int)
            bars.append(max((np.abs(row - (0x4C, 0xC9, 0xF0)).sum(-1) < 40).sum() for row in rgb))
    assert bars[1] > 2 * bars[0]  # slices 0 and 6: the bar grows
    gray = np.abs(rgb - rgb.mean(-1, keepdims=True)).max(-1) < 4
    assert 0.5 < gray.mean() < 0.999


def test_gif_of_many_structures_leaves_room_for_the_picture(tmp_path: Path) -> None:
    names = {"class_names": [f"structure {number}" for number in range(100)]}
    path = save_gif(tmp_path / "a.gif", small_case(**names), size=200, max_frames=1, progress=False)
    with Image.open(path) as gif:
        rgb = np.asarray(gif.convert("RGB")).astype(int)
    assert (rgb.sum(-1) > 150).mean() > 0.35  # the gray box, not the dark page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axis": "oblique"}, "axis is 'oblique'; known: axial, coronal, sagittal"),
        ({"fps": 0}, "fps is 0; it must be above 0 and at most 50"),
        ({"fps": 60}, "fps is 60"),
        ({"size": 20}, "size is 20; a GIF's longest side is 120 to 2000 pixels"),
        ({"max_frames": 0}, "max_frames is 0"),
    ],
)
def test_setting_out_of_range_is_named(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_gif(tmp_path / "a.gif", small_case(), **settings)
    assert list(tmp_path.iterdir()) == []
