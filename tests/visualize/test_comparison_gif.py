"""GIF of a comparison: how many frames, their size and palette, what each panel shows, what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

from PIL import Image

import monai_kd.visualize.comparison_gif as comparison_gif
from monai_kd.visualize import save_comparison_gif
from monai_kd.visualize.error_panels import EXTRA, MISSED
from monai_kd.visualize.gif_files import write_gif

SPACING_MM = (1.0, 1.0, 2.0)
CLASSES = {"0": "background", "1": "anterior", "2": "posterior"}


def label() -> np.ndarray:
    """Two blocks side by side in slices 4 to 7 of 12."""
    found = np.zeros((40, 36, 12), dtype=np.uint8)
    found[12:20, 10:24, 4:8] = 1
    found[20:28, 10:24, 4:8] = 2
    return found


def image() -> np.ndarray:
    """Gray everywhere, no two slices alike."""
    rng = np.random.default_rng(0)
    return rng.normal(100.0, 10.0, (40, 36, 12)) + 2.0 * np.arange(12)


def without_posterior() -> np.ndarray:
    found = label()
    found[20:] = 0
    return found


def with_too_much() -> np.ndarray:
    found = label()
    found[12:28, 24:30, 4:8] = 1
    return found


def save(path: Path, **changes: Any) -> Path:
    given: dict[str, Any] = {"predictions": {"student alone": without_posterior(), "distilled": label()}}
    given |= {
        "size": 480,
        "image": image(),
        "label": label(),
        "spacing_mm": SPACING_MM,
        "classes": CLASSES,
        "progress": False,
    }
    return save_comparison_gif(path, **{**given, **changes})


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        found = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            found.append(np.asarray(gif.convert("RGB")).astype(int))
    return found


def middle_frame(path: Path, **changes: Any) -> np.ndarray:
    """Draw slices 2, 5 and 8 and return the second, which holds both blocks."""
    return frames(save(path, max_frames=3, **changes))[1]


def columns(frame: np.ndarray, n_panels: int) -> list[np.ndarray]:
    """Return the parts of a frame that hold the panels and their heads; without legend and bar."""
    return [part[:-75] for part in np.array_split(frame, n_panels, axis=1)]


def tinted(part: np.ndarray, color: str) -> int:
    """Count pixels of a color that lies on gray with a share of 0.6."""
    rgb = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)])
    level = (part - 0.6 * rgb) / 0.4
    return int(((level.max(-1) - level.min(-1) < 12) & (level.min(-1) > -6) & (level.max(-1) < 261)).sum())


# ---- the file -------------------------------------------------------------------------------------------------------


def test_frames_are_the_slices_with_foreground_and_a_margin(tmp_path: Path) -> None:
    with Image.open(save(tmp_path / "new" / "a.gif")) as gif:
        assert gif.n_frames == 4 + 2 * 2
        assert gif.info["loop"] == 0
        assert gif.info["duration"] == 120  # 8 a second, in hundredths of a second


def test_many_slices_are_skipped_evenly_and_the_pace_is_as_asked(tmp_path: Path) -> None:
    with Image.open(save(tmp_path / "a.gif", max_frames=5, fps=5)) as gif:
        assert gif.n_frames == 4  # every second of 8
        assert gif.info["duration"] == 200


@pytest.mark.parametrize(("axis", "n_slices"), [("coronal", 14 + 2 * 2), ("sagittal", 16 + 2 * 2)])
def test_runs_along_the_axis_that_was_asked_for(tmp_path: Path, axis: str, n_slices: int) -> None:
    with Image.open(save(tmp_path / "a.gif", axis=axis, size=400, max_frames=7)) as gif:
        assert gif.n_frames == -(-n_slices // 3)


def test_volume_without_foreground_is_shown_whole(tmp_path: Path) -> None:
    empty = np.zeros_like(label())
    with Image.open(save(tmp_path / "a.gif", label=empty, predictions={"distilled": empty}, size=320)) as gif:
        assert gif.n_frames == 12


@pytest.mark.parametrize("size", [400, 700])
def test_longest_side_is_as_asked(tmp_path: Path, size: int) -> None:
    with Image.open(save(tmp_path / "a.gif", size=size, max_frames=1)) as gif:
        assert gif.size[0] == pytest.approx(size, abs=2)
        assert gif.size[1] < size


def test_tall_slices_stay_within_the_size(tmp_path: Path) -> None:
    with Image.open(save(tmp_path / "a.gif", spacing_mm=(1.0, 12.0, 1.0), size=600, max_frames=1)) as gif:
        assert gif.size[1] == pytest.approx(600, abs=2)
        assert gif.size[0] <= 600


def test_all_frames_have_one_palette(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gif", max_frames=3)
    with Image.open(path) as gif:
        assert gif.mode == "P"
        allowed = {tuple(color) for color in np.reshape(gif.getpalette(), (-1, 3)).tolist()}
    assert b"\x21\xf9" in path.read_bytes()
    for frame in frames(path):
        assert {tuple(color) for color in np.unique(frame.reshape(-1, 3), axis=0).tolist()} <= allowed


def test_same_gif_is_written_twice_without_pyplot(tmp_path: Path) -> None:
    first, second = (save(tmp_path / f"{name}.gif", max_frames=2) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


# ---- what is shown --------------------------------------------------------------------------------------------------


def test_panel_of_a_map_changes_with_the_map_and_others_do_not(tmp_path: Path) -> None:
    one, two = (
        middle_frame(tmp_path / f"{name}.gif", predictions={"alone": found, "distilled": label()})
        for name, found in (("a", without_posterior()), ("b", (label() > 0).astype(int)))
    )
    same = [np.array_equal(a, b) for a, b in zip(columns(one, 4), columns(two, 4), strict=True)]
    assert same == [True, True, False, True]


def test_missed_and_extra_areas_have_their_colors_where_they_are(tmp_path: Path) -> None:
    predictions = {"misses": without_posterior(), "adds": with_too_much(), "right": label()}
    middle = middle_frame(tmp_path / "a.gif", predictions=predictions, size=800)
    of_panels = columns(middle, 5)
    missed = [tinted(part, MISSED) for part in of_panels]
    extra = [tinted(part, EXTRA) for part in of_panels]
    assert [count > 500 for count in missed] == [False, False, True, False, False]
    assert [count > 500 for count in extra] == [False, False, False, True, False]
    assert missed[4] == extra[4] == 0


def test_truth_is_filled_and_the_image_is_bare(tmp_path: Path) -> None:
    middle = middle_frame(tmp_path / "a.gif")
    colored = [(np.ptp(part, axis=-1) > 40).mean() for part in columns(middle, 4)]
    assert colored[0] == 0
    assert colored[1] > 0.1


def test_slices_differ_and_the_bar_grows_with_the_place_in_the_volume(tmp_path: Path) -> None:
    shown = frames(save(tmp_path / "a.gif", max_frames=4))
    lengths = [max((np.abs(row - (0x4C, 0xC9, 0xF0)).sum(-1) < 40).sum() for row in frame[-75:]) for frame in shown]
    track = lengths[0] / 3 * 12  # the first frame is slice 2 of 0 to 11, and every second follows
    assert lengths == pytest.approx([track * done / 12 for done in (3, 5, 7, 9)], abs=4)


def test_voxels_have_the_shape_of_the_spacing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = []
    build = comparison_gif._stage
    monkeypatch.setattr(comparison_gif, "_stage", lambda *given: stages.append(build(*given)) or stages[-1])
    save(tmp_path / "a.gif", spacing_mm=(1.0, 1.0, 6.0), axis="coronal", max_frames=1)
    panel = stages[0].panels[0]
    left, right, bottom, top = panel.images[0].get_extent()
    # 16 columns and 4 slices of foreground, with margins of 0.35 of 16, and of 4, the smallest
    assert (right - left, bottom - top) == (16 + 2 * 6, 6.0 * (4 + 2 * 4))
    assert panel.bbox.width / panel.bbox.height == pytest.approx(28 / 72)


def test_heads_name_every_panel_and_have_the_dice_of_the_volume(tmp_path: Path, monkeypatch) -> None:
    stages = []
    build = comparison_gif._stage
    monkeypatch.setattr(comparison_gif, "_stage", lambda *given: stages.append(build(*given)) or stages[-1])
    half = label()
    half[20:, :17] = 0  # half of the posterior part: Dice 2 * 0.5 / 1.5
    save(
        tmp_path / "a.gif",
        predictions={"student alone": half, "distilled": label()},
        title="case 1",
        size=900,
        max_frames=1,
    )
    texts = [text.get_text() for text in stages[0].figure.texts]
    assert [text for text in texts if text in ("image", "truth", "student alone", "distilled", "case 1")] == [
        *("image", "truth", "student alone", "distilled", "case 1")
    ]
    assert [text for text in texts if text.startswith("Dice")] == ["Dice 0.833", "Dice 1.000"]
    assert "anterior 1.000, posterior 0.667" in texts
    in_panels = [[text.get_text() for text in panel.texts] for panel in stages[0].panels]
    assert in_panels[0][:4] == ["L", "R", "A", "P"]
    assert in_panels[2:] == [["slice Dice -"], ["slice Dice -"]]  # the only frame is the margin's
    assert [text.get_text() for text in stages[0].figure.legends[0].get_texts()] == [
        *("anterior", "posterior", "missed", "extra", "wrong class")
    ]


def test_window_sets_black_and_white(tmp_path: Path) -> None:
    dark = frames(save(tmp_path / "a.gif", window=(200, 300), max_frames=1))[0]
    bright = frames(save(tmp_path / "b.gif", window=[0, 50], max_frames=1))[0]
    assert columns(dark, 4)[0].mean() < 40 < 100 < columns(bright, 4)[0].mean()


def test_each_axis_of_a_thin_volume_can_be_run_through(tmp_path: Path) -> None:
    stack = {"image": image()[..., 5:8], "label": label()[..., 5:8], "predictions": {"distilled": label()[..., 5:8]}}
    for axis in ("axial", "coronal", "sagittal"):
        path = save(tmp_path / f"{axis}.gif", **stack, spacing_mm=(1, 1, 8), axis=axis, max_frames=2, size=400)
        assert len(frames(path)) == 2


def test_six_maps_fit_with_names_of_any_length(tmp_path: Path) -> None:
    maps = {f"a rather long name of number {number}": label() for number in range(6)}
    with Image.open(save(tmp_path / "a.gif", predictions=maps, size=800, max_frames=1)) as gif:
        assert gif.size[0] == pytest.approx(800, abs=2)


# ---- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": image()[None]}, r"image must be \(H, W, D\), a volume without a channel axis, got shape \(1, 40"),
        ({"image": image()[..., 0]}, r"image must be \(H, W, D\)"),
        ({"spacing_mm": (1, 1)}, "spacing_mm must be 3 positive sizes"),
        ({"spacing_mm": (1, 1, 0)}, "spacing_mm must be 3 positive sizes"),
        ({"predictions": {}}, "predictions is empty"),
        ({"predictions": {str(n): label() for n in range(7)}}, r"predictions has 7 maps, \['0', .*; at most 6 fit"),
        ({"predictions": {"truth": label()}}, "cannot be named 'truth'"),
        ({"predictions": {"image": label()}}, "cannot be named 'image'; that panel shows the image"),
        ({"predictions": {"distilled": label()[..., :11]}}, r"'distilled' has shape \(40, 36, 11\)"),
        ({"label": label()[..., :11]}, r"'truth' has shape \(40, 36, 11\), the image has \(40, 36, 12\)"),
        ({"classes": {"1": "anterior"}}, r"'truth' holds label 2, which classes does not name; known: \[1\]"),
        ({"axis": "oblique"}, "axis is 'oblique'; known: axial, coronal, sagittal"),
        ({"max_frames": 0}, "max_frames is 0; it must be 1 or more"),
        ({"fps": 0}, "fps is 0; it must be above 0 and at most 50"),
        ({"fps": 60}, "fps is 60"),
        ({"size": 3000}, "size is 3000; a GIF's longest side is 120 to 2000 pixels"),
        ({"size": 399}, "size is 399; 4 panels side by side need 400 pixels or more"),
        ({"window": (240, -160)}, "window is .*; it must be two rising gray values"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "a.gif", **changes)
    assert list(tmp_path.iterdir()) == []


def test_maps_are_checked_before_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="predictions is empty"):
        save(tmp_path / "a.gif", predictions={}, axis="oblique", fps=0)
    with pytest.raises(ValueError, match="axis is 'oblique'"):
        save(tmp_path / "a.gif", axis="oblique", fps=0, size=1)


def test_progress_bar_can_be_switched_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.gif", max_frames=1)
    assert capsys.readouterr().err == ""
    save(tmp_path / "a.gif", max_frames=1, progress=True)
    assert "frame" in capsys.readouterr().err


def test_palette_has_every_solid_color_and_many_levels_of_each_fill(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 200)[None, :, None]
    red, lime = np.array([255.0, 45.0, 85.0]), np.array([163.0, 230.0, 53.0])
    frame = np.concatenate([np.broadcast_to(lime, (4, 200, 3)), 0.6 * red + 0.4 * ramp.repeat(4, 0)]).astype(np.uint8)
    write_gif(tmp_path / "a.gif", [frame], 10.0, [("#a3e635", 1.0), ("#ff2d55", 0.6)])
    found = frames(tmp_path / "a.gif")[0]
    assert np.abs(found - frame).max() <= 3
    assert len(np.unique(found[4:].reshape(-1, 3), axis=0)) > 40
