"""Panels of figures that show the score of every seed, a row per method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monai_kd.visualize.distillers_figure import draw_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SeedRow", "seed_panel", "seeds_legend"]

# of a palette that color-blind readers tell apart
_METHOD, _CONTROLS = "#0072b2", ("#d55e00", "#009e73", "#4b5563")


@dataclass(frozen=True)
class SeedRow:
    """One row of a panel: a method, the value of each seed that has one, and whether it has an only seed."""

    method: str
    label: str
    values: Sequence[float]
    only: bool


def seed_panel(axes: Axes, rows: Sequence[SeedRow], controls: Sequence[str], title: str, x_label: str) -> None:
    """Draw a dot per seed and a bar per mean, the first row on top; controls have colors of their own."""
    for position, row in enumerate(rows):
        draw_seeds(axes, position, row.values, _color(row.method, controls), only=row.only)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x_label, fontsize=8)


def seeds_legend(figure: Figure, rows: Sequence[SeedRow]) -> None:
    """Explain the markers that are there, in the strip below the panels."""
    from monai.utils import optional_import

    line, _ = optional_import("matplotlib.lines", name="Line2D")
    entries: list[Any] = []
    if any(not row.only for row in rows):
        entries.append(line([], [], marker="o", linestyle="", markersize=5.5, color=_METHOD, alpha=0.6, label="a seed"))
        mean: dict[str, Any] = {"marker": "|", "markersize": 12, "markeredgewidth": 2.2, "linestyle": ""}
        entries.append(line([], [], **mean, color=_METHOD, label="mean of seeds"))
    if any(row.only for row in rows):
        only: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "linestyle": "", "markersize": 6}
        entries.append(line([], [], **only, color=_METHOD, label="only seed"))
    if entries:
        figure.legend(handles=entries, loc="lower center", ncols=len(entries), frameon=False, fontsize=8)


def _color(method: str, controls: Sequence[str]) -> str:
    return _CONTROLS[controls.index(method) % len(_CONTROLS)] if method in controls else _METHOD
