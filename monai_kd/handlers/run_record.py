"""run.json: what a training or an evaluation was, written while it runs and complete when it ends."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from monai_kd.data.splits import CaseSplit, case_id, ids_hash
from monai_kd.distillers import Distiller
from monai_kd.handlers.case_scores import write_metrics_csv
from monai_kd.handlers.failure import on_failure
from monai_kd.handlers.files import is_main_process
from monai_kd.handlers.provenance import (
    config_hash,
    environment,
    executed_config,
    file_sha256,
    network_facts,
    peak_memory_mb,
    write_json,
)
from monai_kd.handlers.scalars import named_scalars
from monai_kd.inferers import cpu_has_bfloat16
from monai_kd.teachers import load_report

__all__ = ["EvaluationRecord", "TrainingRecord", "require_weights"]

_logger = logging.getLogger("monai_kd")
_SCHEMA = 1

# What may differ between the two arms of a fair comparison: the method, the seed and where things lie. Everything
# else in the configuration is the schedule, and its hash must be equal.
_METHOD_IDS = ("method", "terms", "teacher", "teacher_root", "distiller_def", "distiller")
PLACE_IDS = (
    "bundle_root",
    "dataset_dir",
    "split_file",
    "run_name",
    "run_dir",
    "ckpt_dir",
    "ckpt_path",
    "device",
    "resume",
)
_NOT_SCHEDULE = (*_METHOD_IDS, *PLACE_IDS, "seed", "imports", "skip_bad_cases", "num_workers")  # the split has a hash
# What must be equal for two evaluations to stand in one table, besides the scored cases themselves.
_PROTOCOL_IDS = ("class_names", "spacing_mm", "roi_size", "overlap", "amp", "cpu_bfloat16")
RECORD_KEY = "run_record"
_NOT_PROTOCOL_STEPS = ("data", "dataset", "dataloader", "handlers", "evaluator", "key_metric")


def require_weights(path: str) -> None:
    """Raise FileNotFoundError if there is no weights file to evaluate."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"ckpt_path '{path}' does not exist; train first, or pass --ckpt_path FILE")


class _Record:
    """What both kinds of record share: identity, configuration, environment, clock."""

    kind = ""

    def __init__(
        self,
        run_dir: str,
        bundle: Mapping[str, Any],
        method: str,
        protocol: str,
        class_names: Sequence[str],
        device: str | torch.device,
        network: nn.Module,
        bundle_root: str = ".",
    ) -> None:
        self.run_dir = Path(run_dir)
        self.network = network
        self.class_names = list(class_names)
        self.config, files = executed_config()
        self._started = time.perf_counter()
        self.content: dict[str, Any] = {
            "schema": _SCHEMA,
            "kind": self.kind,
            "status": "running",
            "run_id": self.run_dir.name,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "bundle": {"name": bundle.get("name"), "version": bundle.get("version")},
            "method": method,
            "protocol": {"name": protocol},
            "classes": {str(channel): name for channel, name in enumerate(class_names) if channel},
            "config_files": files,
            "config_hash": config_hash(self.config, PLACE_IDS),
            "config": self.config,
            **environment(device, bundle_root),
            "network": network_facts(network),
        }

    def _write(self) -> None:
        if not is_main_process():
            return
        self.content["time"] = {**self.content.get("time", {}), "total_s": time.perf_counter() - self._started}
        self.content["memory"] = {"peak_rss_mb": peak_memory_mb()}
        write_json(self.run_dir / "run.json", self.content)


class TrainingRecord(_Record):
    """Write ``run.json`` (and ``split.json``) of a training into its run folder, anew after every validation.

    Records the executed configuration, the cases that were really used, the mean loss and every term per epoch, the
    validation scores, the best epoch, time and memory; after completion the sha256 of the best weights. The content
    is part of the trainer's state (``engine.state.run_record``), so a resumed training goes on with its curves.

    Args:
        run_dir: folder of this run.
        bundle: the bundle's metadata; ``name`` and ``version`` are read.
        method: name of the arm in tables, e.g. ``teacher``, ``baseline``, ``distilled``.
        protocol: name of the task protocol.
        seed: the training seed.
        class_names: background first.
        device: where it trains.
        network: the student (or teacher) whose weights are saved.
        evaluator: the validation engine, with :class:`~monai_kd.handlers.CaseScores` among its handlers.
        train_data, validation_data: the data lists in use.
        split: the :class:`~monai_kd.data.CaseSplit` they came from, if they did.
        distiller: the :class:`~monai_kd.distillers.Distiller` (or its DDP wrapper), None for plain training.
        weights_name: file name of the best weights in ``run_dir``.
        bundle_root: folder whose git commit is recorded.

    Raises (when a resumed training starts):
        ValueError: its configuration or its cases are not those of the interrupted run.
    """

    kind = "training"

    def __init__(
        self,
        run_dir: str,
        bundle: Mapping[str, Any],
        method: str,
        protocol: str,
        seed: int,
        class_names: Sequence[str],
        device: str | torch.device,
        network: nn.Module,
        evaluator: Engine,
        train_data: Sequence[Mapping[str, Any]],
        validation_data: Sequence[Mapping[str, Any]],
        split: CaseSplit | None = None,
        distiller: nn.Module | None = None,
        weights_name: str = "model.pt",
        bundle_root: str = ".",
    ) -> None:
        super().__init__(run_dir, bundle, method, protocol, class_names, device, network, bundle_root)
        self.evaluator = evaluator
        self.weights_name = weights_name
        ids = {
            "train": [case_id(item["image"]) for item in train_data],
            "validation": [case_id(item["image"]) for item in validation_data],
        }
        if split is not None and split.loaded:
            ids["test"] = split.ids["test"]
        self.ids = ids
        self.content["seed"] = seed
        self.content["protocol"].update(
            {"split_hash": ids_hash(ids), **{f"n_{section}": len(names) for section, names in ids.items()}}
        )
        # `cpu_bfloat16` and `amp` are expressions, so the hardware decides what they mean
        precision = [self.content["device"]["type"], cpu_has_bfloat16()]
        schedule = {
            "config": config_hash(self.config, _NOT_SCHEDULE),
            "split": ids_hash(ids),
            "precision": precision,
            "supervised": _supervised_terms(self.config),
            "processes": dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1,
        }
        self.content["processes"] = schedule["processes"]
        self.content["schedule_hash"] = config_hash(schedule)
        self.content["teacher"] = _teacher_facts(distiller)
        self.content["skipped_cases"] = dict(split.skipped) if split is not None else {}
        self.content["curves"] = {"epoch": [], "loss": [], "terms": {}, "val_epoch": [], "val_mean_dice": []}
        self._sums: dict[str, float] = {}
        self._count = 0

    def attach(self, engine: Engine) -> None:
        engine.state.run_record = self.content  # type: ignore[attr-defined]
        engine.state_dict_user_keys.append(RECORD_KEY)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add_losses)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._close_epoch)
        engine.add_event_handler(Events.COMPLETED, self._complete)
        on_failure(engine, self._interrupted)
        self.evaluator.add_event_handler(Events.COMPLETED, self._add_validation)

    def _start(self, engine: Engine) -> None:
        restored = getattr(engine.state, RECORD_KEY, self.content)
        if restored is not self.content:
            self._go_on(restored, engine.state.epoch)
            engine.state.run_record = self.content  # type: ignore[attr-defined]
        self.content["epochs"] = engine.state.max_epochs
        if is_main_process():
            write_json(self.run_dir / "split.json", self.ids)
        self._write()

    def _go_on(self, earlier: dict[str, Any], epoch: int) -> None:
        """Take over what the interrupted run had recorded."""
        kept = ("started", "curves", "best_epoch", "best_metric", "validation", "resumed", "time")
        self.content.update({key: earlier[key] for key in kept if key in earlier})
        resumes = max(_resumes_on_disk(self.run_dir), self.content.get("resumed", []), key=len)  # a state may lack some
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.content["resumed"] = [*resumes, {"after_epoch": epoch, "at": now}]
        self._started -= earlier["time"]["total_s"]

    def _add_losses(self, engine: Engine) -> None:
        for name, value in named_scalars(engine.state.output).items():  # type: ignore[arg-type]
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def _close_epoch(self, engine: Engine) -> None:
        curves = self.content["curves"]
        means = {name: _number(total / self._count) for name, total in self._sums.items()}
        curves["epoch"].append(engine.state.epoch)
        curves["loss"].append(means.pop(Keys.LOSS, None))
        for name, mean in means.items():
            curves["terms"].setdefault(name, []).append(mean)
        self._sums, self._count = {}, 0

    def _add_validation(self, engine: Engine) -> None:
        state: Any = engine.state
        summary = state.case_summary
        curves = self.content["curves"]
        curves["val_epoch"].append(state.epoch)
        curves["val_mean_dice"].append(_number(summary["dice"]["mean"]))
        # MONAI numbers the validator's epochs by the trainer's, so its best epoch is the trainer's
        self.content["best_epoch"] = int(state.best_metric_epoch)
        self.content["best_metric"] = _number(float(state.best_metric))
        if self.content["best_epoch"] == state.epoch:
            self.content["validation"] = summary
        self._write()

    def _complete(self, _engine: Engine) -> None:
        self.content["status"] = "finished"
        weights = self.run_dir / self.weights_name
        if is_main_process() and weights.is_file():
            self.content["network"]["weights_sha256"] = file_sha256(weights)
        self._write()
        _logger.info("run record: %s", self.run_dir / "run.json")

    def _interrupted(self, _engine: Engine, error: BaseException) -> None:
        self.content["status"] = f"stopped by {type(error).__name__}"
        self._write()


class EvaluationRecord(_Record):
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
                "hash": _protocol_hash(self.config, ids),
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
        self._write()
        if is_main_process():
            write_metrics_csv(self.run_dir / "metrics.csv", cases)
            print(_summary_lines(self.content))


def refuse_other_run(earlier: Mapping[str, Any], now: Mapping[str, Any], run_dir: str | Path) -> None:
    """Raise ValueError, naming every difference, unless two records speak of the same training."""
    changed = _differences(earlier["config"], now["config"], PLACE_IDS)
    if earlier["protocol"]["split_hash"] != now["protocol"]["split_hash"]:
        changed.append("the cases")
    for name, before, after in (
        ("processes", earlier.get("processes"), now.get("processes")),
        ("device", earlier["device"]["type"], now["device"]["type"]),
    ):
        if before != after:
            changed.append(f"{name} ({before} -> {after})")
    if changed:
        raise ValueError(
            f"--resume True: not the configuration of the run in '{run_dir}': {'; '.join(changed)}; "
            "resume with the same settings, or start another run"
        )


def _resumes_on_disk(run_dir: Path) -> list[Any]:
    try:
        resumes = json.loads((run_dir / "run.json").read_text(encoding="utf-8")).get("resumed", [])
    except (OSError, ValueError):
        return []
    return resumes if isinstance(resumes, list) else []


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any], without: Iterable[str]) -> list[str]:
    """Describe the top-level ids whose values differ."""
    names = [name for name in {**earlier, **now} if name not in set(without) and earlier.get(name) != now.get(name)]
    plain = (int, float, str, bool, type(None))
    return [
        f"{name} ({earlier.get(name)} -> {now.get(name)})"
        if isinstance(earlier.get(name), plain) and isinstance(now.get(name), plain)
        else name
        for name in names
    ]


def _supervised_terms(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the terms that compare with the label: both arms of a fair comparison must have the same."""
    terms = {name: term for name, term in config.get("terms", {}).items() if isinstance(term, dict)}
    return {name: term for name, term in terms.items() if term.get("target", "label") == "label"}


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _protocol_hash(config: Mapping[str, Any], ids: list[str]) -> str:
    validate = config.get("validate", {})
    steps = {name: step for name, step in validate.items() if name not in _NOT_PROTOCOL_STEPS}
    transform = validate.get("dataset", {}).get("transform")
    parts = {name: config.get(name) for name in _PROTOCOL_IDS}
    return config_hash({**parts, "steps": steps, "transform": transform, "cases": ids})


def _teacher_facts(distiller: nn.Module | None) -> dict[str, Any]:
    """Tell which teachers there were and whether they ran live, were read from the batch, or not used."""
    core = getattr(distiller, "module", distiller)
    if not isinstance(core, Distiller):
        return {"source": "none"}
    networks = {name: core.networks[name] for name in (*core.trained_teachers, *core.read_teachers)}
    if not networks:
        return {"source": "cached" if core.cached else "none"}
    return {"source": "live", "networks": {name: _loaded_facts(network) for name, network in networks.items()}}


def _loaded_facts(network: nn.Module) -> dict[str, Any]:
    """Return class, parameters and, if ``load_teacher`` made it, the sha256 of its weights file."""
    try:
        return {**network_facts(network), "weights_sha256": load_report(network).sha256}
    except ValueError:  # built otherwise, e.g. a teacher made in Python
        return network_facts(network)


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
    if skipped := content["skipped_cases"]:
        rows.append(f"left out, because they cannot be used: {', '.join(sorted(skipped))}")
    return "\n".join(rows)
