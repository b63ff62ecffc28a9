"""The tables of what the Distill Depth Shift Module costs, from docs/results/depth_shift.json alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_kd.visualize.measured import measured_markdown
from monai_kd.visualize.statistics import _cpu_text

__all__ = ["depth_shift_markdown", "depth_shift_table"]

MAIN = "channels-last"  # the layout in which the network runs
# pass and what it is in words; the aim for the layout above
_PASSES = {"forward": "forward", "forward_backward": "forward + backward"}
SPEEDUP_AIMS = {"forward": 2.0, "forward_backward": 1.8}
CONV2D_AIM = 1.15  # times a plain 2-D convolution at most, where all channels take part
_LAYOUTS = ("NCHW", "channels-last", "volume", "volume channels-last")


def depth_shift_table(path: str | Path) -> str:
    """Return the Markdown tables of what ``benchmarks/depth_shift.py`` measured; a sentence if there is no record.

    Args:
        path: the JSON file: ``block``, ``network`` and ``variants``, each of which may be missing.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    return measured_markdown(path, "depth shift costs", depth_shift_markdown)


def depth_shift_markdown(record: Mapping[str, Any]) -> str:
    """Return the tables of one record and their notes."""
    parts = [make(record[name]) for name, make in _PARTS.items() if name in record]
    if not parts:
        raise ValueError(f"it has none of {', '.join(_PARTS)}")
    return "\n\n".join([*parts, _origin(record)])


# ---- one exchange ---------------------------------------------------------------------------------------------------


def _block(sizes: Sequence[Mapping[str, Any]]) -> str:
    titles = ["one exchange", "literal, ms", *(f"ours, {layout}" for layout in _LAYOUTS), "to conv2d", "conv3d"]
    rows = [_block_row(size, which) for which in _PASSES for size in sizes]
    notes = [
        *(_speedup_note(sizes, which) for which in _PASSES),
        *_conv2d_notes([size for size in sizes if size["alpha"] == 1]),
        "- Ours: how many times as fast as the literal form, median over the rounds and 10th to 90th percentile. To "
        f"conv2d: the time of ours, {MAIN}, over that of a plain 3x3 convolution of all channels in the same layout. "
        "Conv3d: how many times as fast as the literal form a plain 3x3x3 convolution is, in its faster layout.",
    ]
    return "\n".join([*_table(titles, rows, left=1), "", *notes])


def _block_row(size: Mapping[str, Any], which: str) -> list[str]:
    forms = size[which]
    space = max(_median(entry["speedup"]) for name, entry in forms.items() if name.startswith("conv3d "))
    return [
        f"D{size['depth']} C{size['channels']} {size['in_plane']}², alpha {size['alpha']:g}, {_PASSES[which]}",
        f"{forms['literal']['wall_ms']:.1f}",
        *(_range(forms[f"ours {layout}"]["speedup"]) for layout in _LAYOUTS),
        _range(forms[f"ours {MAIN}"]["to_conv2d"]),
        f"{space:.2f}",
    ]


def _speedup_note(sizes: Sequence[Mapping[str, Any]], which: str) -> str:
    means = {layout: _mean(sizes, which, f"ours {layout}", "speedup") for layout in _LAYOUTS}
    aim = SPEEDUP_AIMS[which]
    others = ", ".join(f"{layout} {mean:.2f}" for layout, mean in means.items() if layout != MAIN)
    best = [max(_median(size[which][f"ours {layout}"]["speedup"]) for layout in _LAYOUTS) for size in sizes]
    fastest = math.exp(sum(map(math.log, best)) / len(best))
    return (
        f"- {_PASSES[which].capitalize()}, geometric mean over the sizes: ours, {MAIN}, is {means[MAIN]:.2f} times as "
        f"fast as the literal form; aim: at least {aim:g}, {_verdict(means[MAIN] >= aim)}. {others}; in the fastest "
        f"layout of each size {fastest:.2f}."
    )


def _conv2d_notes(sizes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not sizes:
        return
    means = {
        (which, layout): _mean(sizes, which, f"ours {layout}", "to_conv2d") for which in _PASSES for layout in _LAYOUTS
    }
    forward = means["forward", MAIN]
    yield (
        f"- Against conv2d in the same layout, geometric mean over the sizes of alpha 1: {MAIN} takes {forward:.2f} "
        f"times its time in forward; aim: at most {CONV2D_AIM:g}, {_verdict(forward <= CONV2D_AIM)}; "
        f"{means['forward_backward', MAIN]:.2f} in forward + backward. NCHW: {means['forward', 'NCHW']:.2f} and "
        f"{means['forward_backward', 'NCHW']:.2f}."
    )


def _mean(sizes: Sequence[Mapping[str, Any]], which: str, form: str, what: str) -> float:
    """Return the geometric mean of the medians over the sizes."""
    return math.exp(sum(math.log(_median(size[which][form][what])) for size in sizes) / len(sizes))


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


# ---- whole networks -------------------------------------------------------------------------------------------------


def _network(found: Mapping[str, Any]) -> str:
    titles = ["network", "parameters", "forward, ms", "times as fast", "training step, ms", "times as fast"]
    rows = [
        [name, f"{entry['parameters']:,}", *(cell for which in ("forward", "step") for cell in _timed(entry, which))]
        for name, entry in found["networks"].items()
    ]
    main = {entry["reference"] for name, entry in found["networks"].items() if "U-Net" in name}
    notes = [
        f"- One volume of {_shape(found['shape'])}, float32. Times as fast: as the literal network of the same alpha; "
        f"for the other U-Nets, {', '.join(sorted(main))}.",
        f"- 3-D U-Net: {found['space_network']}. 2-D U-Net: ours without exchange.",
    ]
    return "\n".join([*_table(titles, rows, left=1), "", *notes])


def _timed(entry: Mapping[str, Any], which: str) -> tuple[str, str]:
    return f"{entry[which]['wall_ms']:.0f}", _range(entry[which]["speedup"])


# ---- variants -------------------------------------------------------------------------------------------------------


def _variants(volumes: Sequence[Mapping[str, Any]]) -> str:
    titles = ["variant", "slices", "forward, ms", "time ratio", "error", "step, ms", "time ratio", "error"]
    rows = [
        [name, str(found["shape"][2]), *(cell for which in ("forward", "step") for cell in _variant(entry, which))]
        for found in volumes
        for name, entry in found["variants"].items()
    ]
    notes = [
        "- Our network with alpha 0.5, channels-last. Time ratio: to float32, below 1 is faster. Error: norm of the "
        "difference from float32 over the norm, of the output and of the gradient.",
        *_remarks(volumes),
    ]
    return "\n".join([*_table(titles, rows, left=1), "", *notes])


def _variant(entry: Mapping[str, Any], which: str) -> tuple[str, str, str]:
    if "skipped" in entry:
        return "skipped", "", ""
    if which not in entry:
        return "", "", ""
    found = entry[which]
    return f"{found['wall_ms']:.0f}", _range(found["time_ratio"]), f"{found['error']:.1e}" if found["error"] else "0"


def _remarks(volumes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for found in volumes:
        for name, entry in found["variants"].items():
            if "skipped" in entry:
                yield f"- Skipped {name}: {entry['skipped']}."
            elif name == "torch.compile":
                seconds = {which: entry[which]["first_call_s"] for which in ("forward", "step")}
                yield (
                    f"- `torch.compile` took {seconds['forward']:.0f} s for the first forward pass and "
                    f"{seconds['step']:.0f} s for the first gradient, which no time above contains."
                )
            elif name == "memory retained":
                faults = [each["forward"]["page_faults"] for each in (entry, found["variants"]["float32"])]
                yield (
                    f"- Memory retained, {found['shape'][2]} slices: {faults[0]:,} page faults in a forward pass "
                    f"instead of {faults[1]:,}."
                )


# ---- common ---------------------------------------------------------------------------------------------------------

_PARTS: dict[str, Callable[[Any], str]] = {"block": _block, "network": _network, "variants": _variants}


def _origin(record: Mapping[str, Any]) -> str:
    device = record["device"]
    machine = _cpu_text(device) if device["type"] == "cpu" else device["name"]
    load = record["load_before"]
    busy = "" if load is None else f" Load average before it began: {load:.1f}."
    trial = " Tiny sizes, a trial of the machinery: no result." if record["quick"] else ""
    return (
        f"- Median wall time of {record['rounds']} rounds on {machine}, all in turn; ours was found equal to the "
        f"literal form in values and gradients before.{busy}{trial}"
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    rule = ["---"] * left + ["---:"] * (len(titles) - left)
    return ["| " + " | ".join(row) + " |" for row in (titles, rule, *rows)]


def _median(ratio: Mapping[str, Mapping[str, float]]) -> float:
    return ratio["wall"]["median"]


def _range(ratio: Mapping[str, Mapping[str, float]]) -> str:
    wall = ratio["wall"]
    if wall["low"] == wall["high"] == 1:  # of what the others are compared with
        return "1"
    return f"{wall['median']:.2f} ({wall['low']:.2f} to {wall['high']:.2f})"


def _shape(shape: Sequence[int]) -> str:
    return f"{shape[2]} slices of {shape[3]} x {shape[4]}"
