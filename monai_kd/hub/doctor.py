"""What makes a bundle or a distillation fail: configurations, weights, and what the channels really mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_kd.handlers import override_problems
from monai_kd.hub.bundle_folder import BundleFolder, NotReadable
from monai_kd.hub.class_order import best_meaning, confusion_table
from monai_kd.hub.failing_ids import defining_file, evaluated, waits_for_a_file
from monai_kd.hub.probe import quiet, reason, several_processes
from monai_kd.hub.scoring import Scores, chosen_cases, validation_of
from monai_kd.hub.verify_configs import duplicate_keys, numeric_texts
from monai_kd.teachers import load_report, load_teacher

__all__ = ["Finding", "diagnose"]

_FAR_BELOW = 0.1  # Dice below the card
_SWAP_GAIN = 0.2  # Dice that another meaning of the channels must bring
_RUN_LISTS = ("imports", "initialize", "run", "finalize")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``error`` (it will fail, or learn the wrong thing), ``warning`` or ``ok``.
        where: file and id, or the network.
        message: what was found, in one line.
    """

    level: str
    where: str
    message: str


def diagnose(
    bundle: str | Path,
    dataset_dir: str | Path | None = None,
    split_file: str | Path | None = None,
    cases: int = 2,
) -> list[Finding]:
    """Look for what makes a bundle fail; everything is looked at, also after a finding.

    Evaluates the bundle's configurations on made-up cases, so use it on bundles you trust.

    Args:
        bundle: the bundle's folder.
        dataset_dir: labelled data in MSD layout; with it the bundle's network and the networks below ``models/``, such
            as the default teacher, are scored with the bundle's own validation.
        split_file: its test cases are scored; None takes the first labelled cases.
        cases: how many.

    Raises:
        FileNotFoundError: no such bundle or data.
        ValueError: no labelled case, ``cases`` is not positive, or the bundle lists its data in a way of its own.
    """
    folder = BundleFolder(bundle)
    if dataset_dir is not None:
        _refuse_other_layouts(folder)
    chosen = chosen_cases(dataset_dir, split_file, cases) if dataset_dir is not None else []
    findings = [*_files(folder), *_combinations(folder)]
    networks: dict[str, tuple[nn.Module, float | None]] = {}
    for path in [folder.root, *folder.model_folders()]:
        where = "models/model.pt" if path == folder.root else folder.relative(path)
        findings.append(_weights(path, where, networks))
    if chosen and networks:
        findings += _scores(folder, chosen, networks)
    return list(dict.fromkeys(findings))


def _refuse_other_layouts(bundle: BundleFolder) -> None:
    """The classes of two networks are told apart on labels of exclusive classes in MSD layout."""
    try:
        split = bundle.config("train").get("split")
    except NotReadable:
        return  # a finding of its own
    if isinstance(split, dict) and split.get("list_cases") is not None:
        raise ValueError(
            f"'{bundle.root}' lists its cases by {split['list_cases']}, and doctor's --dataset_dir is in MSD layout; "
            "leave it out, and score by configs/evaluate.yaml"
        )


# ---- configurations -------------------------------------------------------------------------------------------------


def _files(bundle: BundleFolder) -> Iterator[Finding]:
    """Each file by itself."""
    try:
        yield from _metadata_names(bundle)
    except NotReadable as error:
        yield Finding("error", "configs/metadata.json", str(error))
    for path in bundle.configs:
        name = bundle.relative(path)
        try:
            content = bundle.read(path)
        except NotReadable as error:
            yield Finding("error", name, str(error).removeprefix(f"{name} "))
            continue
        for key in duplicate_keys(path):
            yield Finding("warning", name, f"the key '{key}' stands twice; the last one counts")
        for text in numeric_texts(content):
            yield Finding("warning", name, f"{text} is a text, not a number; write 1e-3 as 1.0e-3")


def _metadata_names(bundle: BundleFolder) -> Iterator[Finding]:
    """Classes in the metadata and in train.yaml are the same, in the same order."""
    formats = bundle.metadata.get("network_data_format", {})
    stated = formats.get("outputs", {}).get("pred", {}).get("channel_def", {})
    try:
        own = bundle.config("train").get("class_names")
    except NotReadable:
        return
    names = [name for _, name in sorted(stated.items(), key=lambda item: int(item[0]))]
    if isinstance(own, list) and names and names != own:
        yield Finding("error", "configs/metadata.json", f"channel_def says {names}, class_names of train.yaml {own}")


def _combinations(bundle: BundleFolder) -> Iterator[Finding]:
    """Every combination of files that is run, item by item."""
    standard = bundle.standard_combinations()
    for names in bundle.combinations():
        where = " + ".join(f"configs/{name}" for name in names)
        try:
            merged = bundle.merged(names)
            unknown = [problem for place in range(1, len(names)) for problem in _unknown_ids(bundle, names, place)]
        except NotReadable as error:
            # a file that cannot be parsed was said once, by itself
            if str(error).endswith("is missing"):
                yield Finding("error", where, str(error))
            continue
        yield from (Finding("warning", f"configs/{names[-1]}", problem) for problem in unknown)
        if several_processes(merged):
            yield Finding("ok", where, "parsed; not evaluated, it needs several processes")
            continue
        failed = evaluated(bundle, names)
        for config_id, text in failed.items():
            # an overlay of one's own may wait for a file that an export or a run writes
            waits = names not in standard and waits_for_a_file(text)
            file = defining_file(bundle, names, config_id)
            yield Finding("warning" if waits else "error", f"{file}: {config_id}" if config_id else where, text)
        if not failed:
            yield Finding("ok", where, "every id that is needed can be evaluated")


def _unknown_ids(bundle: BundleFolder, names: Sequence[str], place: int) -> list[str]:
    """Ids that the overlay in one place sets and the files before it do not know."""
    content = bundle.read(bundle.root / "configs" / names[place])
    given = {key: value for key, value in content.items() if key.lstrip("+") not in _RUN_LISTS}
    before = [str(bundle.root / "configs" / name) for name in names[:place]]
    problems = [text for text in override_problems(before, given) if "no such key" in text]
    return [problem.replace(f"{bundle.root}/", "").removeprefix("--") for problem in problems]


# ---- weights --------------------------------------------------------------------------------------------------------


def _weights(path: Path, where: str, networks: dict[str, tuple[nn.Module, float | None]]) -> Finding:
    """Load a network strictly; keep it, with the score on its card, for what follows."""
    try:
        with quiet():
            network = load_teacher(path)
    except Exception as error:  # a network's own code may raise anything
        return Finding("error", where, " ".join(str(error).split()))
    networks[where] = (network, _card_dice(path))
    report = load_report(network)
    return Finding("ok", where, f"{type(network).__name__}, {report.loaded} tensors loaded, none missing")


def _card_dice(path: Path) -> float | None:
    """Return the validation Dice that the record of the weights, or the metadata's provenance, states."""
    record, metadata = path / "models" / "model.json", path / "configs" / "metadata.json"
    try:
        if record.is_file():
            return _number(json.loads(record.read_text(encoding="utf-8")).get("best_metric"))
        if metadata.is_file():
            return _number(json.loads(metadata.read_text(encoding="utf-8")).get("provenance", {}).get("best_metric"))
    except (ValueError, AttributeError):
        return None
    return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


# ---- scores ---------------------------------------------------------------------------------------------------------


def _scores(
    bundle: BundleFolder,
    cases: Sequence[Mapping[str, str]],
    networks: Mapping[str, tuple[nn.Module, float | None]],
) -> list[Finding]:
    """Score every network with the bundle's own validation."""
    findings = []
    try:
        class_names = bundle.config("train").get("class_names") or _stated_classes(bundle)
        with quiet(), validation_of(bundle, cases) as score:
            for where, (network, card) in networks.items():
                findings += _judge(where, network, card, score, class_names)
    except Exception as error:  # of the bundle's own pipeline
        findings.append(Finding("error", "validate", f"the cases could not be scored: {reason(error)}"))
    return findings


def _stated_classes(bundle: BundleFolder) -> list[str]:
    channel_def = bundle.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    return [name for _, name in sorted(channel_def.items(), key=lambda item: int(item[0]))]


def _judge(where: str, network: nn.Module, card: float | None, score: Any, class_names: list[str]) -> list[Finding]:
    found: Scores = score(network)
    if found.dice is None:
        return [Finding("warning", where, f"the labels of the {found.cases} scored cases hold no foreground")]
    meaning, now, permuted = best_meaning(found.counts)
    stated = f"the card says {card:.3f} on validation cases" if card is not None else "no score is on the card"
    table = confusion_table(found.counts, class_names)
    text = f"Dice {found.dice:.3f} on {found.cases} cases, {stated}; {table}"
    if permuted - now > _SWAP_GAIN:
        swapped = [
            f"channel {channel} means {class_names[number]} here, not {class_names[channel]}"
            for channel, number in enumerate(meaning)
            if channel != number
        ]
        gain = f"Dice {permuted:.3f} instead of {now:.3f} over all voxels"
        return [Finding("error", where, f"{'; '.join(swapped)} ({gain}); {text}")]
    low = card is not None and found.dice < card - _FAR_BELOW
    if not low and (card is not None or found.dice >= 0.5):
        return [Finding("ok", where, text)]
    return [Finding("warning", where, f"far below what it should reach; {text}{_likely_cause(network, found, score)}")]


class _Seen(nn.Module):
    """A network that sees its window changed: mirrored along an axis, or with another intensity range."""

    def __init__(self, network: nn.Module, axis: int | None = None, unit_range: bool = False) -> None:
        super().__init__()
        self.network, self.axis, self.unit_range = network, axis, unit_range

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.axis is not None:
            return self.network(image.flip(self.axis)).flip(self.axis)
        dims = tuple(range(2, image.ndim))
        low, high = image.amin(dims, keepdim=True), image.amax(dims, keepdim=True)
        return self.network((image - low) / (high - low).clamp(min=1e-8))


def _likely_cause(network: nn.Module, found: Scores, score: Any) -> str:
    """Try a mirrored image and intensities from 0 to 1; name the one that makes the network much better, if any."""
    assert found.dice is not None
    changed = {"its intensities scaled to 0..1": _Seen(network, unit_range=True)}
    changed |= {f"the image mirrored along axis {axis}": _Seen(network, axis=axis + 2) for axis in range(3)}
    dices: dict[str, float] = {}
    for name, seen in changed.items():
        try:
            dices[name] = score(seen).dice or 0.0
        except (IndexError, RuntimeError):  # a 2-D network has no third axis
            continue
    best = max(dices, key=lambda name: dices[name])
    if dices[best] - found.dice <= _SWAP_GAIN:
        return ""
    return f"; with {best} it reaches {dices[best]:.3f}: the preprocessing is not the one it was trained with"
