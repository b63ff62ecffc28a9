"""How trainings went, and which cases a distilled student wins: curves over epochs, and case against case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_kd.visualize.statistics import PairedDifference, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves_figure", "method_colors", "paired_figure", "save_figure"]

_STRIP = 0.35  # inches below the panels, for one row of a legend

_KNOWN_COLORS = {"teacher": "#6b7280", "baseline": "#d97706", "distilled": "#2563eb"}
_OTHER_COLORS = (
    *("#059669", "#c026d3", "#dc2626", "#0891b2", "#7c3aed"),
    *("#84cc16", "#78350f", "#f472b6", "#1e3a8a", "#a3a3a3"),
)
_GAIN, _LOSS = "#2563eb", "#d97706"
_MOST_NAMED_CASES = 40


def method_colors(methods: Iterable[str]) -> dict[str, str]:
    """One color a method: teacher, baseline and distilled always have theirs, the others follow in order."""
    others = (_OTHER_COLORS[index % len(_OTHER_COLORS)] for index in range(1000))
    return {name: _KNOWN_COLORS.get(name) or next(others) for name in dict.fromkeys(methods)}


def curves_figure(records: Sequence[Record], title: str = "") -> Figure:
    """Draw the loss, each of its terms and the validation Dice of several trainings against the epoch.

    A panel per quantity, a color per method, a thin line per seed and a thick one for the mean over the seeds of a
    method that reached the epoch. A dot marks the epoch whose weights were kept.

    Args:
        records: evaluation records; those whose ``training`` is null have no curves and are left out.
        title: line above the figure.

    Raises:
        ValueError: no record carries a training, or a training's curves are absent or of unequal length.
    """
    trained = [record for record in records if record["training"]]
    if not trained:
        raise ValueError("none of the records carries a training; curves come from the key 'training' of run.json")
    for record in trained:
        _check_curves(record)
    colors = method_colors(record["method"] for record in trained)
    panels = _panels(trained)
    figure, axes = _grid(len(panels), title)
    for panel, (name, place) in zip(axes, panels.items(), strict=True):
        for method, color in colors.items():
            series = [_series(record, place) for record in trained if record["method"] == method]
            _draw_method(panel, [pair for pair in series if pair], color)
        panel.set_title(name, loc="left", fontsize=10, fontweight="bold")
        panel.set_xlabel("epoch", fontsize=9)
    for record in trained:
        _mark_best(axes[-1], record, colors[record["method"]])
    _legend(figure, trained, colors)
    return figure


def paired_figure(difference: PairedDifference, a_name: str = "baseline", b_name: str = "distilled") -> Figure:
    """Draw two arms case by case: Dice against Dice, and the differences in order with their mean and interval.

    Args:
        difference: the comparison, see :func:`monai_kd.visualize.statistics.paired_difference`.
        a_name: name of the control.
        b_name: name of the treatment; points above the diagonal are cases that it segments better.
    """
    figure, (scatter, bars) = _grid(2, "", widths=(1.0, 1.55), height=3.9)
    a, b = (np.array(list(dice.values())) for dice in (difference.a_dice, difference.b_dice))
    colors = [_GAIN if better else _LOSS for better in b >= a]
    _draw_scatter(scatter, a, b, colors)
    scatter.set_xlabel(f"{a_name}, Dice", fontsize=9)
    scatter.set_ylabel(f"{b_name}, Dice", fontsize=9)
    wins = int((b > a).sum())
    scatter.set_title(f"{b_name} is better in {wins} of {len(a)} cases", loc="left", fontsize=10, fontweight="bold")
    _draw_differences(bars, difference)
    bars.set_ylabel(f"Dice, {b_name} minus {a_name}", fontsize=9)
    low, high = difference.interval
    head = f"mean {difference.mean:+.4f}  [{low:+.4f} to {high:+.4f}]: {difference.verdict}"
    bars.set_title(head, loc="left", fontsize=10, fontweight="bold")
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> Path:
    """Write a figure as a PNG, creating its folder, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return path


# ---------------------------------------------------------------- curves


def _check_curves(record: Record) -> None:
    training = record["training"]
    for key in ("best_epoch", "curves"):
        if key not in training:
            raise ValueError(f"{record['run_id']}: 'training' lacks '{key}'; known there: {', '.join(training)}")
    curves = training["curves"]
    missing = [key for key in ("epoch", "loss", "terms", "val_epoch", "val_mean_dice") if key not in curves]
    if missing:
        raise ValueError(
            f"{record['run_id']}: 'training.curves' lacks '{missing[0]}'; known there: {', '.join(curves)}"
        )
    lengths = {"loss": curves["loss"], **{f"terms.{name}": values for name, values in curves["terms"].items()}}
    pairs = [(name, values, "epoch") for name, values in lengths.items()]
    for name, values, x in [*pairs, ("val_mean_dice", curves["val_mean_dice"], "val_epoch")]:
        if len(values) != len(curves[x]):
            raise ValueError(
                f"{record['run_id']}: curve '{name}' has {len(values)} values for {len(curves[x])} in '{x}'"
            )


def _panels(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """Title and place in the curves: the whole loss, each term, the validation Dice.

    The whole loss is left out where every training has the one and same term.
    """
    of_each = [tuple(record["training"]["curves"]["terms"]) for record in records]
    terms = dict.fromkeys(name for names in of_each for name in names)
    alone = len(terms) == 1 and all(of_each)
    whole: dict[str, tuple[str, ...]] = {} if alone else {"loss, weighted sum": ("loss",)}
    return {
        **whole,
        **{f"term '{name}', unweighted": ("terms", name) for name in terms},
        "validation Dice, mean over classes": ("val_mean_dice",),
    }


def _series(record: Record, place: tuple[str, ...]) -> tuple[list[float], list[float]] | None:
    """The x and y of one training in one panel, a gap where a value was not finite; None if it has no such term."""
    curves = record["training"]["curves"]
    y = curves
    for key in place:
        if key not in y:
            return None
        y = y[key]
    x = curves["val_epoch" if place == ("val_mean_dice",) else "epoch"]
    return x, [float("nan") if value is None else value for value in y]


def _draw_method(axes: Axes, series: Sequence[tuple[list[float], list[float]]], color: str) -> None:
    width, alpha = (0.9, 0.4) if len(series) > 1 else (1.6, 1.0)
    for x, y in series:
        axes.plot(x, y, color=color, linewidth=width, alpha=alpha)
    if len(series) > 1:
        at_epoch: dict[float, list[float]] = {}
        for x, y in series:
            for epoch, value in zip(x, y, strict=True):
                at_epoch.setdefault(epoch, []).append(value)
        shared = sorted(epoch for epoch, values in at_epoch.items() if len(values) == len(series))
        axes.plot(shared, [float(np.mean(at_epoch[epoch])) for epoch in shared], color=color, linewidth=2.0)


def _mark_best(axes: Axes, record: Record, color: str) -> None:
    curves, best = record["training"]["curves"], record["training"]["best_epoch"]
    scores = dict(zip(curves["val_epoch"], curves["val_mean_dice"], strict=True))
    if (y := scores.get(best)) is not None:
        axes.plot([best], [y], marker="o", markersize=5, color=color, markeredgecolor="white", zorder=5)


def _legend(figure: Figure, records: Sequence[Record], colors: Mapping[str, str]) -> None:
    from monai.utils import optional_import

    line, _ = optional_import("matplotlib.lines", name="Line2D")
    handles = []
    for method, color in colors.items():
        n = sum(record["method"] == method for record in records)
        handles.append(line([], [], color=color, linewidth=2, label=f"{method} ({n} seed{'s' if n > 1 else ''})"))
    best: dict[str, Any] = {"marker": "o", "linestyle": "", "color": "#6b7280", "markersize": 5}
    handles.append(line([], [], **best, label="weights kept"))
    width, height = figure.get_size_inches()
    columns = max(1, int(width / (0.55 + 0.085 * max(len(handle.get_label()) for handle in handles))))  # at 9 points
    rows = -(-len(handles) // columns)
    if rows > 1:  # the strip below the panels has room for one
        extra = 0.19 * (rows - 1)
        strip = _STRIP + extra
        figure.set_size_inches(width, height + extra)
        layout: Any = figure.get_layout_engine()
        layout.set(rect=(0.0, strip / (height + extra), 1.0, 1.0 - strip / (height + extra)))
    figure.legend(handles=handles, loc="lower center", ncols=min(columns, len(handles)), frameon=False, fontsize=9)


# ---------------------------------------------------------------- case against case


def _draw_scatter(axes: Axes, a: Any, b: Any, colors: Sequence[str]) -> None:
    low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
    room = 0.06 * max(high - low, 0.01)
    limits = (max(0.0, low - room), min(1.0, high + room))
    axes.plot(limits, limits, color="#9ca3af", linewidth=1, linestyle="--", zorder=1)
    axes.scatter(a, b, c=list(colors), s=26, alpha=0.85, edgecolors="white", linewidths=0.6, zorder=2)
    axes.set(xlim=limits, ylim=limits, aspect="equal")


def _draw_differences(axes: Axes, difference: PairedDifference) -> None:
    ordered = sorted(difference.differences.items(), key=lambda item: item[1])
    values = [value for _, value in ordered]
    low, high = difference.interval
    axes.axhspan(low, high, color="#6b7280", alpha=0.25, linewidth=0, zorder=0)
    axes.axhline(difference.mean, color="#374151", linewidth=1.2, zorder=1)
    axes.axhline(0.0, color="#9ca3af", linewidth=1, linestyle="--", zorder=1)
    axes.bar(range(len(values)), values, color=[_GAIN if v >= 0 else _LOSS for v in values], width=0.75, zorder=2)
    axes.grid(False, axis="x")
    axes.set_xlim(-0.7, len(values) - 0.3)
    if len(values) <= _MOST_NAMED_CASES:
        axes.set_xticks(range(len(values)), [name for name, _ in ordered], rotation=90, fontsize=6)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(values)} cases, in order", fontsize=9)


def _grid(n: int, title: str, widths: Sequence[float] | None = None, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A light figure of ``n`` panels, at most three in a row, with a strip for the legend below."""
    from monai.utils import optional_import

    figure_class, _ = optional_import("matplotlib.figure", name="Figure")
    canvas, _ = optional_import("matplotlib.backends.backend_agg", name="FigureCanvasAgg")
    columns = min(n, 3) if n != 4 else 2
    rows = -(-n // columns)
    size = (3.6 * columns if widths is None else 3.9 * sum(widths), height * rows + (0.4 if widths is None else 0.0))
    figure = figure_class(figsize=size, facecolor="white", layout="constrained")
    canvas(figure)
    if title:
        figure.suptitle(title, fontsize=11)
    strip = _STRIP / size[1] if widths is None else 0.0
    figure.get_layout_engine().set(rect=(0.0, strip, 1.0, 1.0 - strip), w_pad=0.08, h_pad=0.08)
    grid = figure.add_gridspec(rows, columns, width_ratios=widths)
    axes = [figure.add_subplot(grid[index // columns, index % columns]) for index in range(n)]
    for panel in axes:
        panel.grid(True, color="#e5e7eb", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8, color="#9ca3af")
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color("#9ca3af")
    return figure, axes
