"""Overlays: the slices that tell most, one panel a map, errors in their colors, no global matplotlib state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from monai_kd.visualize.overlays import dice_score, overlay_figure, save_overlay, telling_planes

CLASSES = {"0": "background", "1": "anterior", "2": "posterior"}


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray]:
    """A dark box with two bright blocks, label 1 and 2."""
    label = np.zeros((24, 30, 20), dtype=np.uint8)
    label[8:16, 6:14, 5:15] = 1
    label[8:16, 14:24, 5:15] = 2
    image = np.random.default_rng(0).normal(0.0, 0.1, label.shape) + (label > 0)
    return image, label


def test_volume_has_three_planes_and_a_column_per_map(case) -> None:
    image, label = case
    figure = overlay_figure(image, label, {"baseline": label, "distilled": label}, (1.0, 1.0, 1.0), CLASSES, "case 1")
    assert len(figure.axes) == 3 * 3
    assert [axes.get_title().split(":")[0] for axes in figure.axes[:3]] == ["label", "baseline", "distilled"]
    assert figure.get_suptitle() == "case 1"


def test_image_has_one_plane(case) -> None:
    image, label = case
    figure = overlay_figure(image[..., 10], label[..., 10], {"distilled": label[..., 10]}, (1.0, 1.0), CLASSES)
    assert len(figure.axes) == 2


def test_stack_of_few_slices_is_shown_in_its_own_plane_only(case) -> None:
    _, label = case
    assert [plane.name for plane in telling_planes(label[..., 8:13], [label[..., 8:13]], (1, 1, 8))] == ["axial"]


def test_slice_with_the_disagreement_is_chosen(case) -> None:
    _, label = case
    prediction = label.copy()
    prediction[:, :, 12] = 0
    axial = telling_planes(label, [prediction], (1, 1, 1))[0]
    assert (axial.name, axial.index) == ("axial", 12)


def test_slice_with_most_label_is_chosen_where_all_agree() -> None:
    label = np.zeros((20, 20, 20), dtype=np.uint8)
    label[5:8, 5:8, 3:17] = 1
    label[4:14, 4:14, 9] = 1
    assert telling_planes(label, [label], (1, 1, 1))[0].index == 9


def test_empty_label_shows_the_whole_slice() -> None:
    empty = np.zeros((20, 22, 24), dtype=np.uint8)
    plane = telling_planes(empty, [empty], (1, 1, 1))[0]
    assert plane.size_mm == (20, 22)


def test_panels_have_the_scale_of_the_spacing(case) -> None:
    image, label = case
    figure = overlay_figure(image, label, {"distilled": label}, (0.5, 0.5, 3.0), CLASSES)
    coronal = telling_planes(label, [label], (0.5, 0.5, 3.0))[1]
    left, right, bottom, top = figure.axes[2].images[0].get_extent()
    assert (right - left, bottom - top) == coronal.size_mm
    assert coronal.size_mm[1] == 3.0 * (coronal.window[1].stop - coronal.window[1].start)
    assert figure.axes[2].get_aspect() == 1.0


def test_anterior_is_up_and_the_first_axis_runs_to_the_right() -> None:
    label = np.zeros((20, 20, 20), dtype=np.uint8)
    label[10:13, 8, 10] = 1  # a bar ...
    label[12, 8:15, 10] = 1  # ... whose right end has a long arm to the front
    plane = telling_planes(label, [label], (1, 1, 1))[0]
    shown = plane.cut(label)
    rows, columns = np.nonzero(shown)
    assert plane.name == "axial"
    assert shown[rows.max(), columns.min() : columns.max() + 1].tolist() == [1, 1, 1]  # the bar is at the bottom
    assert shown[rows.min()].nonzero()[0].tolist() == [columns.max()]  # the arm rises at the right


def test_heads_give_the_dice_of_the_case(case) -> None:
    image, label = case
    prediction = label.copy()
    prediction[:, :, 5:10][label[:, :, 5:10] == 2] = 0  # half of the posterior part: Dice 2 * 0.5 / 1.5
    figure = overlay_figure(image, label, {"distilled": prediction}, (1, 1, 1), CLASSES)
    assert figure.axes[1].get_title() == "distilled: Dice 0.833\nanterior 1.000, posterior 0.667"
    assert dice_score(prediction, label, 2) == pytest.approx(2 / 3)
    assert dice_score(prediction, label, 7) is None


def test_errors_are_marked_by_kind(case) -> None:
    image, label = case
    prediction = label.copy()
    prediction[8:16, 6:14, 10] = 0  # missed
    prediction[8:16, 14:19, 10] = 1  # wrong class
    prediction[2:6, 6:14, 10] = 1  # extra
    figure = overlay_figure(image, label, {"distilled": prediction}, (1, 1, 1), CLASSES)
    colors = np.asarray(figure.axes[1].images[1].get_array())
    marked = colors[colors[..., 3] > 0]
    assert len(marked) == 64 + 40 + 32
    assert len(np.unique(marked, axis=0)) == 3
    assert len(figure.axes[0].images) == 1  # nothing is marked on the label


def test_legend_names_classes_and_error_kinds(case) -> None:
    image, label = case
    figure = overlay_figure(image, label, {"distilled": label}, (1, 1, 1), CLASSES)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        *("anterior", "posterior", "missed", "extra", "wrong class")
    ]


def test_thin_structures_are_filled_not_outlined() -> None:
    label = np.zeros((400, 400), dtype=np.uint8)
    label[50:350:40, 20:380] = 1
    image = label.astype(float)
    thin = overlay_figure(image, label, {"distilled": label}, (1, 1), {1: "vessel"}).axes[1].collections
    block = np.zeros_like(label)
    block[100:300, 100:300] = 1
    thick = overlay_figure(image, block, {"distilled": block}, (1, 1), {1: "organ"}).axes[1].collections
    assert thin[0].filled
    assert not thick[0].filled


def test_saving_writes_the_same_png_twice_without_pyplot(case, tmp_path: Path) -> None:
    image, label = case
    arguments = (image, label, {"distilled": label}, (1, 1, 1), CLASSES)
    first = save_overlay(tmp_path / "deep" / "a.png", *arguments, dpi=60)
    second = save_overlay(tmp_path / "deep" / "b.png", *arguments, dpi=60)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((1, 24, 30, 20))}, "without a channel axis"),
        ({"spacing_mm": (1, 1)}, "spacing_mm must be 3 positive sizes"),
        ({"spacing_mm": (1, 1, 0)}, "spacing_mm must be 3 positive sizes"),
        ({"predictions": {}}, "predictions is empty"),
        ({"predictions": {"label": np.zeros((24, 30, 20))}}, "cannot be named 'label'"),
        ({"predictions": {"distilled": np.zeros((24, 30, 19))}}, r"'distilled' has shape \(24, 30, 19\)"),
        ({"classes": {"1": "anterior"}}, "'label' holds label 2"),
    ],
)
def test_what_does_not_fit_is_named(case, changes: dict, message: str) -> None:
    image, label = case
    settings = {"predictions": {"distilled": label}, "spacing_mm": (1, 1, 1), "classes": CLASSES, "image": image}
    with pytest.raises(ValueError, match=message):
        overlay_figure(label=label, **{**settings, **changes})
