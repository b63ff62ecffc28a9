"""Weights for a network that a configuration has built already, such as teachers that were trained together."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from monai_kd.teachers.report import LoadReport, finish
from monai_kd.teachers.weights import file_sha256, read_state_dict

__all__ = ["load_weights"]

_logger = logging.getLogger("monai_kd")


def load_weights(
    network: nn.Module, path: str | Path, made_for: Mapping[str, Any] | None = None, freeze: bool = True
) -> nn.Module:
    """Give a network the weights of a file, all of them, freeze it, and return it.

    Args:
        network: built as the one that was saved. The networks of an ``nn.ModuleDict`` share its load report, so that
            a record names their weights wherever they go.
        path: a state dict, plain or under ``model``, ``state_dict`` or ``network``; tensors alone are read.
        made_for: ids of the configuration and the values that they must have had when the weights were trained, which
            shapes do not tell, such as the modality of each teacher. They are compared with the training record beside
            the file (``model.json`` for ``model.pt``, or ``run.json``); without one a warning says so.
        freeze: ``False`` leaves it as it is, to be trained from these weights on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, its weights are another network's, or they were trained for something else; names the
            first that differ.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights '{file}' do not exist; train them first, or give the path of trained ones")
    _check_record(file, made_for or {})
    state = read_state_dict(file, None, "cpu")
    try:
        result = network.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        first = str(error).strip().splitlines()[1:2] or [str(error)]
        raise ValueError(
            f"'{file}' holds the weights of another {type(network).__name__}: {first[0].strip()}"
        ) from None
    if result.missing_keys or result.unexpected_keys:
        kinds = (("lacks", result.missing_keys), ("has besides", result.unexpected_keys))
        said = "; ".join(f"it {verb} {len(keys)}, such as {keys[0]}" for verb, keys in kinds if keys)
        raise ValueError(f"'{file}' holds the weights of another network than this {type(network).__name__}: {said}")
    report = LoadReport(config_file=None, network_id=None, weights=file, sha256=file_sha256(file), loaded=len(state))
    for part in network.values() if isinstance(network, nn.ModuleDict) else []:
        finish(part, report, freeze)
    return finish(network, report, freeze)


def _check_record(file: Path, made_for: Mapping[str, Any]) -> None:
    """Refuse weights whose training record names other settings."""
    if not made_for:
        return
    record = next((path for path in (file.with_suffix(".json"), file.with_name("run.json")) if path.is_file()), None)
    if record is None:
        _logger.warning("'%s' has no training record beside it: nobody checks that it is for %s", file, dict(made_for))
        return
    config = json.loads(record.read_text(encoding="utf-8")).get("config", {})
    for name, value in made_for.items():
        if name in config and config[name] != value:
            raise ValueError(
                f"'{file}' was trained with {name} {config[name]} ('{record.name}'), this configuration has {value}: "
                "train teachers of your own, or give the path of theirs"
            )
