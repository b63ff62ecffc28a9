"""The records of finished evaluations: found, read and checked before anything is concluded from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["load_records", "validate_record"]

_REQUIRED = (
    "run_id",
    "method",
    "seed",
    "schedule_hash",
    "commit",
    "versions",
    "config_files",
    "config_hash",
    "bundle.name",
    "bundle.version",
    "protocol.name",
    "protocol.hash",
    "protocol.section",
    "network.target",
    "network.parameters",
    "network.weights_sha256",
    "teacher",
    "device.name",
    "device.type",
    "device.threads",
    "time.inference_s_per_case",
    "classes",
    "cases",
    "summary.dice.mean",
    "training",
)
# Known only where the training that made the weights is.
_REQUIRED_OF_TRAINED = (
    "training.time.total_s",
    "teacher.source",
    "protocol.split_hash",
    "protocol.n_train",
    "protocol.n_validation",
)


def load_records(results_dir: str | Path) -> list[dict[str, Any]]:
    """Read every evaluation record ``results_dir/**/run.json``, sorted by path. Records of other kinds are left out.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a file is no JSON object of schema 1, or an evaluation lacks a key; names the file and the key.
    """
    root = Path(results_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"results_dir '{root}' is not a folder; evaluations write run.json files into one")
    records = []
    for path in sorted(root.rglob("run.json")):
        record = _read(path)
        if record["kind"] == "evaluation":
            validate_record(record, path)
            records.append(record)
    return records


def validate_record(record: Mapping[str, Any], source: str | Path) -> None:
    """Refuse an evaluation record that lacks what tables and figures read; ``source`` names it in the message."""
    for key in _REQUIRED:
        _get(record, key, source)
    if record["training"] is not None:
        for key in _REQUIRED_OF_TRAINED:
            _get(record, key, source)
    if record["seed"] is not None and type(record["seed"]) is not int:
        raise ValueError(f"{source}: 'seed' is {record['seed']!r}; it must be a whole number, or null if unknown")
    _check_summary(record, source)
    _check_cases(record, source)


def _check_summary(record: Mapping[str, Any], source: str | Path) -> None:
    _check_number(record["summary"]["dice"]["mean"], "summary.dice.mean", source)
    for name in record["classes"].values():
        for table in ("dice", "hd95_mm"):
            _check_number(_get(record, f"summary.{table}.{name}", source), f"summary.{table}.{name}", source)
        missed = _get(record, f"summary.missed.{name}", source)
        if type(missed) is not int or missed < 0:
            raise ValueError(f"{source}: 'summary.missed.{name}' is {missed!r}; it must be a count, 0 or more")


def _check_cases(record: Mapping[str, Any], source: str | Path) -> None:
    if not record["cases"]:
        raise ValueError(f"{source}: 'cases' is empty; an evaluation has at least one case")
    seen: set[str] = set()
    for index, entry in enumerate(record["cases"]):
        case = _get(entry, "case", source, f"cases[{index}].")
        if case in seen:
            raise ValueError(f"{source}: case '{case}' occurs twice in 'cases'")
        seen.add(case)
        for name in record["classes"].values():
            key = f"dice.{name}"
            _check_number(_get(entry, key, source, f"cases[{index}]."), f"cases[{index}].{key}", source)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: holds a {type(record).__name__}, a record is a JSON object")
    if _get(record, "schema", path) != 1:
        raise ValueError(f"{path}: 'schema' is {record['schema']!r}; this version reads schema 1")
    _get(record, "kind", path)
    return record


def _get(record: Any, key: str, source: str | Path, prefix: str = "") -> Any:
    value = record
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = f"; known there: {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
            raise ValueError(f"{source}: missing key '{prefix}{key}'{known}")
        value = value[part]
    return value


def _check_number(value: Any, key: str, source: str | Path) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{source}: '{key}' is {value!r}; it must be a finite number, or null where nothing is scored")
