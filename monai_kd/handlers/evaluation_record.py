"""run.json and metrics.csv of an evaluation: every case, and how the weights were made."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from torch import nn

from monai_kd.data.case_names import case_id
from monai_kd.data.splits import CaseSplit, ids_hash
from monai_kd.handlers.case_scores import write_metrics_csv
from monai_kd.handlers.files import is_main_process
from monai_kd.handlers.provenance import config_hash, file_sha256
from monai_kd.handlers.run_record import INFERENCE_IDS, RunRecord, without_inferer
from monai_kd.teachers.weights import read_state_dict

__all__ = ["EvaluationRecord", "require_weights"]

# What must be equal for two evaluations to stand in one table, besides the scored cases themselves.
_PROTOCOL_IDS = ("class_names", "spacing_mm", "roi_size", "overlap", "amp", "cpu_bfloat16")
_SCORING_IDS = tuple(name for name in _PROTOCOL_IDS if name not in INFERENCE_IDS)  # for networks of different kinds
# Steps of the preprocessing that stand outside of it, since overlays change them.
_STEP_IDS = (
    "intensity",
    "load_image",
    "load_label",
    "binarize",
    "field",
    "shift",
    "normalize",
    "to_grid",
    "input_source",
    "largest_component",
)
_STEP_NUMBERS = ("diameter", "clip_limit", "window", "pixel_size")  # what these steps take
_NOT_PROTOCOL_STEPS = ("data", "dataset", "dataloader", "handlers", "evaluator", "key_metric")


def require_weights(path: str) -> None:
    """Check the weights file to evaluate before any data is read.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or cut short, or no checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"ckpt_path '{path}' does not exist; train first, or pass --ckpt_path FILE")
    read_state_dict(Path(path), None, "cpu")


class EvaluationRecord(RunRecord):
    """Write ``run.json`` and ``metrics.csv`` of an evaluation: every case, every class, and how the weights were made.

    Args:
        run_dir, bundle, protocol, class_names, device, network, bundle_root: see :class:`TrainingRecord`.
        data: the data list that is scored.
        section: which part of the split it is: ``test``, ``validation``, ``train`` or ``all``.
        weights: the evaluated weights file. The training record beside it (``run.json``, or ``<stem>.json``) is
            embedded if it names these very bytes; else ``training`` is null.
        method: name of the arm; the training record's own, where there is one, wins.
        split: the cases; those that it skipped are named in the record and below the printed scores.
    """

    kind = "evaluation"

    def __init__(
        self,
        run_dir: str,
        bundle: Mapping[str, Any],
        method: str,
        protocol: str,
        class_names: Sequence[str],
        device: str | torch.device,
        network: nn.Module,
        data: Sequence[Mapping[str, Any]],
        section: str,
        weights: str,
        bundle_root: str = ".",
        split: CaseSplit | None = None,
    ) -> None:
        super().__init__(run_dir, bundle, method, protocol, class_names, device, network, bundle_root)
        self.weights = Path(weights)
        ids = [case_id(item["image"]) for item in data]
        self.ids = ids
        self.content["skipped_cases"] = dict(split.skipped) if split is not None else {}
        self.content["protocol"].update(
            {
                "section": section,
                "hash": _protocol_hash(self.config, ids, _PROTOCOL_IDS),
                "scoring_hash": _protocol_hash(without_inferer(self.config), ids, _SCORING_IDS),
                "n_cases": len(ids),
                "cases_hash": ids_hash(ids),
            }
        )

    def _identify_weights(self, _engine: Engine) -> None:
        """Name the weights file and its training if the network holds its very values (in federation it may not)."""
        known = self.weights.is_file() and _same_values(self.network, self.weights)
        self.content["network"]["weights_sha256"] = file_sha256(self.weights) if known else None
        self._adopt_training(_training_record(self.weights) if known else None)

    def _adopt_training(self, training: dict[str, Any] | None) -> None:
        self.content["training"] = training
        self.content["seed"] = training["seed"] if training else None
        self.content["schedule_hash"] = training["schedule_hash"] if training else None
        self.content["recipe_hash"] = training.get("recipe_hash") if training else None  # older records have none
        self.content["teacher"] = training["teacher"] if training else None
        if training:
            self.content["method"] = training["method"]
            sizes = {key: value for key, value in training["protocol"].items() if key.startswith(("n_", "split"))}
            self.content["protocol"] = {**sizes, **self.content["protocol"]}

    def attach(self, engine: Engine) -> None:
        # CheckpointLoader stands before this handler, so the weights are in place when the engine has started
        engine.add_event_handler(Events.STARTED, self._identify_weights)
        engine.add_event_handler(Events.COMPLETED, self._complete)

    def _complete(self, engine: Engine) -> None:
        state: Any = engine.state
        cases, summary = state.case_scores, state.case_summary
        if (scored := [case["case"] for case in cases]) != sorted(self.ids):
            raise RuntimeError(f"{len(self.ids)} cases were listed and {len(scored)} scored; case names must differ")
        seconds = sorted(case["inference_s"] for case in cases)
        self.content.update({"status": "finished", "cases": cases, "summary": summary})
        self.content["time"] = {"inference_s_per_case": seconds[len(seconds) // 2]}  # median: the first warms up
        self.write()
        if is_main_process():
            write_metrics_csv(self.run_dir / "metrics.csv", cases)
            print(_summary_lines(self.content))


def _protocol_hash(config: Mapping[str, Any], ids: list[str], names: Sequence[str]) -> str:
    validate = config.get("validate", {})
    steps = {name: step for name, step in validate.items() if name not in _NOT_PROTOCOL_STEPS}
    transform = validate.get("dataset", {}).get("transform")
    parts = {name: _resolved(config, name) for name in names}
    if "regions" in config:  # of labels that are no classes
        parts["regions"] = config["regions"]
    parts |= {name: config[name] for name in _STEP_IDS if name in config}
    parts |= {name: _resolved(config, name) for name in _STEP_NUMBERS if name in config}
    return config_hash({**parts, "steps": steps, "transform": transform, "cases": ids})


def _resolved(config: Mapping[str, Any], name: str) -> Any:
    """Return the value of an id; what it comes out as, if it is an expression of others."""
    value = config.get(name)
    if not isinstance(value, str) or not value.startswith(("@", "$")):
        return value
    return ConfigParser(copy.deepcopy(dict(config))).get_parsed_content(name)


def _same_values(network: nn.Module, weights: Path) -> bool:
    """Tell whether the network holds exactly the tensors of a weights file."""
    saved = torch.load(weights, map_location="cpu", weights_only=True)
    saved = saved.get("model", saved)
    held = network.state_dict()
    return held.keys() == saved.keys() and all(torch.equal(held[key].cpu(), saved[key]) for key in held)


def _training_record(weights: Path) -> dict[str, Any] | None:
    """Return the training record beside a weights file, without its configuration, if it speaks of these very bytes."""
    sha256 = file_sha256(weights)
    for path in (weights.with_suffix(".json"), weights.with_name("run.json")):
        if not path.is_file():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("kind") == "training" and record["network"].get("weights_sha256") == sha256:
            return {key: value for key, value in record.items() if key not in ("config", "classes")}
    return None


def _summary_lines(content: Mapping[str, Any]) -> str:
    """Format the scores as a small text table."""
    summary = content["summary"]
    rows = [f"{'class':<16}{'Dice':>8}{'HD95 mm':>10}{'missed':>8}{'false pos.':>12}"]
    for name in summary["missed"]:
        dice, hd95 = summary["dice"][name], summary["hd95_mm"][name]
        shown = [f"{value:.4f}" if value is not None else "-" for value in (dice,)]
        shown.append(f"{hd95:.2f}" if hd95 is not None else "-")
        rows.append(
            f"{name:<16}{shown[0]:>8}{shown[1]:>10}{summary['missed'][name]:>8}{summary['false_positive'][name]:>12}"
        )
    mean = summary["dice"]["mean"]
    rows.append(f"mean Dice {'-' if mean is None else f'{mean:.4f}'} over {summary['n_cases']} cases")
    if "pixels" in summary:
        rows += _pixel_lines(summary["pixels"])
    if skipped := content["skipped_cases"]:
        rows.append(f"left out, because they cannot be used: {', '.join(sorted(skipped))}")
    return "\n".join(rows)


def _pixel_lines(pixels: Mapping[str, Any]) -> list[str]:
    """Format the scores of pixels: mean and SD over images, and of all pixels together."""
    rows = [f"{'of pixels':<16}{'mean':>8}{'SD':>10}{'images':>8}{'pooled':>12}"]
    for name, mean in pixels["mean"].items():
        values = [mean, pixels["sd"][name], pixels["pooled"].get(name)]
        shown = ["-" if value is None else f"{value:.4f}" for value in values]
        rows.append(f"{name:<16}{shown[0]:>8}{shown[1]:>10}{pixels['n'][name]:>8}{shown[2]:>12}")
    return rows
