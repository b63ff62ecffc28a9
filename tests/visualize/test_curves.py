"""Curves of several trainings in one figure, and cases against cases."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from records import arm, make_record

from monai_kd.visualize.curves import curves_figure, method_colors, paired_figure, save_figure
from monai_kd.visualize.statistics import paired_difference

DICE = [(0.8, 0.7, 0.9)] * 3


def test_panel_per_term_and_one_for_validation() -> None:
    figure = curves_figure([*arm("baseline", DICE), *arm("distilled", DICE)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "loss, weighted sum",
        "term 'seg', unweighted",
        "term 'soft', unweighted",
        "validation Dice, mean over classes",
    ]


def test_single_term_is_not_drawn_twice() -> None:
    assert len(curves_figure(arm("baseline", DICE)).axes) == 2


def test_training_without_terms_shows_its_loss_beside_one_with_a_term() -> None:
    plain = make_record("teacher")
    plain["training"]["curves"]["terms"] = {}
    figure = curves_figure([plain, make_record("baseline")])
    assert [len(axes.lines) for axes in figure.axes[:2]] == [2, 1]


def test_value_that_was_not_finite_is_a_gap() -> None:
    record = make_record("baseline")
    record["training"]["curves"]["terms"]["seg"][3] = None
    line = curves_figure([record]).axes[0].lines[0]
    assert [index for index, value in enumerate(line.get_ydata()) if math.isnan(value)] == [3]


def test_line_per_seed_and_one_for_their_mean() -> None:
    records = arm("distilled", DICE)
    figure = curves_figure(records)
    soft = figure.axes[2].lines
    assert len(soft) == 3 + 1
    first = [record["training"]["curves"]["terms"]["soft"][0] for record in records]
    assert soft[-1].get_ydata()[0] == pytest.approx(sum(first) / 3)


def test_term_that_a_training_lacks_has_no_line_of_it() -> None:
    figure = curves_figure([make_record("baseline"), make_record("distilled")])
    assert [len(axes.lines) for axes in figure.axes[:3]] == [2, 2, 1]


def test_kept_weights_are_marked() -> None:
    record = make_record("distilled")
    dots = [line for line in curves_figure([record]).axes[-1].lines if line.get_marker() == "o"]
    assert [list(dot.get_xdata()) for dot in dots] == [[55]]


def test_mean_covers_only_epochs_that_every_seed_reached() -> None:
    records = arm("baseline", DICE[:2])
    curves = records[1]["training"]["curves"]
    for values in (curves["epoch"], curves["loss"], curves["terms"]["seg"]):
        del values[30:]
    assert max(curves_figure(records).axes[0].lines[-1].get_xdata()) == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("curves"), "evaluate-distilled-seed0-.*'training' lacks 'curves'"),
        (lambda t: t["curves"].pop("terms"), "'training.curves' lacks 'terms'"),
        (lambda t: t["curves"]["terms"]["soft"].pop(), "curve 'terms.soft' has 59 values for 60 in 'epoch'"),
        (lambda t: t["curves"]["val_mean_dice"].pop(), "curve 'val_mean_dice' has 11 values for 12 in 'val_epoch'"),
    ],
)
def test_curves_that_do_not_fit_are_named(change, message: str) -> None:
    record = make_record("distilled")
    change(record["training"])
    with pytest.raises(ValueError, match=message):
        curves_figure([record])


def test_records_without_training_are_an_error() -> None:
    with pytest.raises(ValueError, match="none of the records carries a training"):
        curves_figure([make_record("distilled", curves=False)])


def test_methods_keep_their_colors_and_others_differ() -> None:
    assert len(set(method_colors(["teacher", "baseline", "distilled", *"abcdefgh"]).values())) == 11
    colors = method_colors(["dkd", "distilled", "cwd"])
    assert len(set(colors.values())) == 3
    assert colors["distilled"] == method_colors(["distilled"])["distilled"]


def test_paired_plot_shows_every_case_in_order_of_its_difference() -> None:
    a, b = arm("baseline", [(0.8, 0.7, 0.9)]), arm("distilled", [(0.81, 0.75, 0.88)])
    figure = paired_figure(paired_difference(a, b))
    scatter, bars = figure.axes
    assert scatter.get_title(loc="left") == "distilled is better in 2 of 3 cases"
    assert len(scatter.collections[0].get_offsets()) == 3
    heights = [bar.get_height() for bar in bars.patches if bar.get_width() == 0.75]
    assert heights == pytest.approx([-0.02, 0.01, 0.05])
    assert [tick.get_text() for tick in bars.get_xticklabels()] == [f"hippocampus_00{index}" for index in (2, 0, 1)]


def test_figure_is_saved_as_the_same_png(tmp_path: Path) -> None:
    figure = curves_figure(arm("baseline", DICE))
    one, two = (save_figure(figure, tmp_path / "new" / name, dpi=50).read_bytes() for name in ("a.png", "b.png"))
    assert one == two
    assert one.startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_legend_of_many_methods_lies_within_the_figure_and_below_its_panels(count: int) -> None:
    figure = curves_figure([make_record(f"a_method_with_a_long_name_{number}") for number in range(count)])
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    lowest = min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert box.y0 >= 0
    assert box.y1 <= lowest + 1
