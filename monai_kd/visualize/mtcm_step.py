"""The tables of what a training step of MTCM-KD costs, from docs/results/mtcm_step.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_kd.visualize.measured import measured_markdown
from monai_kd.visualize.statistics import _cpu_text

__all__ = ["mtcm_step_markdown", "mtcm_step_table"]

# how many times as fast as the literal joint step
JOINT_AIM, PRETRAINED_AIM = 1.5, 2.0
_LITERAL = "literal"
_WORDS = {
    "literal": "literal, joint",
    "joint": "ours, joint",
    "pretrained": "ours, pretrained teachers",
    "channels_last": "channels-last",
}
_MEMORY = {"kept": "memory kept", "returned": "memory given back"}
_PARTS = {
    "softmax": "supervised loss: three softmaxes, one-hot labels; one softmax",
    "divergence": "distillation: a divergence per teacher; one to their mixture",
    "dice": "Dice of the teachers: loops over slices; counts",
}


def mtcm_step_table(path: str | Path) -> str:
    """Return the Markdown tables of what ``benchmarks/mtcm_step.py`` measured; a sentence if there is no record.

    Args:
        path: the JSON file.

    Raises:
        ValueError: the file is no such record; names the file.
    """
    return measured_markdown(path, "steps of MTCM-KD", mtcm_step_markdown)


def mtcm_step_markdown(record: Mapping[str, Any]) -> str:
    """Return the tables of one record, steps and their parts, and their notes."""
    steps = _table(["step", *_titles(record)], _step_rows(record))
    titles = ["part: literal; ours", "literal, ms", "ours, ms", "times as fast", "kept for backward, MB", "ours"]
    parts = _table(titles, [_part_row(name, found) for name, found in record["parts"].items()])
    return "\n\n".join(["\n".join([*steps, "", *_step_notes(record)]), "\n".join([*parts, "", _part_note(record)])])


# ---- whole steps ----------------------------------------------------------------------------------------------------


def _titles(record: Mapping[str, Any]) -> Iterator[str]:
    for memory in record["memory"]:
        yield f"{_MEMORY[memory]}: s"
        yield from ("times as fast", "peak GB")
    yield "GFLOP/s"


def _step_rows(record: Mapping[str, Any]) -> Iterator[list[str]]:
    first = next(iter(record["memory"]))
    for name in record["memory"][first]:
        cells = [cell for found in record["memory"].values() for cell in _cells(found.get(name), name)]
        rate = _gflop(record, name) / record["memory"][first][name]["seconds"]["median"]
        yield [_words(name), *cells, f"{rate:.0f}"]


def _cells(entry: Mapping[str, Any] | None, name: str) -> tuple[str, str, str]:
    if entry is None:
        return "", "", ""
    times = "1" if name == _LITERAL else _range(entry["speedup"], entry["runs"])
    star = " \\*" if entry["emulated"] else ""
    return f"{_range(entry['seconds'], entry['runs'])}{star}", times, f"{entry['peak_mb']['median'] / 1000:.2f}"


def _words(name: str) -> str:
    return ", ".join(_WORDS.get(word, word) for word in name.split())


def _gflop(record: Mapping[str, Any], name: str) -> float:
    mode = "pretrained" if name.startswith("pretrained") else "joint"
    return float(record["gflop"][mode])


def _step_notes(record: Mapping[str, Any]) -> Iterator[str]:
    device, gflop = record["device"], record["gflop"]
    size = " x ".join([str(record["size"])] * 3)
    yield (
        f"- One batch of one cube of {size}, student and three teachers of {record['network']['parameters']:,} "
        f"parameters each, float32 unless said; {_cpu_text(device)}. Median, in brackets least and most, of "
        f"{record['rounds']} rounds, all in turn, each step in a process of its own after a first one. Load average "
        f"before: {record['load_before']:.1f}."
    )
    yield (
        "- Times as fast: as the literal step with the same handling of memory, round by round. Memory kept: glibc "
        "keeps what was freed (`MALLOC_MMAP_THRESHOLD_` and others, as our experiments are run). Peak: largest "
        "resident size above that before the first step, without the weights, with gradients and Adam's moments."
    )
    yield (
        f"- Gradients against the literal step's: at most {_worst_error(record):.1e} apart in float32, relative."
        f"{_bfloat16(record)}"
    )
    rate = record["matrix_gflops"]
    yield (
        f"- Arithmetic: {gflop['forward']:.3g} GFLOP forward and {gflop['backward']:.3g} backward per network; a joint "
        f"step {gflop['joint']:.4g}, with pretrained teachers {gflop['pretrained']:.4g}, so "
        f"{gflop['joint'] / gflop['pretrained']:.2f} times as fast by that alone. A plain float32 matrix product runs "
        f"at {rate:.0f} GFLOP/s here: {gflop['joint'] / rate:.1f} and {gflop['pretrained'] / rate:.1f} s. GFLOP/s of "
        f"the table: {_MEMORY[next(iter(record['memory']))]}."
    )
    yield _aim(record, "joint", JOINT_AIM, "joint step, with bfloat16 where the CPU multiplies it")
    yield _aim(record, "pretrained", PRETRAINED_AIM, "step with pretrained teachers")


def _worst_error(record: Mapping[str, Any]) -> float:
    return max(
        entry["gradient_error"]
        for found in record["memory"].values()
        for name, entry in found.items()
        if "bfloat16" not in name
    )


def _bfloat16(record: Mapping[str, Any]) -> str:
    found = record["memory"]["kept"]
    errors = [entry["gradient_error"] for name, entry in found.items() if "bfloat16" in name]
    if not errors:
        return ""
    how = (
        "" if record["bfloat16_in_hardware"] else " \\* This CPU does not multiply bfloat16: emulated, one first step."
    )
    return f" bfloat16: {max(errors):.1e}.{how}"


def _aim(record: Mapping[str, Any], mode: str, aim: float, words: str) -> str:
    """Say which of a mode's steps is the fastest in the median, emulated ones aside, and whether that is enough."""
    medians = {
        (memory, name): entry["speedup"]["median"]
        for memory, found in record["memory"].items()
        for name, entry in found.items()
        if name.split()[0] == mode and not entry["emulated"]
    }
    memory, name = max(medians, key=lambda key: medians[key])
    best = medians[memory, name]
    verdict = "reached" if best >= aim else "missed"
    return (
        f"- Aim, {words}: at least {aim:g} times as fast as the literal step; {verdict}: {best:.2f}, "
        f"{_words(name)}, {_MEMORY[memory]}."
    )


# ---- parts ----------------------------------------------------------------------------------------------------------


def _part_row(name: str, found: Mapping[str, Any]) -> list[str]:
    kept, speedup = found["retained_bytes"], found["speedup"]["wall"]
    memory = ["", ""] if kept is None else [f"{kept[form] / 1e6:.1f}" for form in ("literal", "ours")]
    times = f"{speedup['median']:.1f} ({speedup['low']:.1f} to {speedup['high']:.1f})"
    return [_PARTS[name], *(f"{found[form]['wall_ms']:.1f}" for form in ("literal", "ours")), times, *memory]


def _part_note(record: Mapping[str, Any]) -> str:
    size = " x ".join([str(record["size"])] * 3)
    return (
        f"- Logits of 4 classes on {size}, forward and backward, median and 10th to 90th percentile; equal gradients. "
        "Dice: of three teachers; by slices it is another number, in which an empty slice counts 1."
    )


# ---- common ---------------------------------------------------------------------------------------------------------


def _table(titles: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (titles, rule, *rows)]


def _range(spread: Mapping[str, float], runs: int) -> str:
    bounds = "" if runs == 1 else f" ({spread['least']:.2f} to {spread['most']:.2f})"
    return f"{spread['median']:.2f}{bounds}"
