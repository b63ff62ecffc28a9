"""A run's network by its own values: overlays of networks take channels and classes from those of the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from monai.bundle import ConfigParser

from monai_kd.hub.probe import reason

__all__ = ["plain_network"]

_REFERENCES = ("@", "$", "%")


def plain_network(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return ``network_def`` of a configuration with every reference and expression replaced by what it comes out as.

    Args:
        config: raw content of the configuration that ran.
        where: what it is of, for errors.

    Raises:
        ValueError: an argument cannot be evaluated, or is not plain: numbers, texts, and lists and mappings of them.
    """
    parser = ConfigParser(json.loads(json.dumps(config)))
    plain = _plain(parser, config["network_def"], "network_def", where)
    return dict(plain)


def _plain(parser: ConfigParser, value: Any, key: str, where: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(parser, item, f"{key}::{name}", where) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(parser, item, f"{key}::{index}", where) for index, item in enumerate(value)]
    if not (isinstance(value, str) and value.startswith(_REFERENCES)):
        return value
    try:
        found = parser.get_parsed_content(key)
        return json.loads(json.dumps(found, allow_nan=False))
    except Exception as error:  # an expression of somebody's own
        raise ValueError(
            f"{key} of {where} is '{value}', which no file can hold: {reason(error)}; write it out"
        ) from error
