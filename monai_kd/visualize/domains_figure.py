"""The figure of methods on several domains: the Dice of every seed, a panel per domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from monai_kd.visualize.curves import _grid
from monai_kd.visualize.domain_rows import DomainRow, domain_rows
from monai_kd.visualize.seed_panels import SeedRow, seed_panel, seeds_legend
from monai_kd.visualize.statistics import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["domains_figure"]


def domains_figure(
    records: Iterable[Record], bundle: str, domains: Mapping[str, str], controls: Sequence[str] = ("baseline",)
) -> Figure:
    """Draw the Dice of every seed on every domain, in the order of :func:`domains_table` and of the domains.

    A dot is a seed, a bar the mean of several, an open dot a method's only seed; a method has an empty row on a domain
    that it was not scored on. Controls have colors of their own. Each panel has a scale of its own.

    Args:
        records, bundle, domains, controls: see :func:`domains_table`.

    Raises:
        ValueError: no record of this bundle on a domain; else see :func:`domains_table`.
    """
    rows = domain_rows(records, bundle, domains, controls)
    if not rows:
        raise ValueError(f"no record of the bundle '{bundle}' under the protocols {', '.join(domains)}")
    panels = {protocol: [_row(row, protocol) for row in rows] for protocol in domains}
    figure, axes = _grid(len(panels), "", height=1.2 + 0.28 * len(rows))
    for panel, (protocol, title) in zip(axes, domains.items(), strict=True):
        scored = any(protocol in row.scored for row in rows)
        x_label = "Dice in the field of view, mean over images" if scored else "not scored"
        seed_panel(panel, panels[protocol], controls, title, x_label)
        if not scored:
            panel.set_xticks([])  # else a scale around 0
    seeds_legend(figure, [row for rows in panels.values() for row in rows if row.values])
    return figure


def _row(row: DomainRow, protocol: str) -> SeedRow:
    only = protocol in row.scored and len(row.scored[protocol].records) == 1
    return SeedRow(row.arm.method, row.label, row.dice(protocol), only)
