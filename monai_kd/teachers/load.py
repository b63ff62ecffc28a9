"""Load the network and the weights of any MONAI bundle, and say exactly what was loaded."""

from __future__ import annotations

import ast
import hashlib
import importlib
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from monai.bundle import ConfigExpression, ConfigParser, ReferenceResolver
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

__all__ = ["LoadReport", "load_report", "load_teacher"]

_DEFAULT_ID = "network_def"
_CONFIG_FILES = (
    *(f"inference.{suffix}" for suffix in ("json", "yaml", "yml")),
    "infer.json",
    *(f"train.{suffix}" for suffix in ("json", "yaml", "yml")),
)
_WEIGHT_SUFFIXES = (".pt", ".pth", ".ts", ".ckpt")
_STATE_DICT_KEYS = ("model", "state_dict", "network")


@dataclass(frozen=True)
class LoadReport:
    """What ``load_teacher`` read and how well the weights fitted.

    Attributes:
        config_file: the config that defines the network; None for TorchScript.
        network_id: the id in it; None for TorchScript.
        weights: the weights file, absolute.
        sha256: of the weights file, 64 hex digits.
        loaded: number of tensors copied into the network.
        missing: keys of the network that the file lacks; they keep their initial values.
        unexpected: keys of the file that the network lacks.
        mismatched: ``key: file (shape), network (shape)``; the network keeps its initial values there.
    """

    config_file: Path | None
    network_id: str | None
    weights: Path
    sha256: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self, network: nn.Module) -> str:
        """Counts, and the first five keys of each kind, one kind a line."""
        counts = f"{self.loaded} loaded"
        lines = []
        for kind in ("missing", "unexpected", "mismatched"):
            keys: tuple[str, ...] = getattr(self, kind)
            counts += f", {len(keys)} {kind}"
            if keys:
                lines.append(f"  {kind}: {'; '.join(keys[:5])}{'; ...' if len(keys) > 5 else ''}")
        where = f"'{self.network_id}' of '{self.config_file}'"
        return "\n".join([f"'{self.weights}' for {type(network).__name__} ({where}): {counts}", *lines])


_REPORTS: MutableMapping[nn.Module, LoadReport] = WeakKeyDictionary()


def load_report(network: nn.Module) -> LoadReport:
    """Return the report of a network that ``load_teacher`` returned.

    Raises:
        ValueError: the network has none; copies of a loaded network and wrappers around it have none either.
    """
    if network not in _REPORTS:
        raise ValueError(
            f"{type(network).__name__} has no load report: pass the very network that load_teacher returned, "
            "not a copy or a wrapper"
        )
    return _REPORTS[network]


def load_teacher(
    bundle_root: str | Path,
    weights: str | Path | None = None,
    network_id: str = _DEFAULT_ID,
    config_file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    key_in_ckpt: str | None = None,
    strict: bool = True,
    map_location: str | torch.device = "cpu",
) -> nn.Module:
    """Build the network of a MONAI bundle and load its weights; frozen and in evaluation mode.

    Only the network's definition and what it refers to are evaluated: no data lists, no handlers, and of the config's
    imports those whose names it uses. Its expressions, and a ``scripts/`` folder, are the bundle's code and do run, so
    load bundles you trust. ``scripts`` is importable during the build only: what it imports later is not found.
    The weights are read without running code (``weights_only=True``).

    Args:
        bundle_root: a bundle folder; or a TorchScript file of any name; or a folder without configs that holds one.
        weights: relative to ``bundle_root``, or absolute. Default: models/model.pt, else models/model.ts, else the only
            weights file in models/. A TorchScript file fills the configured network by its state dict.
        network_id: ``::`` id in the config. The default falls back to ``network``.
        config_file: relative to ``bundle_root`` or its configs/. Default: the first in configs/ that has the id, of
            inference.{json,yaml,yml}, infer.json, train.{json,yaml,yml}.
        overrides: ``::`` id to value, set before the build. ``bundle_root`` is always the given folder, and the
            config's ``device`` is ``map_location``.
        key_in_ckpt: where the state dict is in the checkpoint; not needed for a plain state dict or one under
            ``model``, ``state_dict`` or ``network``. The prefix ``module.`` of DDP is removed.
        strict: every key must fit. False loads what fits and warns with the same report.
        map_location: device of the returned network.

    Returns:
        The network; ``load_report(network)`` says which files were used.

    Raises:
        FileNotFoundError: no such folder, config or weights; the message says where it looked.
        ValueError: no network in the configs, an unknown or ineffective override, unreadable or ambiguous weights.
        TypeError: the id does not build a ``torch.nn.Module``.
        RuntimeError: the network cannot be built, or the weights do not fit it.
    """
    root = Path(bundle_root).expanduser().resolve()
    if not root.exists():
        raise FileNotFoundError(f"bundle_root '{root}' does not exist; give a bundle folder or a TorchScript file")
    script = _find_torchscript(root, weights, config_file)
    if script is not None:
        settings = {"config_file": config_file, "overrides": overrides, "key_in_ckpt": key_in_ckpt}
        settings["network_id"] = None if network_id == _DEFAULT_ID else network_id
        settings["weights"] = weights if root.is_file() else None  # beside a folder, weights chose the file
        return _load_torchscript(script, map_location, settings)

    found_file, found_id, config = _find_network(root, network_id, config_file)
    weights_file = _find_weights(root, weights)
    network = _build(root, config, found_id, found_file, overrides or {}, torch.device(map_location))
    state = _read_state_dict(weights_file, key_in_ckpt, map_location)
    report = _fill(network, state, found_file, found_id, weights_file)
    _judge(report, network, strict)
    return _finish(network.to(map_location), report)


def _finish(network: nn.Module, report: LoadReport) -> nn.Module:
    for parameter in network.parameters():  # a ScriptModule has no requires_grad_()
        parameter.requires_grad_(False)
    network.eval()
    _REPORTS[network] = report
    return network


# ---- TorchScript: network and weights in one file -------------------------------------------------------------------


def _is_torchscript(path: Path) -> bool:
    """Both formats are zip files; only TorchScript has a table of constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _find_torchscript(root: Path, weights: str | Path | None, config_file: str | Path | None) -> Path | None:
    """The TorchScript file that ``bundle_root`` stands for; None if it is a folder with configs."""
    if root.is_file():
        if _is_torchscript(root):
            return root
        raise ValueError(
            f"'{root}' is not TorchScript, so it holds no network; give the bundle folder, with its configs/"
        )
    if config_file is not None or (root / "configs").is_dir():
        return None
    files = _weight_files(root) + _weight_files(root / "models") if weights is None else [_find_weights(root, weights)]
    scripts = [path for path in files if _is_torchscript(path)]
    if len(scripts) == 1:
        return scripts[0]
    found = ", ".join(path.name for path in scripts) or "none"
    raise FileNotFoundError(
        f"'{root}' has no configs/ that define a network, and is no folder with one TorchScript file (found: {found})"
    )


def _load_torchscript(path: Path, map_location: str | torch.device, settings: Mapping[str, Any]) -> nn.Module:
    ignored = [name for name, value in settings.items() if value]
    if ignored:
        raise ValueError(f"'{path}' is TorchScript and has no config or checkpoint keys: remove {', '.join(ignored)}")
    network = torch.jit.load(str(path), map_location=map_location)
    return _finish(network, LoadReport(None, None, path, _sha256(path), loaded=len(network.state_dict())))


# ---- the network: config file, overrides, build ---------------------------------------------------------------------


def _find_network(root: Path, network_id: str, config_file: str | Path | None) -> tuple[Path, str, dict[str, Any]]:
    """The first config with a network: its path, the id in it, its content."""
    ids = [network_id, "network"] if network_id == _DEFAULT_ID else [network_id]
    files = _config_files(root, config_file)
    known: list[str] = []
    for path in files:
        config = _read_config(path)
        parser = ConfigParser(config)
        known += [key for key in config if key not in known]
        for candidate in ids:
            if candidate in parser:
                return path, candidate, config
    names = ", ".join(str(path.relative_to(root)) if path.is_relative_to(root) else str(path) for path in files)
    raise ValueError(f"no {' or '.join(repr(i) for i in ids)} in {names} of '{root}'; known ids: {', '.join(known)}")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = ConfigParser.load_config_file(path)
    except Exception as error:  # of json or yaml, whose messages do not name the file
        raise ValueError(f"'{path}' cannot be parsed: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"'{path}' holds a {type(config).__name__}; a bundle's config is a mapping of ids")
    return config


def _config_files(root: Path, config_file: str | Path | None) -> list[Path]:
    if config_file is None:
        files = [root / "configs" / name for name in _CONFIG_FILES]
        looked_for = f"no config in '{root / 'configs'}': looked for {', '.join(_CONFIG_FILES)}"
    else:
        files = [root / config_file, root / "configs" / config_file]
        looked_for = f"config_file '{config_file}' is neither in '{root}' nor in '{root / 'configs'}'"
    existing = [path for path in files if path.is_file()]
    if not existing:
        raise FileNotFoundError(looked_for)
    return existing if config_file is None else existing[:1]


def _build(
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


# ---- the weights: find, read, fill ----------------------------------------------------------------------------------


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in _WEIGHT_SUFFIXES and path.is_file())


def _find_weights(root: Path, weights: str | Path | None) -> Path:
    if weights is not None:
        path = root / Path(weights).expanduser()
        if path.is_file():
            return path.resolve()
        raise FileNotFoundError(f"weights '{path}' do not exist{_download_hint(root)}")
    models = root / "models"
    for name in ("model.pt", "model.ts"):
        if (models / name).is_file():
            return models / name
    found = _weight_files(models)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise ValueError(
            f"'{models}' holds {names}, none is model.pt or model.ts: choose by weights='models/{found[0].name}'"
        )
    raise FileNotFoundError(
        f"no weights in '{models}': looked for model.pt, model.ts, or one *{', *'.join(_WEIGHT_SUFFIXES)} file"
        + _download_hint(root)
    )


def _download_hint(root: Path) -> str:
    if not any(root.glob("large_files*")):
        return ""
    return f"; fetch them: python -m monai.bundle download_large_files --bundle_path '{root}'"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_state_dict(path: Path, key: str | None, map_location: str | torch.device) -> MutableMapping[str, Any]:
    if _is_torchscript(path):
        if key is not None:
            raise ValueError(f"'{path}' is TorchScript and has no checkpoint keys: remove key_in_ckpt='{key}'")
        return torch.jit.load(str(path), map_location=map_location).state_dict()
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(_unreadable(path, str(error))) from error
    return _pick_state_dict(checkpoint, key, path)


def _unreadable(path: Path, reason: str) -> str:
    with path.open("rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            return f"'{path}' is a Git LFS pointer, not the weights: run `git lfs pull` in the bundle"
    needs = re.search(r"GLOBAL (\S+)", reason)
    if needs:
        return (
            f"'{path}' needs code to unpickle ({needs.group(1)}) and only tensors are read (weights_only=True): "
            "where you trust it, save torch.save(network.state_dict(), ...) anew"
        )
    return (
        f"'{path}' is no readable PyTorch checkpoint: {reason.strip().splitlines()[0] if reason.strip() else 'empty'}"
    )


def _pick_state_dict(checkpoint: Any, key: str | None, path: Path) -> MutableMapping[str, Any]:
    if not isinstance(checkpoint, MutableMapping):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not a state dict")
    listed = ", ".join(map(str, list(checkpoint)[:8]))
    if key is not None:
        if not isinstance(checkpoint.get(key), MutableMapping):
            raise ValueError(f"key_in_ckpt '{key}' is no state dict in '{path}'; its keys: {listed}")
        return checkpoint[key]
    wrapped = [name for name in _STATE_DICT_KEYS if isinstance(checkpoint.get(name), MutableMapping)]
    if len(wrapped) == 1:
        return checkpoint[wrapped[0]]
    if wrapped:
        raise ValueError(f"'{path}' has several state dicts: choose key_in_ckpt among {', '.join(wrapped)}")
    if any(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        return checkpoint
    raise ValueError(f"'{path}' has no state dict under {', '.join(_STATE_DICT_KEYS)}: set key_in_ckpt; keys: {listed}")


def _fill(
    network: nn.Module, state: MutableMapping[str, Any], config_file: Path, network_id: str, weights: Path
) -> LoadReport:
    """Copy what fits into the network. Missing and unexpected keys are torch's own verdict, so its renamings count."""
    own = network.state_dict()
    if all(key.startswith("module.") for key in state) and not any(key.startswith("module.") for key in own):
        consume_prefix_in_state_dict_if_present(state, "module.")  # type: ignore[arg-type]  # DDP's prefix
    mismatched = [key for key in state if key in own and _shape(state[key]) != _shape(own[key])]
    described = [f"{key}: file {_shape(state.pop(key))}, network {_shape(own[key])}" for key in mismatched]
    verdict = network.load_state_dict(state, strict=False)
    return LoadReport(
        config_file=config_file,
        network_id=network_id,
        weights=weights,
        sha256=_sha256(weights),
        loaded=len(state) - len(verdict.unexpected_keys),
        missing=tuple(key for key in verdict.missing_keys if key not in mismatched),
        unexpected=tuple(verdict.unexpected_keys),
        mismatched=tuple(described),
    )


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _judge(report: LoadReport, network: nn.Module, strict: bool) -> None:
    if report.complete and report.loaded:
        return
    summary = report.summary(network)
    if not report.loaded:
        raise RuntimeError(f"nothing fits: {summary}\nGive the weights of this network, or check `config_file`.")
    if strict:
        raise RuntimeError(
            f"weights do not fit: {summary}\nGive the weights of this network, set its arguments by `overrides`, "
            "or load what fits by strict=False."
        )
    warnings.warn(f"weights fit in part: {summary}", stacklevel=3)
