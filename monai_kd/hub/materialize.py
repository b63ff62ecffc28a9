"""Turn a training run, with its overlays and overrides, into a bundle of its own."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from monai_kd.handlers.provenance import file_sha256, write_json
from monai_kd.handlers.run_record import PLACE_IDS
from monai_kd.hub.archive import check_bundle_name
from monai_kd.hub.bundle_folder import BundleFolder, NotReadable, name_in_configs
from monai_kd.hub.checksums import write_checksums
from monai_kd.hub.config_text import rewrite
from monai_kd.hub.fitted_overlays import copy_overlays
from monai_kd.hub.model_card import data_terms, model_card
from monai_kd.hub.plain_network import plain_network
from monai_kd.hub.probe import reason, several_processes
from monai_kd.hub.shared_blocks import infer_json
from monai_kd.hub.teacher_folder import output_classes, provenance
from monai_kd.hub.verify import verify_bundle
from monai_kd.teachers import load_report, load_teacher

__all__ = ["materialize_run"]

_logger = logging.getLogger("monai_kd")
_VERSION = "0.1.0"
# what inference.yaml takes over from train.yaml by the same name
_SHARED_KNOBS = ("spacing_mm", "pixel_size", "diameter", "roi_size", "overlap", "chunk", "intensity")
# what inference.yaml states in its own way: an override there cannot be carried over
_FIXED_IN_INFERENCE = ("preprocessing", "inferer", "postprocessing")
_TEACHER = "$@bundle_root + '/models/teacher'"


@dataclass(frozen=True)
class _Run:
    """A finished run and the bundle that was trained."""

    folder: Path
    record: dict[str, Any]
    base: BundleFolder
    train: dict[str, Any]  # train.yaml of the bundle as it is now
    executed: dict[str, Any]  # what ran, with the places of the bundle


def materialize_run(run: str | Path, out: str | Path, bundle: str | Path | None = None) -> Path:
    """Write the bundle that a run trained: its configuration as it ran, its weights, its teacher.

    ``train.yaml`` is the base bundle's text with every changed id written in; ``network_def`` and the sliding window
    are carried over to ``inference.yaml`` and ``infer.json``. The places of the run (data, folders, device) are those
    of the base bundle again. Overlays are copied where they still apply; those that disable the base bundle's method,
    such as the baseline, disable the run's. The result must pass ``verify`` before it gets its name; the limit on file
    sizes alone is only warned of, because a large teacher can be hosted elsewhere.

    Args:
        run: folder with ``run.json`` and ``model.pt`` of a finished training.
        out: the new bundle; its last part is the name. It must not exist, or be empty.
        bundle: the bundle that was trained; None takes the one whose ``runs`` folder holds the run.

    Returns:
        The new bundle's folder.

    Raises:
        FileNotFoundError: run record, weights, or the bundle missing.
        FileExistsError: ``out`` holds something already; nothing is overwritten.
        ValueError: a name that MONAI would misread, an unfinished run, weights that are not the record's, another
            teacher than in the run, an override that inference.yaml cannot follow, or a result that fails ``verify``.
    """
    target = Path(out).resolve()
    check_bundle_name(target.name)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"'{out}' exists and is not empty; choose another name, nothing is overwritten")
    found = _read_run(Path(run), bundle)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        draft = Path(temporary) / target.name
        _write(found, draft)
        _require_verified(draft)
        if target.exists():
            target.rmdir()
        os.replace(draft, target)
    return target


# ---- the run --------------------------------------------------------------------------------------------------------


def _read_run(run: Path, bundle: str | Path | None) -> _Run:
    record_file, weights = run / "run.json", run / "model.pt"
    if not record_file.is_file():
        raise FileNotFoundError(f"'{run}' has no run.json; give the folder of a finished training")
    try:
        record: dict[str, Any] = json.loads(record_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{record_file}' is no JSON: {error}") from error
    if record.get("kind") != "training":
        raise ValueError(f"'{record_file}' is the record of a run of kind '{record.get('kind')}', not of a training")
    if record.get("status") != "finished":
        raise ValueError(f"the training in '{run}' is not finished (status '{record.get('status')}'); resume it first")
    if not weights.is_file():
        raise FileNotFoundError(f"'{run}' has no model.pt; give the folder of a finished training")
    if record["network"].get("weights_sha256") != file_sha256(weights):
        raise ValueError(f"'{weights}' is not the file that its run.json names; the weights were replaced or damaged")
    base = BundleFolder(_bundle_of(run, bundle))
    try:
        train = json.loads(json.dumps(base.config("train")))
    except NotReadable as error:
        raise FileNotFoundError(f"'{base.root}' is no bundle that trains: {error}") from error
    executed = _executed(record, base, train)
    executed["network_def"] = plain_network(executed, "the run")
    return _Run(run, record, base, train, executed)


def _bundle_of(run: Path, bundle: str | Path | None) -> Path:
    if bundle is not None:
        return Path(bundle)
    runs = run.resolve().parent
    if runs.name != "runs" or not (runs.parent / "configs").is_dir():
        raise FileNotFoundError(f"'{run}' is not in a bundle's runs folder; name the trained bundle by --bundle DIR")
    return runs.parent


def _executed(record: Mapping[str, Any], base: BundleFolder, train: dict[str, Any]) -> dict[str, Any]:
    """Return what ran, without what only that run's place and processes asked for."""
    executed = json.loads(json.dumps(record["config"]))
    for name in PLACE_IDS:
        if name in train:
            executed[name] = train[name]
        else:
            executed.pop(name, None)
    if "teacher_root" in executed and record["teacher"].get("source") == "live":
        executed["teacher_root"] = _TEACHER
    elif "teacher_root" in executed:
        executed["teacher_root"] = train.get("teacher_root", _TEACHER)
    for file in record["config_files"]:
        path = base.root / "configs" / name_in_configs(file)
        if path.is_file() and several_processes(overlay := base.read(path)):
            _undo(executed, train, overlay)
    return executed


def _undo(executed: dict[str, Any], train: dict[str, Any], overlay: Mapping[str, Any]) -> None:
    """Set the ids of an overlay for several processes back: train.yaml runs in one."""
    parser, before = ConfigParser(executed), ConfigParser(train)
    for key in overlay:
        if key in before:
            parser[key] = before[key]
        elif key in parser:
            parent, _, name = str(key).rpartition("::")
            holder = parser[parent] if parent else executed
            holder.pop(name)


# ---- the bundle -----------------------------------------------------------------------------------------------------


def _write(run: _Run, draft: Path) -> None:
    (draft / "configs").mkdir(parents=True)
    (draft / "models").mkdir()
    (draft / "docs").mkdir()
    for name in ("LICENSE", "configs/logging.conf"):
        if (run.base.root / name).is_file():
            shutil.copyfile(run.base.root / name, draft / name)
    _write_configs(run, draft)
    shutil.copyfile(run.folder / "model.pt", draft / "models" / "model.pt")
    write_json(draft / "models" / "model.json", _published_record(run))
    if run.record["teacher"].get("source") == "live" and "teacher_root" in run.executed:
        _copy_teacher(run, draft / "models" / "teacher")
    metadata = _metadata(run, draft.name)
    write_json(draft / "configs" / "metadata.json", metadata)
    changes = _changes(run.train, run.executed)
    (draft / "docs" / "README.md").write_text(model_card(metadata, run.record, changes), encoding="utf-8")
    own_data = run.record["config"].get("dataset_dir") != run.train.get("dataset_dir")
    terms = data_terms(draft.name, run.base.root, own_data)
    (draft / "docs" / "data_license.txt").write_text(terms, encoding="utf-8")
    write_checksums(draft)
    copy_overlays(run.base, run.train, draft, run.executed)
    _route_inference(run, draft)


def _write_configs(run: _Run, draft: Path) -> None:
    base = run.base
    train, inference = base.config_path("train"), base.config_path("inference")
    (draft / "configs" / "train.yaml").write_text(_rewritten(train, run.executed), encoding="utf-8")
    text = _rewritten(inference, _inference(run, base.config("inference")))
    (draft / "configs" / "inference.yaml").write_text(text, encoding="utf-8")
    (draft / "configs" / "infer.json").write_text(infer_json(draft), encoding="utf-8")


def _rewritten(path: Path, wanted: dict[str, Any]) -> str:
    if path.suffix == ".json":
        return yaml.safe_dump(wanted, sort_keys=False, width=10_000, allow_unicode=True)
    return rewrite(path.read_text(encoding="utf-8"), wanted)


def _inference(run: _Run, inference: dict[str, Any]) -> dict[str, Any]:
    """Return inference.yaml's content with the network and the sliding window of the run."""
    executed, train = run.executed, run.train
    for name in _FIXED_IN_INFERENCE:
        before, after = (config.get("validate", {}).get(name) for config in (train, executed))
        if before != after:
            raise ValueError(
                f"the run changed 'validate::{name}', which inference.yaml states in its own way; change both files of "
                f"'{run.base.root.name}' and train again"
            )
    wanted = json.loads(json.dumps(inference))
    wanted["network_def"] = executed["network_def"]
    values = ConfigParser(json.loads(json.dumps(executed)))
    for name in _SHARED_KNOBS:
        if name in executed and name in wanted:
            wanted[name] = _written_out(executed, values, name)
    return dict(wanted)


def _written_out(executed: dict[str, Any], values: ConfigParser, name: str) -> Any:
    """Return what an id comes out as, which may be an expression of other ids; a component stays its definition."""
    stated = executed[name]
    if not isinstance(stated, dict):
        return values.get_parsed_content(name)
    if "@" in (text := json.dumps(stated)) or '"$' in text:
        raise ValueError(f"{name} of the run refers to other ids of its configuration: {text}; write it out")
    return stated


def _metadata(run: _Run, name: str) -> dict[str, Any]:
    record = run.record
    metadata = json.loads(json.dumps(run.base.metadata))
    origin = f"{record['bundle']['name']} {record['bundle']['version']}"
    metadata.update(name=name, version=_VERSION)
    metadata["changelog"] = {_VERSION: f"materialized from run {record['run_id']} of {origin}"}
    metadata["description"] = f"{metadata.get('description', name)} (method {record['method']}, from {origin})"
    versions = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
    metadata.update({key: record["versions"][package].partition("+")[0] for key, package in versions.items()})
    formats = metadata["network_data_format"]
    classes = output_classes(record)
    formats["outputs"]["pred"].update(num_channels=len(classes), channel_def=classes)
    channels = run.executed["network_def"].get("in_channels")
    image = formats["inputs"]["image"]
    if isinstance(channels, int) and channels != image["num_channels"]:
        image.update(
            num_channels=channels, channel_def={str(number): f"channel {number}" for number in range(channels)}
        )
    if seen := _other_modalities(run):
        image.update(channel_def={str(number): name for number, name in enumerate(seen)})
        metadata["image_classes"] = f"channels: {', '.join(seen)}"
    before, after = (config["network_def"].get("depth_axis") for config in (run.train, run.executed))
    if before != after and None not in (before, after):  # slices lie along another axis: its length is the free one
        for end in (image, formats["outputs"]["pred"]):
            shape = end["spatial_shape"]
            shape[before], shape[after] = shape[after], shape[before]
    metadata["provenance"] = provenance(record)
    return dict(metadata)


def _other_modalities(run: _Run) -> list[str]:
    """Return what the run's student sees, if that is not what the base bundle's does; else nothing."""
    before, after = (config.get("student_modalities") for config in (run.train, run.executed))
    return after if isinstance(after, list) and after != before else []


def _route_inference(run: _Run, draft: Path) -> None:
    """Let overlays of inference.yaml that pick one modality pick the run's; with several there is none to pick."""
    seen = _other_modalities(run)
    for path in sorted((draft / "configs").glob("inference_*.yaml")) if seen else []:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "modality" not in content:
            continue
        if len(seen) == 1:
            path.write_text(_rewritten(path, {**content, "modality": seen[0]}), encoding="utf-8")
        else:
            path.unlink()
            _logger.warning("left out, not applicable to this run: %s (the network sees %s)", path.name, seen)


def _published_record(run: _Run) -> dict[str, Any]:
    """Return the record without the places of one machine; the hashes in it leave these out anyway."""
    files = [f"configs/{name_in_configs(name)}" for name in run.record["config_files"]]
    config = {**run.record["config"], **{key: run.executed[key] for key in PLACE_IDS if key in run.executed}}
    if "teacher_root" in run.executed:
        config["teacher_root"] = run.executed["teacher_root"]
    return {**run.record, "config_files": files, "config": config}


def _changes(before: Any, after: Any, where: str = "") -> dict[str, Any]:
    """Return ``id: value`` of what differs from the base bundle; None stands for what is gone."""
    if before == after:
        return {}
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return {where: after}
    found: dict[str, Any] = {}
    for key in dict.fromkeys([*before, *after]):
        found |= _changes(before.get(key), after.get(key), f"{where}::{key}" if where else str(key))
    return found


# ---- the teacher ----------------------------------------------------------------------------------------------------


def _copy_teacher(run: _Run, target: Path) -> None:
    """Copy the run's teacher: the config and the weights that were loaded, its metadata and its licenses."""
    source = _teacher_root(run)
    try:
        report = load_report(load_teacher(source))
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"the run's teacher cannot be copied: {' '.join(str(error).split())}") from error
    known = [network.get("weights_sha256") for network in run.record["teacher"]["networks"].values()]
    if report.sha256 not in known:
        raise ValueError(f"the teacher in '{source}' is not the run's: its weights have changed since")
    if report.weights is None or report.weights.suffix not in (".pt", ".pth", ".ts"):
        raise ValueError(f"the teacher in '{source}' is no MONAI bundle or TorchScript file; a bundle cannot hold it")
    if (source / "scripts").is_dir():
        raise ValueError(f"the teacher in '{source}' needs the code in its scripts folder, which a bundle cannot hold")
    (target / "models").mkdir(parents=True)
    name = "model.ts" if report.config_file is None else report.weights.name
    shutil.copyfile(report.weights, target / "models" / name)
    if report.config_file is not None:
        (target / "configs").mkdir()
        shutil.copyfile(report.config_file, target / "configs" / report.config_file.name)
    for extra in ("configs/metadata.json", "LICENSE", "docs/data_license.txt"):
        if source.is_dir() and (source / extra).is_file():
            (target / extra).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / extra, target / extra)
    if load_report(load_teacher(target)).sha256 != report.sha256:
        raise ValueError(f"the copy of the teacher in '{source}' does not load as it did")


def _teacher_root(run: _Run) -> Path:
    given = run.record["config"]["teacher_root"]
    config = {"bundle_root": str(run.base.root), "teacher_root": given}
    try:
        stated = ConfigParser(config).get_parsed_content("teacher_root")
    except Exception as error:  # an expression of somebody's own
        raise ValueError(f"teacher_root '{given}' of the run cannot be evaluated: {reason(error)}") from error
    candidates = [Path(str(stated)).expanduser(), run.base.root / str(stated)]
    for path in candidates:
        if path.exists():
            return path
    raise FileNotFoundError(f"the run's teacher '{stated}' is not there any more; put it back to materialize the run")


# ---- the proof ------------------------------------------------------------------------------------------------------


def _require_verified(draft: Path) -> None:
    failed = [check for check in verify_bundle(draft) if not check.passed]
    for check in failed:
        if check.name == "file sizes":
            _logger.warning("%s; host it elsewhere and list it in large_files.yml", check.detail)
    failed = [check for check in failed if check.name != "file sizes"]
    if failed:
        texts = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        raise ValueError(f"the bundle would not pass verify, nothing is written: {texts}")
