"""run.json of a training: written while it runs and complete when it ends."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from monai_kd.data.case_names import case_id
from monai_kd.data.splits import CaseSplit, ids_hash
from monai_kd.distillers import Distiller
from monai_kd.handlers.failure import on_failure
from monai_kd.handlers.files import is_main_process
from monai_kd.handlers.provenance import config_hash, file_sha256, network_facts, write_json
from monai_kd.handlers.run_record import INFERENCE_IDS, PLACE_IDS, RunRecord, without_inferer
from monai_kd.handlers.scalars import named_scalars
from monai_kd.inferers import cpu_has_bfloat16
from monai_kd.teachers import load_report

__all__ = ["RECORD_KEY", "TrainingRecord", "refuse_other_run"]

_logger = logging.getLogger("monai_kd")
RECORD_KEY = "run_record"  # of the record in the trainer's state

# What may differ between the two arms of a fair comparison: the method, the seed and where things lie. Everything
# else in the configuration is the schedule, and its hash must be equal.
_METHOD_IDS = ("method", "terms", "schedules", "teacher", "teacher_root", "distiller_def", "distiller")
# handlers that act on a method's parts, or only watch
_METHOD_HANDLERS = ("EMATeacher", "GradientRatios", "TermSchedules")
_NOT_SCHEDULE = (
    *_METHOD_IDS,
    *PLACE_IDS,
    "seed",
    "imports",
    "skip_bad_cases",
    "num_workers",
    "gradient_interval",
)  # the split has a hash
# What a comparison of networks may differ in besides: the network, and how it goes through a volume to be scored.
_NETWORK_IDS = ("network_def", "network", "student_modalities", "slice_axis", *INFERENCE_IDS)
_ALL_LABELS = "all_labels"  # the view of a label repeated for an image's photometric views, see GeneralizableDistiller


class TrainingRecord(RunRecord):
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
        train_data, validation_data: the data lists in use; cases with a false ``labelled`` count apart.
        split: the :class:`~monai_kd.data.CaseSplit` they came from, if they did.
        distiller: the :class:`~monai_kd.distillers.Distiller` (or its DDP wrapper), None for plain training.
        weights_name: file name of the best weights in ``run_dir``.
        bundle_root: folder whose git commit is recorded.
        method_ids: further ids of the configuration that belong to the method and not to the schedule.

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
        method_ids: Sequence[str] = (),
    ) -> None:
        super().__init__(run_dir, bundle, method, protocol, class_names, device, network, bundle_root)
        self.evaluator = evaluator
        self.weights_name = weights_name
        unlabelled = [case_id(item["image"]) for item in train_data if not item.get("labelled", True)]
        ids = {
            "train": [name for item in train_data if (name := case_id(item["image"])) not in unlabelled],
            "validation": [case_id(item["image"]) for item in validation_data],
        }
        if split is not None and split.loaded:
            ids["test"] = split.ids["test"]
        self.ids = ids
        self.content["seed"] = seed
        self.content["protocol"].update(
            {"split_hash": ids_hash(ids), **{f"n_{section}": len(names) for section, names in ids.items()}}
        )
        if unlabelled:  # a comparison is of equal labels
            self.content["protocol"].update({"n_unlabelled": len(unlabelled), "unlabelled": sorted(unlabelled)})
        # `cpu_bfloat16` and `amp` are expressions, so the hardware decides what they mean
        asked = self.config.get("cpu_bfloat16")
        precision = [self.content["device"]["type"], asked if isinstance(asked, bool) else cpu_has_bfloat16()]
        not_schedule = (*_NOT_SCHEDULE, *method_ids, "method_ids")
        config = _without_method_handlers(self.config)
        schedule = {
            "config": config_hash(config, not_schedule),
            "split": ids_hash(ids),
            "precision": precision,
            "supervised": _supervised_terms(self.config),
            "processes": dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1,
        }
        self.content["processes"] = schedule["processes"]
        self.content["schedule_hash"] = config_hash(schedule)
        recipe = config_hash(without_inferer(config), (*not_schedule, *_NETWORK_IDS))
        self.content["recipe_hash"] = config_hash({**schedule, "config": recipe})
        self.content["teacher"] = _teacher_facts(distiller)
        core = getattr(distiller, "module", distiller)
        if start := _loaded_hashes("student", core.student if isinstance(core, Distiller) else network):
            self.content["start"] = start
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
        self.write()

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
            kind, _, term = name.rpartition("/")
            curves.setdefault(kind or "terms", {}).setdefault(term, []).append(mean)
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
        self.write()

    def _complete(self, _engine: Engine) -> None:
        self.content["status"] = "finished"
        weights = self.run_dir / self.weights_name
        if is_main_process() and weights.is_file():
            self.content["network"]["weights_sha256"] = file_sha256(weights)
        self.write()
        _logger.info("run record: %s", self.run_dir / "run.json")

    def _interrupted(self, _engine: Engine, error: BaseException) -> None:
        self.content["status"] = f"stopped by {type(error).__name__}"
        self.write()


def refuse_other_run(earlier: Mapping[str, Any], now: Mapping[str, Any], run_dir: str | Path) -> None:
    """Raise ValueError, naming every difference, unless two records speak of the same training."""
    changed = _differences(earlier["config"], now["config"], PLACE_IDS)
    if earlier["protocol"]["split_hash"] != now["protocol"]["split_hash"]:
        changed.append("the cases")
    if earlier["protocol"].get("unlabelled") != now["protocol"].get("unlabelled"):
        changed.append("the cases without labels")
    changed += _other_weights(earlier, now)
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


def _other_weights(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the weights that are others; those of earlier versions were not all recorded."""
    before, after = _weights(earlier), _weights(now)
    return [what for what, sha256 in before.items() if sha256 and after.get(what) and after[what] != sha256]


def _weights(record: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the sha256 of all weights that a training began with, by what they are of."""
    teacher = record.get("teacher", {})
    networks = {**teacher.get("networks", {}), **teacher.get("helpers", {})}
    return {
        **{f"the weights of '{name}'": facts.get("weights_sha256") for name, facts in networks.items()},
        **{f"the weights that '{name}' started from": sha256 for name, sha256 in record.get("start", {}).items()},
    }


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


def _without_method_handlers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration without the training handlers that belong to the method."""
    train = config.get("train")
    if not isinstance(train, dict) or not isinstance(train.get("handlers"), list):
        return dict(config)
    kept = [handler for handler in train["handlers"] if _class_name(handler) not in _METHOD_HANDLERS]
    return {**config, "train": {**train, "handlers": kept}}


def _class_name(entry: Any) -> str:
    return str(entry.get("_target_", "")).rpartition(".")[2] if isinstance(entry, dict) else ""


def _supervised_terms(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the terms that compare the student's output with the label, with their schedules.

    Both arms need the same to be compared. What trains teachers, or heads that are not the student's, is the method's;
    so is whether the student is supervised on an image or on its photometric views too.
    """
    schedules = config.get("schedules") or {}
    found = {}
    for name, term in config.get("terms", {}).items():
        targets = term.get("target", "label") if isinstance(term, dict) else None
        trained = term.get("student") if isinstance(term, dict) else None
        if isinstance(trained, str) and (not trained.startswith("student/") or trained.startswith("student/side_")):
            continue
        if targets == _ALL_LABELS:
            targets, term = "label", {**term, "student": "student/logits", "target": "label"}
        if targets == "label" or (isinstance(targets, list) and "label" in targets):
            schedule = schedules.get(name) if isinstance(schedules, dict) else None
            found[name] = {**term, "schedule": schedule} if schedule else term
    return found


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _teacher_facts(distiller: nn.Module | None) -> dict[str, Any]:
    """Tell which teachers there were and whether they ran live, were read from the batch, or not used.

    ``helpers``, if any were loaded, are networks beside them, such as alignment networks.
    """
    core = getattr(distiller, "module", distiller)
    if not isinstance(core, Distiller):
        return {"source": "none"}
    read = {address.partition("/")[0] for term in core.terms.values() for address in term.addresses}  # type: ignore[union-attr]
    names = [*(name for name in core.trained_teachers if name in read), *core.read_teachers]
    facts: dict[str, Any] = {"source": "live" if names else "cached" if core.cached else "none"}
    if names:
        facts["networks"] = {name: _loaded_facts(core.networks[name]) for name in names}
    helpers = {name: _loaded_facts(network) for name, network in core.helpers().items()}
    if loaded := {name: found for name, found in helpers.items() if "weights_sha256" in found}:
        facts["helpers"] = loaded
    return facts


def _loaded_facts(network: nn.Module) -> dict[str, Any]:
    """Return class, parameters and, if it was loaded, or the one network that it wraps, the sha256 of its weights."""
    children = dict(network.named_children())
    inner = children["network"] if list(children) == ["network"] else network
    for loaded in (network, inner):
        try:
            return {**network_facts(network), "weights_sha256": load_report(loaded).sha256}
        except ValueError:  # built otherwise, e.g. a teacher made in Python
            continue
    return network_facts(network)


def _loaded_hashes(name: str, module: nn.Module) -> dict[str, str]:
    """Return the sha256 of the weights that were loaded into a module, or else into the modules it is made of."""
    try:
        return {name: load_report(module).sha256}
    except ValueError:
        parts = [_loaded_hashes(f"{name}.{child}", part) for child, part in module.named_children()]
        return {place: sha256 for part in parts for place, sha256 in part.items()}
