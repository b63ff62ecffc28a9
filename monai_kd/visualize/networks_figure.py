"""The figure of networks on one recipe: the test Dice of every seed, a panel per protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from monai_kd.visualize.curves import _grid
from monai_kd.visualize.networks import by_protocol
from monai_kd.visualize.seed_panels import SeedRow, seed_panel, seeds_legend
from monai_kd.visualize.statistics import Arm, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["networks_figure"]


def networks_figure(records: Iterable[Record], bundle: str, controls: Sequence[str] = ("baseline",)) -> Figure:
    """Draw the test Dice of every seed of every network, in the order of :func:`networks_table`.

    A dot is a seed, a bar the mean of several, an open dot a network's only seed. Controls have colors of their own.

    Raises:
        ValueError: no record of this bundle.
    """
    protocols = by_protocol(records, bundle, controls)
    if not protocols:
        raise ValueError(f"no record of the bundle '{bundle}'; run benchmarks/experiments.py")
    panels = {name: [_row(arm) for arm in arms] for name, arms in protocols.items()}
    figure, axes = _grid(len(panels), "", height=1.2 + 0.28 * max(map(len, panels.values())))
    for panel, (name, rows) in zip(axes, panels.items(), strict=True):
        seed_panel(panel, rows, controls, name, "test Dice, mean over classes")
    seeds_legend(figure, [row for rows in panels.values() for row in rows])
    return figure


def _row(arm: Arm) -> SeedRow:
    values = [value for r in arm.records if (value := r["summary"]["dice"]["mean"]) is not None]
    return SeedRow(arm.method, arm.method, values, only=len(arm.records) == 1)
