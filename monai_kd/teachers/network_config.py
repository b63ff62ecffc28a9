"""Find and build the network of a bundle's configuration, evaluating nothing else of it."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from monai.bundle import ConfigExpression, ConfigParser, ReferenceResolver
from torch import nn

__all__ = ["build_network", "config_files", "find_network", "read_config"]

DEFAULT_ID = "network_def"
HUB_CONFIG = "config.json"  # of a Hugging Face repository
_CONFIG_FILES = (
    *(f"inference.{suffix}" for suffix in ("json", "yaml", "yml")),
    "infer.json",
    *(f"train.{suffix}" for suffix in ("json", "yaml", "yml")),
)


def find_network(root: Path, network_id: str, config_file: str | Path | None) -> tuple[Path, str, dict[str, Any]]:
    """The first config with a network: its path, the id in it, its content."""
    ids = [network_id, "network"] if network_id == DEFAULT_ID else [network_id]
    files = _chosen_config_files(root, config_file)
    known: list[str] = []
    for path in files:
        config = read_config(path)
        parser = ConfigParser(config)
        known += [key for key in config if key not in known]
        for candidate in ids:
            if candidate in parser:
                return path, candidate, config
    names = ", ".join(str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in files)
    raise ValueError(f"no {' or '.join(repr(i) for i in ids)} in {names} of '{root}'; known ids: {', '.join(known)}")


def read_config(path: Path) -> dict[str, Any]:
    """The content of a config, nothing in it evaluated."""
    try:
        config = ConfigParser.load_config_file(path)
    except Exception as error:  # of json or yaml, whose messages do not name the file
        raise ValueError(f"'{path}' cannot be parsed: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"'{path}' holds a {type(config).__name__}; a bundle's config is a mapping of ids")
    return config


def _chosen_config_files(root: Path, config_file: str | Path | None) -> list[Path]:
    if config_file is None:
        existing = config_files(root)
        looked_for = f"no config in '{root / 'configs'}': looked for {', '.join(_CONFIG_FILES)}"
    else:
        files = [root / config_file, root / "configs" / config_file]
        existing = [path for path in files if path.is_file()][:1]
        looked_for = f"config_file '{config_file}' is neither in '{root}' nor in '{root / 'configs'}'"
    if not existing:
        raise FileNotFoundError(looked_for)
    return existing


def config_files(root: Path) -> list[Path]:
    """The configs of a bundle in the order in which they are searched; a Hugging Face ``config.json`` comes last."""
    files = [*(root / "configs" / name for name in _CONFIG_FILES), root / HUB_CONFIG]
    return [path for path in files if path.is_file()]


def build_network(
    root: Path,
    config: dict[str, Any],
    network_id: str,
    config_file: Path,
    overrides: Mapping[str, Any],
    device: torch.device,
) -> nn.Module:
    config = {**config, "bundle_root": str(root)}
    if "device" in config:
        config["device"] = device
    needed = _needed_config(_overridden(config, overrides, config_file), network_id)
    for key in overrides:
        if ReferenceResolver.split_id(key)[0] not in needed:
            built_from = ", ".join(name for name in needed if name != _IMPORTS)
            raise ValueError(f"override '{key}' has no effect on '{network_id}', which is built from: {built_from}")
    with _bundle_scripts(root):
        try:
            network = ConfigParser(needed).get_parsed_content(network_id)
        except Exception as error:
            cause = _first_cause(error)
            reason = f"{type(cause).__name__}: {cause}"
            raise RuntimeError(f"'{network_id}' of '{config_file}' cannot be built: {reason}") from error
    if not isinstance(network, nn.Module):
        raise TypeError(f"'{network_id}' of '{config_file}' is a {type(network).__name__}, not a torch.nn.Module")
    return network


def _first_cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _first_cause(error.__cause__)


def _overridden(config: dict[str, Any], overrides: Mapping[str, Any], config_file: Path) -> dict[str, Any]:
    """A copy of the config with the overrides set; a new id is allowed as an argument of a component only."""
    parser = ConfigParser(deepcopy(config))
    for key, value in overrides.items():
        parent = ReferenceResolver.split_id(key, last=True)[0]
        holder = parser.get(parent) if parent else None
        if key not in parser and not (isinstance(holder, dict) and "_target_" in holder):
            known = ", ".join(holder if isinstance(holder, dict) else parser.get())
            raise ValueError(f"override '{key}' is not in '{config_file}'; known ids there: {known}")
        parser[key] = value
    return parser.get()


_IMPORTS = "_imports_of_the_network_"


def _needed_config(config: Mapping[str, Any], network_id: str) -> dict[str, Any]:
    """The top-level entries that the network refers to, directly or not, and the imports whose names they use.

    MONAI would resolve macros everywhere and run every import statement of a config; here the rest is cut off first.
    """
    needed: dict[str, Any] = {}
    waiting = [network_id]
    while waiting:
        key = ReferenceResolver.split_id(waiting.pop())[0]
        if key in config and key not in needed:
            needed[key] = config[key]
            waiting += _references(config[key], key)
    expressions = " ".join(text for _, text in _strings(needed, "") if ConfigExpression.is_expression(text))
    words = set(re.findall(r"\w+", expressions))
    statements = [text for _, text in _strings(config, "") if words & _imported_names(text)]
    return {**needed, _IMPORTS: list(dict.fromkeys(statements))}


def _strings(content: Any, config_id: str) -> Iterator[tuple[str, str]]:
    """Every string below a config entry with its ``::`` id."""
    if isinstance(content, str):
        yield config_id, content
    elif isinstance(content, (dict, list)):
        for _, sub_id, value in ReferenceResolver.iter_subconfigs(config_id, content):
            yield from _strings(value, sub_id)


def _references(content: Any, config_id: str) -> list[str]:
    """The ids that an entry refers to by ``@id``, also inside expressions, and by the macro ``%id``."""
    ids: list[str] = []
    for sub_id, text in _strings(content, config_id):
        absolute = ConfigParser.resolve_relative_ids(sub_id, text)
        ids += ReferenceResolver.match_refs_pattern(absolute)
        if absolute.startswith("%"):
            file, macro_id = ConfigParser.split_path_id(absolute[1:])
            ids += [] if file else [macro_id]
    return ids


def _imported_names(text: str) -> set[str]:
    """Names that ``$import a, b as c`` binds; empty for anything else."""
    if not ConfigExpression.is_expression(text) or "import" not in text:
        return set()
    try:
        statements = ast.parse(text[1:]).body
    except SyntaxError:  # an expression with @references
        return set()
    aliases = [alias for node in statements if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
    return {(alias.asname or alias.name).partition(".")[0] for alias in aliases}


@contextmanager
def _bundle_scripts(root: Path) -> Iterator[None]:
    """Make the bundle's ``scripts`` importable, hiding another bundle's, and restore sys.path and sys.modules."""
    if not (root / "scripts").is_dir():
        yield
        return
    path_before = list(sys.path)
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "scripts"}
    known = set(sys.modules)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path_before
        for name in set(sys.modules) - known:
            if _lives_in(sys.modules[name], root):
                del sys.modules[name]
        sys.modules.update(hidden)


def _lives_in(module: ModuleType, root: Path) -> bool:
    spec = module.__spec__
    if spec is None:
        return False
    places = [*(spec.submodule_search_locations or []), *([spec.origin] if spec.has_location and spec.origin else [])]
    return any(Path(place).resolve().is_relative_to(root) for place in places)
