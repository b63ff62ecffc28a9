"""Two models side by side on a bundle's own evaluation protocol: Dice, size, time, and the paired difference."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from torch import Tensor, nn

from monai_kd.export import Runtime, load_runtime
from monai_kd.export.exporter import exported_dir
from monai_kd.export.pipeline import bundle_metadata, quiet
from monai_kd.export.record import recorded_export
from monai_kd.handlers import CaseScores
from monai_kd.handlers.provenance import file_sha256
from monai_kd.teachers import load_report, load_teacher
from monai_kd.teachers.facts import read_facts
from monai_kd.visualize.statistics import bootstrap_interval

__all__ = ["Comparison", "ModelScores", "compare_cases"]

_FILES = ("train.yaml", "evaluate.yaml")


@dataclass
class ModelScores:
    """One of the two models.

    Attributes:
        name: how the table calls it.
        size: bytes of its files.
        parameters: None if the file does not tell.
        cases: per case ``{"case", "dice": {class: value or None}, "missed", "inference_s", ...}``.
    """

    name: str
    size: int
    parameters: int | None
    cases: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds_per_case(self) -> float:
        """Median time of the sliding-window inference, s."""
        return statistics.median(case["inference_s"] for case in self.cases)

    def dice(self, name: str) -> float | None:
        """Mean Dice of a class over the cases that have it."""
        found = [case["dice"][name] for case in self.cases if case["dice"][name] is not None]
        return float(np.mean(found)) if found else None


@dataclass
class Comparison:
    """Two models on the same cases.

    Attributes:
        a, b: the models; differences are b - a.
        class_names: foreground classes.
        label_agreement: fraction of voxels, of all cases, with equal labels.
        threads: PyTorch's CPU threads.
    """

    a: ModelScores
    b: ModelScores
    class_names: list[str]
    label_agreement: float
    threads: int

    @property
    def differences(self) -> list[float]:
        """Difference b - a of the Dice per case, mean over the classes that are in the label or in either output."""
        return [
            value
            for a, b in zip(self.a.cases, self.b.cases, strict=True)
            if (value := _difference(a["dice"], b["dice"])) is not None
        ]

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the mean difference over cases; None with fewer than 2."""
        differences = self.differences
        return bootstrap_interval(differences) if len(differences) > 1 else None

    @property
    def time_ratio(self) -> float:
        """How many times faster b is: the median over cases of time a / time b."""
        pairs = zip(self.a.cases, self.b.cases, strict=True)
        return statistics.median(a["inference_s"] / b["inference_s"] for a, b in pairs)

    def table(self) -> str:
        """Return the comparison as a Markdown table."""
        rows = [("", self.a.name, self.b.name, "b - a"), ("---", "---:", "---:", "---:")]
        for name in self.class_names:
            a, b = self.a.dice(name), self.b.dice(name)
            both = None if a is None or b is None else b - a
            rows.append((f"Dice {name}", _number(a), _number(b), _number(both, "+.4f")))
        rows.append(self._mean_row())
        rows.append(("classes missed", *_pair([_missed(self.a), _missed(self.b)], "d"), ""))
        sizes = [self.a.size / 1e6, self.b.size / 1e6]
        rows.append(("file size, MB", *_pair(sizes, ".2f"), f"{sizes[0] / sizes[1]:.2f} times smaller"))
        known = [model.parameters for model in (self.a, self.b)]
        counts = ["not known" if count is None else f"{count:,}" for count in known]
        rows.append(("parameters", counts[0], counts[1], ""))
        times = [1000 * self.a.seconds_per_case, 1000 * self.b.seconds_per_case]
        rows.append(("inference per case, ms, median", *_pair(times, ".1f"), f"{self.time_ratio:.2f} times faster"))
        rows.append(("voxels with equal labels", "", "", f"{100 * self.label_agreement:.3f} %"))
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        note = f"{len(self.a.cases)} cases; a and b in turn on each; {self.threads} CPU threads."
        return "\n".join([*lines, "", note])

    def _mean_row(self) -> tuple[str, str, str, str]:
        differences, interval = self.differences, self.interval
        means = [_mean([model.dice(name) for name in self.class_names]) for model in (self.a, self.b)]
        text = _number(_mean(list(differences)), "+.4f")
        if interval:
            text += f" [{interval[0]:+.4f}, {interval[1]:+.4f}]"
        return ("Dice, mean (paired difference, 95 % interval)", _number(means[0]), _number(means[1]), text)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _number(value: float | None, form: str = ".4f") -> str:
    return "not scored" if value is None else format(value, form)


def _pair(values: Sequence[float], form: str) -> tuple[str, str]:
    first, second = (format(value, form) for value in values)
    return first, second


def _missed(model: ModelScores) -> int:
    return sum(len(case["missed"]) for case in model.cases)


def _difference(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> float | None:
    """Mean over classes of b - a; where the label lacks a class, a model that leaves it empty too counts 1."""
    scored = [name for name in a if a[name] is not None or b[name] is not None]
    values = [_or_one(b[name]) - _or_one(a[name]) for name in scored]
    return float(np.mean(values)) if values else None


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


def compare_cases(
    bundle: str | Path,
    a: str | Path,
    b: str | Path,
    dataset_dir: str | Path,
    split_file: str | Path | None = None,
    section: str | None = None,
    threads: int | None = None,
) -> Comparison:
    """Score two models on the same cases, in turn on each, by a bundle's train.yaml and evaluate.yaml.

    Both run on the CPU in float32 with the bundle's preprocessing and sliding window; scores are taken in each image's
    own grid.

    Args:
        bundle: its evaluation protocol is used.
        a: weights of the bundle's network (.pt), an export (.onnx, .xml, .ts, .pt2), or another bundle's folder.
        b: the other model.
        dataset_dir: labelled data in the bundle's layout.
        split_file: a split; its ``section`` is scored. None scores all labelled cases.
        section: test, validation, train or all; None is test with a split file and all without.
        threads: CPU threads of the other runtimes; None takes PyTorch's.

    Raises:
        FileNotFoundError: bundle, model, data or split missing.
        ValueError: a model that cannot be loaded, a bundle of another task, an export of earlier weights, an unknown
            section, or a section without cases.
    """
    root = Path(bundle).resolve()
    for name in _FILES:
        if not (root / "configs" / name).is_file():
            raise FileNotFoundError(f"'{root}' has no configs/{name}, which says how its models are scored")
    count = threads or torch.get_num_threads()
    task = _task(root, _evaluation(root, nn.Identity(), dataset_dir, split_file, section))
    models = [_load(path, root, task, count) for path in (a, b)]
    _refuse_stale(root, [(Path(path), network) for path, (network, _) in zip((a, b), models, strict=True)])
    models[0][1].name, models[1][1].name = _names(a, b)
    flows = [_evaluation(root, network, dataset_dir, split_file, section) for network, _ in models]
    cases: list[dict[str, str]] = flows[0].parser.get_parsed_content("validate::dataset::data")
    class_names = _scored_names(flows[0])
    equal = total = 0
    for number, case in enumerate(cases):
        if number == 0:  # first runs are slow: not counted
            for flow in flows:
                _score(flow, case, class_names)
        labels = []
        for flow, (_, scores) in zip(flows, models, strict=True):
            result, label = _score(flow, case, class_names)
            scores.cases.append(result)
            labels.append(label)
        equal += int((labels[0] == labels[1]).all(dim=0).sum())  # in every class or region
        total += labels[0][0].numel()
    return Comparison(models[0][1], models[1][1], class_names[1:], equal / total, count)


def _scored_names(flow: ConfigWorkflow) -> list[str]:
    """Return the names of what leaves the postprocessing: regions where the bundle scores those, else the classes."""
    return list(flow.parser.get_parsed_content("region_names" if "region_names" in flow.parser else "class_names"))


def _task(root: Path, flow: ConfigWorkflow) -> dict[str, Any]:
    """Return the settings by which ``load_teacher`` checks that another bundle has this one's task."""
    facts = read_facts(root)
    wanted = ("in_channels", "roi_size", "patch_size")
    stated = {name: flow.parser.get_parsed_content(name) for name in wanted if name in flow.parser}
    return {
        "class_names": list(flow.parser.get_parsed_content("class_names")),
        "in_channels": stated.get("in_channels", facts.channels),
        "patch_size": _window(stated.get("roi_size"), stated.get("patch_size")),
        "spacing_mm": facts.spacing_mm,
        "orientation": facts.orientation,
        "student_metadata": bundle_metadata(root),
    }


def _window(roi_size: Sequence[int] | None, patch_size: Sequence[int] | None) -> list[int] | None:
    """Return the window's size; along an axis that it takes whole (-1) that of the training patch, if it is known."""
    if roi_size is None or min(roi_size) > 0:
        return None if roi_size is None else list(roi_size)
    if patch_size is None:
        return None
    return [patch if length < 0 else length for length, patch in zip(roi_size, patch_size, strict=True)]


def _names(a: str | Path, b: str | Path) -> tuple[str, str]:
    """Return the names of two files or folders, with as many of their parents as tell them apart."""
    first, second = (Path(os.path.abspath(path)).parts for path in (a, b))
    lengths = range(1, max(len(first), len(second)) + 1)
    length = next((length for length in lengths if first[-length:] != second[-length:]), 1)
    return str(Path(*first[-length:])), str(Path(*second[-length:]))


def _refuse_stale(root: Path, models: Sequence[tuple[Path, nn.Module]]) -> None:
    """Refuse an export whose weights are neither its bundle's nor those of the other model: two trainings differ."""
    hashes = [_weights_sha256(path, network) for path, network in models]
    for (path, _), own, other in zip(models, hashes, reversed(hashes), strict=True):
        folder = path.absolute().parent
        in_place = folder == exported_dir(folder.parent.parent)
        weights = (folder.parent if in_place else root / "models") / "model.pt"
        exported = path.is_file() and recorded_export(path) is not None
        if exported and weights.is_file() and own not in (other, file_sha256(weights)):
            raise ValueError(f"'{path}' was exported from other weights than '{weights}': export again")


def _weights_sha256(path: Path, network: nn.Module) -> str | None:
    """Return the hash of the weights behind a model; None if nothing tells."""
    if path.is_dir() or path.suffix in (".pt", ".pth"):
        return load_report(network).sha256
    entry = recorded_export(path)
    return str(entry["weights_sha256"]) if entry else None


def _load(model: str | Path, root: Path, task: Mapping[str, Any], threads: int) -> tuple[nn.Module, ModelScores]:
    path = Path(model)
    if path.is_dir():
        network = load_teacher(path, **task)
        weights = load_report(network).weights
        size = sum(file.stat().st_size for file in ([weights] if weights else path.rglob("*")) if file.is_file())
        return network, ModelScores(path.resolve().name, size, _count(network))
    network = load_runtime(path, bundle=root, threads=threads)
    size = path.stat().st_size
    if path.suffix == ".xml":
        size += path.with_suffix(".bin").stat().st_size
    known = _recorded_parameters(path) if isinstance(network, Runtime) else _count(network)
    return network, ModelScores(path.name, size, known)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _recorded_parameters(path: Path) -> int | None:
    """Look an export up in the record that ``export`` left beside it."""
    entry = recorded_export(path)
    return int(entry["parameters"]) if entry else None


def _evaluation(
    root: Path, network: nn.Module, dataset_dir: str | Path, split_file: str | Path | None, section: str | None
) -> ConfigWorkflow:
    """Return the bundle's evaluation with a network of ours in it, which writes no record."""
    overrides: dict[str, Any] = {
        "bundle_root": str(root),
        "dataset_dir": str(dataset_dir),
        "split_file": "" if split_file is None else str(split_file),
        "device": "cpu",
        "network": network,
        "validate::handlers": [],
        "validate::dataset::num_workers": None,
    }
    if section is not None:
        overrides["section"] = section
    with quiet():
        flow = ConfigWorkflow(
            config_file=[str(root / "configs" / name) for name in _FILES],
            workflow_type="train",
            logging_file=False,
            **overrides,
        )
        flow.parser.parse(reset=True)  # not initialize(): its only part seeds the process
    return flow


def _score(flow: ConfigWorkflow, case: dict[str, str], class_names: Sequence[str]) -> tuple[dict[str, Any], Tensor]:
    """Run the evaluation on one case; return its scores and its label map."""
    labels: list[Tensor] = []
    with quiet():
        flow.parser["validate::dataset::data"] = [case]
        flow.parser.parse(reset=True)
        evaluator = flow.parser.get_parsed_content("validate::evaluator")
        empty = flow.parser.get_parsed_content("empty_dice") if "empty_dice" in flow.parser else None
        CaseScores(class_names, empty=empty).attach(evaluator)
        evaluator.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda engine: labels.append(engine.state.output[0]["pred"].as_tensor() > 0),
        )
        evaluator.run()
    return evaluator.state.case_scores[0], labels[0]
