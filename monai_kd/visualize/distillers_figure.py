"""The figure of the distillers: the test Dice of every seed of every method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from monai_kd.visualize.curves import _grid
from monai_kd.visualize.distillers import ALONE, DISTILLERS_PROTOCOL, Study, method_label, study_of
from monai_kd.visualize.statistics import Arm, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["distillers_figure"]

# of a palette that color-blind readers tell apart; markers differ in shape and filling as well
_METHOD, _ALONE, _TEACHER, _RULE = "#0072b2", "#d55e00", "#4b5563", "#9ca3af"


def distillers_figure(records: Iterable[Record], protocol: str = DISTILLERS_PROTOCOL) -> Figure:
    """Draw the test Dice of every seed of every method, in the order of the table.

    A dot is a seed, a bar the mean of several, an open dot a method's only seed. The band is the mean ± SD of the
    student alone, the broken line the teacher.

    Raises:
        ValueError: no record of a distiller under this protocol.
    """
    study = study_of(records, protocol)
    if not study.methods:
        raise ValueError(f"no distiller is recorded under the protocol '{protocol}'; run benchmarks/experiments.py")
    arms = [*study.controls, *(method.arm for method in study.methods)]
    figure, (axes,) = _grid(1, "", widths=(1.8,), height=1.4 + 0.26 * len(arms))
    for arm in study.alone[:1]:
        _draw_band(axes, arm)
    for arm in study.teachers[:1]:
        for value in _dice(arm)[:1]:
            axes.axvline(value, color=_TEACHER, linewidth=1.4, linestyle="--", zorder=1)
    for row, arm in enumerate(arms):
        _draw_arm(axes, row, arm)
    if study.several and study.single:
        axes.axhline(len(arms) - len(study.single) - 0.5, color=_RULE, linewidth=0.8)
    axes.set_yticks(range(len(arms)), [method_label(arm, study) for arm in arms], fontsize=9)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.set_xlabel("test Dice, mean over classes and cases", fontsize=9)
    _legend(figure, study)
    return figure


def _dice(arm: Arm) -> list[float]:
    """The mean Dice of each seed that was scored."""
    return [value for record in arm.records if (value := record["summary"]["dice"]["mean"]) is not None]


def _draw_band(axes: Axes, alone: Arm) -> None:
    if (found := alone.summary("dice", "mean")) is None:
        return
    mean, sd = found
    axes.axvspan(mean - (sd or 0.0), mean + (sd or 0.0), color=_ALONE, alpha=0.14, linewidth=0, zorder=0)
    axes.axvline(mean, color=_ALONE, linewidth=1.2, zorder=1)


def _draw_arm(axes: Axes, row: int, arm: Arm) -> None:
    draw_seeds(axes, row, _dice(arm), _ALONE if arm.method == "baseline" else _METHOD, only=len(arm.records) == 1)


def draw_seeds(axes: Axes, row: int, values: Sequence[float], color: str, only: bool) -> None:
    """Draw a dot per seed and a bar for their mean, or an open dot for an only seed."""
    if only:
        axes.plot(values, [row] * len(values), "o", markersize=6, markerfacecolor="white", color=color, zorder=3)
        return
    axes.plot(values, [row] * len(values), "o", markersize=5.5, color=color, alpha=0.6, markeredgewidth=0, zorder=3)
    if values:
        mean = sum(values) / len(values)
        axes.plot([mean], [row], "|", markersize=14, markeredgewidth=2.2, color=color, zorder=2)


def _legend(figure: Figure, study: Study) -> None:
    from monai.utils import optional_import

    line, _ = optional_import("matplotlib.lines", name="Line2D")
    patch, _ = optional_import("matplotlib.patches", name="Patch")
    entries: list[Any] = []
    if any(len(arm.records) > 1 for arm in study.arms):
        entries.append(line([], [], marker="o", linestyle="", markersize=5.5, color=_METHOD, alpha=0.6, label="a seed"))
        mean: dict[str, Any] = {"marker": "|", "markersize": 12, "markeredgewidth": 2.2, "linestyle": ""}
        entries.append(line([], [], **mean, color=_METHOD, label="mean of seeds"))
    if study.single:
        only: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "linestyle": "", "markersize": 6}
        entries.append(line([], [], **only, color=_METHOD, label="only seed"))
    if study.alone:
        entries.append(patch(facecolor=_ALONE, alpha=0.3, label=f"{ALONE}, mean ± SD"))
    if study.teachers:
        entries.append(line([], [], color=_TEACHER, linewidth=1.4, linestyle="--", label="teacher"))
    figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False, fontsize=8)
