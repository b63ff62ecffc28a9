"""The figure of networks on one recipe: the test Dice of every seed, a panel per protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from monai_kd.visualize.curves import _grid
from monai_kd.visualize.distillers_figure import draw_seeds
from monai_kd.visualize.networks import by_protocol
from monai_kd.visualize.statistics import Arm, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["networks_figure"]

# of a palette that color-blind readers tell apart
_NETWORK, _CONTROLS = "#0072b2", ("#d55e00", "#009e73", "#4b5563")


def networks_figure(records: Iterable[Record], bundle: str, controls: Sequence[str] = ("baseline",)) -> Figure:
    """Draw the test Dice of every seed of every network, in the order of :func:`networks_table`.

    A dot is a seed, a bar the mean of several, an open dot a network's only seed. Controls have colors of their own.

    Raises:
        ValueError: no record of this bundle.
    """
    protocols = by_protocol(records, bundle, controls)
    if not protocols:
        raise ValueError(f"no record of the bundle '{bundle}'; run benchmarks/experiments.py")
    most = max(len(arms) for arms in protocols.values())
    figure, panels = _grid(len(protocols), "", height=1.2 + 0.28 * most)
    for axes, (name, arms) in zip(panels, protocols.items(), strict=True):
        for row, arm in enumerate(arms):
            values = [value for r in arm.records if (value := r["summary"]["dice"]["mean"]) is not None]
            draw_seeds(axes, row, values, _color(arm, controls), only=len(arm.records) == 1)
        axes.set_yticks(range(len(arms)), [arm.method for arm in arms], fontsize=8)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("test Dice, mean over classes", fontsize=8)
    _legend(figure, [arm for arms in protocols.values() for arm in arms])
    return figure


def _color(arm: Arm, controls: Sequence[str]) -> str:
    return _CONTROLS[controls.index(arm.method) % len(_CONTROLS)] if arm.method in controls else _NETWORK


def _legend(figure: Figure, arms: Sequence[Arm]) -> None:
    from monai.utils import optional_import

    line, _ = optional_import("matplotlib.lines", name="Line2D")
    entries: list[Any] = []
    if any(len(arm.records) > 1 for arm in arms):
        entries.append(
            line([], [], marker="o", linestyle="", markersize=5.5, color=_NETWORK, alpha=0.6, label="a seed")
        )
        mean: dict[str, Any] = {"marker": "|", "markersize": 12, "markeredgewidth": 2.2, "linestyle": ""}
        entries.append(line([], [], **mean, color=_NETWORK, label="mean of seeds"))
    if any(len(arm.records) == 1 for arm in arms):
        only: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "linestyle": "", "markersize": 6}
        entries.append(line([], [], **only, color=_NETWORK, label="only seed"))
    figure.legend(handles=entries, loc="lower center", ncols=len(entries), frameon=False, fontsize=8)
