"""The overlays of a bundle on the configuration of a run: which still apply, and what they must disable now."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from monai_kd.handlers import override_problems
from monai_kd.hub.bundle_folder import BundleFolder
from monai_kd.hub.failing_ids import evaluated, waits_for_a_file
from monai_kd.hub.probe import several_processes

__all__ = ["copy_overlays"]

_logger = logging.getLogger("monai_kd")
_SWITCH = "::_disabled_"


def copy_overlays(base: BundleFolder, train: Mapping[str, Any], draft: Path, executed: Mapping[str, Any]) -> list[str]:
    """Copy a bundle's overlays into a bundle made from one of its runs, those that apply to what ran.

    An overlay that disables terms of train.yaml stands for another method than that one. The run's own terms have
    taken their place, so it is made to disable these as well, with their schedules. Then each overlay is evaluated on
    its new base; one that fails is left out with a warning that says why.

    Args:
        base: the bundle that was trained.
        train: content of its train.yaml.
        draft: the new bundle, complete but for its overlays.
        executed: content of the new train.yaml.

    Returns:
        The names of the overlays that were left out.
    """
    left_out: dict[str, list[str]] = {}
    main = {base.config_path("train"), base.config_path("inference"), base.root / "configs" / "infer.json"}
    for path in (path for path in base.configs if path not in main):
        name = path.relative_to(base.root / "configs").as_posix()
        target = draft / "configs" / name
        target.parent.mkdir(exist_ok=True, parents=True)
        overlay = base.read(path)
        target.write_text(_text(path, overlay, _addition(overlay, train, executed)), encoding="utf-8")
        if problem := _problem(draft, name, overlay):
            target.unlink()
            left_out.setdefault(problem, []).append(name)
    _remove_empty_folders(draft / "configs")
    for problem, names in left_out.items():
        _logger.warning("left out, not applicable to this run: %s (%s)", ", ".join(names), problem)
    return [name for names in left_out.values() for name in names]


def _addition(overlay: Mapping[str, Any], train: Mapping[str, Any], executed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an overlay needs besides its own ids: the run's terms off, and no schedule of what is off."""
    off = [key for key in _terms_off(overlay) if key in train.get("terms", {})]
    if not off:
        return {}
    own = {str(key).split("::")[1] for key in overlay if str(key).startswith("terms::")}
    added = [term for term in executed.get("terms", {}) if term not in train["terms"] and term not in own]
    ids: dict[str, Any] = {f"terms::{term}{_SWITCH}": True for term in added}
    scheduled = executed.get("schedules", {})
    ids |= {f"schedules::{term}": {} for term in (*off, *added) if scheduled.get(term)}
    return {key: value for key, value in ids.items() if key not in overlay}


def _text(path: Path, overlay: Mapping[str, Any], addition: Mapping[str, Any]) -> str:
    text = path.read_text(encoding="utf-8")
    if not addition:
        return text
    if path.suffix == ".json":
        return json.dumps({**overlay, **addition}, indent=2) + "\n"
    return f"{text.rstrip()}\n# the run's own terms\n{yaml.safe_dump(dict(addition), sort_keys=False)}"


def _terms_off(overlay: Mapping[str, Any]) -> list[str]:
    switches = [str(key) for key, value in overlay.items() if str(key).endswith(_SWITCH) and value is True]
    return [key.split("::")[1] for key in switches if key.startswith("terms::") and key.count("::") == 2]


def _problem(draft: Path, name: str, overlay: Mapping[str, Any]) -> str:
    """Say why an overlay does not apply to the new configuration, or return an empty text."""
    bundle = BundleFolder(draft)
    names = (bundle.base_of(name), name)
    given = {key: value for key, value in overlay.items() if "::" in str(key)}
    over = str(bundle.root / "configs" / names[0])
    if unknown := [text for text in override_problems(over, given) if "no such key" in text]:
        return unknown[0].replace(f"{bundle.root}/", "")
    if several_processes(bundle.merged(names)):
        return ""  # it cannot be evaluated in one process
    failed = {key: text for key, text in evaluated(bundle, names).items() if not waits_for_a_file(text)}
    return next((f"{key}: {text}" if key else text for key, text in failed.items()), "")


def _remove_empty_folders(configs: Path) -> None:
    for folder in sorted((path for path in configs.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
