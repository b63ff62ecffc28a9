"""Checks of a bundle's configurations and metadata."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
from monai.bundle import ComponentLocator, ConfigParser
from monai.utils import optional_import

from monai_kd.hub.bundle_folder import BundleFolder, NotReadable, leaves
from monai_kd.hub.probe import opened_workflow, reason
from monai_kd.hub.shared_blocks import infer_json

__all__ = [
    "against_schema",
    "duplicate_keys",
    "foreign_targets",
    "logging_problems",
    "missing_properties",
    "network_differences",
    "numeric_texts",
    "stale_infer_json",
    "yaml_problems",
]

_SCHEMA = Path(__file__).with_name("metadata_schema.json")
_NUMERIC = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
_STOCK = ("monai", "torch", "ignite", "numpy", "nibabel")
_IMPORT = re.compile(r"\$\s*(?:import|from)\s+(\w+)")


def against_schema(data_schema: str | Path | None) -> Callable[[BundleFolder], list[str]]:
    """Return a check of ``metadata.json`` against a local JSON schema, by MONAI's own command."""
    _, has_jsonschema = optional_import("jsonschema")
    if not has_jsonschema:
        raise ImportError("checking metadata.json needs jsonschema: pip install 'monai_kd[hub]'")

    def check(bundle: BundleFolder) -> list[str]:
        if "schema" not in bundle.metadata:
            return ["configs/metadata.json has no 'schema', the address of the schema it follows"]
        with tempfile.TemporaryDirectory() as temporary:
            # MONAI downloads nothing when the file is there
            local = shutil.copyfile(data_schema or _SCHEMA, Path(temporary) / "schema.json")
            try:
                meta_file = str(bundle.root / "configs" / "metadata.json")
                monai.bundle.verify_metadata(meta_file=meta_file, filepath=str(local))
            except ValueError as error:
                cause = error.__cause__
                where = "::".join(str(part) for part in getattr(cause, "absolute_path", ()))
                text = getattr(cause, "message", None) or str(error)
                return [f"configs/metadata.json{f' at {where}' if where else ''}: {text}"]
        return []

    return check


def duplicate_keys(path: Path) -> list[str]:
    """Return the keys that a file gives twice; YAML keeps the last."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ConfigParser.load_config_file(str(path))
    found = [re.search(r"Duplicate key: `(.*?)`", str(warning.message)) for warning in caught]
    return [match[1] for match in found if match]


def numeric_texts(content: Any) -> list[str]:
    """Return ``id: 'text'`` of texts that look like numbers, such as ``1e-3``, which YAML 1.1 reads as text."""
    texts = [(where, value) for where, value in leaves(content) if isinstance(value, str)]
    return [f"{where}: '{value}'" for where, value in texts if _NUMERIC.fullmatch(value)]


def yaml_problems(bundle: BundleFolder) -> list[str]:
    """Every configuration parses, without duplicate keys and numbers that YAML takes for text."""
    problems = []
    for path in bundle.configs:
        name = bundle.relative(path)
        try:
            content = bundle.read(path)
        except NotReadable as error:
            problems.append(str(error))
            continue
        problems += [f"{name} gives the key '{key}' twice" for key in duplicate_keys(path)]
        problems += [f"{name} has the text {text}; write 1e-3 as 1.0e-3" for text in numeric_texts(content)]
    return problems


def network_differences(bundle: BundleFolder) -> list[str]:
    """What trains is what infers."""
    try:
        train = bundle.config("train")
    except NotReadable as error:
        if "missing" in str(error):
            return []  # a bundle that only infers
        raise
    inference = bundle.config("inference")
    both = [config["network_def"] for config in (train, inference) if "network_def" in config]
    if len(both) < 2:
        return ["'network_def' must stand in train.yaml and in inference.yaml"]
    if both[0] == both[1]:
        return []
    sides = [dict(leaves(content)) for content in both]
    keys = sorted(key for key in {*sides[0], *sides[1]} if sides[0].get(key) != sides[1].get(key))
    return [f"'network_def' of train.yaml and inference.yaml differs at {', '.join(keys) or 'its structure'}"]


def stale_infer_json(bundle: BundleFolder) -> list[str]:
    """``infer.json``, which ``monai.bundle.load`` reads, is what inference.yaml generates."""
    if bundle.config_path("inference").suffix == ".json":
        return []
    config = bundle.config("inference")
    if absent := [key for key in ("bundle_root", "device", "network_def") if key not in config]:
        return [f"inference.yaml lacks {', '.join(absent)}, which infer.json is made from"]
    path = bundle.root / "configs" / "infer.json"
    if not path.is_file():
        return ["configs/infer.json is missing: write it by `python -m monai_kd sync`"]
    if path.read_text(encoding="utf-8") != infer_json(bundle.root):
        return ["configs/infer.json is not what inference.yaml gives: renew it by `python -m monai_kd sync`"]
    return []


def foreign_targets(bundle: BundleFolder) -> list[str]:
    """With a stock network, inference needs MONAI alone; with another, the package of that network besides."""
    config = bundle.config("inference")
    definition = config.get("network_def")
    target = definition.get("_target_", "") if isinstance(definition, dict) else ""
    allowed = {*_STOCK, *([] if _is_stock(target) else [target.partition(".")[0]])}
    problems = []
    for where, text in leaves(config):
        if not isinstance(text, str):
            continue
        if where.rpartition("::")[2] == "_target_" and not _is_stock(text) and text.partition(".")[0] not in allowed:
            problems.append(f"'{where}' of inference.yaml is '{text}', not of MONAI or PyTorch")
        elif (match := _IMPORT.match(text)) and match[1] not in {*allowed, *sys.stdlib_module_names}:
            problems.append(f"inference.yaml imports '{match[1]}', which plain MONAI does not bring")
    return problems


def _is_stock(target: str) -> bool:
    if "." in target:
        return target.partition(".")[0] in _STOCK
    return ComponentLocator().get_component_module_name(target) is not None


def logging_problems(bundle: BundleFolder) -> list[str]:
    """MONAI refuses a ``logging.conf`` that could run code."""
    path = bundle.root / "configs" / "logging.conf"
    if not path.is_file():
        return ["configs/logging.conf is missing; MONAI Label needs it to train on several GPUs"]
    from monai.bundle.workflows import _reject_executable_logging_config  # what MONAI itself asks, without applying it

    try:
        _reject_executable_logging_config(str(path))
    except ValueError as error:
        return [str(error).replace(f"{bundle.root}/", "")]
    return []


def missing_properties(bundle: BundleFolder) -> list[str]:
    """MONAI's ``check_properties()`` for train.yaml, with each of its overlays, and inference.yaml."""
    problems = []
    for names in (*bundle.standard_combinations(), *bundle.overlay_combinations()):
        try:
            with opened_workflow(bundle, names) as flow:
                flow.initialize()
                missing = flow.check_properties()
                flow.finalize()
        except NotReadable:
            raise
        except Exception as error:  # of the bundle's own components
            problems.append(f"{' + '.join(names)}: {reason(error)}")
            continue
        if missing:
            problems.append(f"{' + '.join(names)}: missing or misnamed: {', '.join(missing)}")
    return problems
