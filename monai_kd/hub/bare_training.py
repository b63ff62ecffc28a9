"""Build a bundle's training as its configuration says, on its data, and without traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_kd.distillers import Distiller
from monai_kd.engines import DistillationTrainer
from monai_kd.handlers.ema_teacher import EMATeacher
from monai_kd.handlers.first_cause import first_cause
from monai_kd.hub.probe import has_id, reason, several_processes

__all__ = ["bare_trainer", "shown", "training_files"]


def training_files(root: Path, names: Sequence[str]) -> list[str]:
    """Return the paths of the configuration files of a training, in a bundle or, if not there, in the current folder.

    Raises:
        FileNotFoundError: one is in neither.
        ValueError: they cannot be merged, describe no training, or one of several processes.
    """
    paths = []
    for name in names:
        found = next((path for path in (root / name, Path(name)) if path.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"config_file '{name}' is neither in bundle '{root}' nor in the current folder")
        paths.append(str(found.resolve()))
    raw = _merged(paths)
    if not has_id(raw, "train::trainer::network"):
        raise ValueError(f"config_file {shown(paths)} describes no training: it has no train::trainer::network")
    if several_processes(raw.get()):
        raise ValueError(f"{shown(paths)} trains in several processes; leave that overlay out, one process measures")
    return paths


def bare_trainer(
    root: Path, files: list[str], overrides: Mapping[str, Any], temporary: str
) -> tuple[DistillationTrainer, int]:
    """Return the configured trainer of a Distiller, and the seed; nothing has run yet.

    Its handlers are left out, since they validate, log and write; only one that moves a teacher stays
    (:class:`~monai_kd.handlers.EMATeacher`). Student, teacher and data are made in the order of a training. Errors are
    first causes, without MONAI's around them.

    Args:
        root: the bundle's folder.
        files: of :func:`training_files`.
        overrides: ``::`` id to value.
        temporary: folder that stands for those into which a training writes.

    Raises:
        ValueError: a component refuses its arguments.
        OSError, ImportError: of a component, such as a teacher without weights.
        TypeError: another network than a Distiller is trained.
    """
    raw = _merged(files)
    ours = {
        "bundle_root": str(root),
        **{name: f"{temporary}/{name}" for name in ("run_dir", "ckpt_dir")},
        **{name: _kept_handlers(raw, name) for name in ("train::handlers", "train::trainer::train_handlers")},
    }
    overrides = {**overrides, **{name: value for name, value in ours.items() if has_id(raw, name)}}
    try:
        flow = ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False, **overrides)
        flow.initialize()
        seed = int(flow.parser.get_parsed_content("seed")) if has_id(flow.parser, "seed") else 0
        if has_id(flow.parser, "network"):
            flow.parser.get_parsed_content("network")  # first, as in training: its weights depend on the seed alone
        network: Any = flow.parser.get_parsed_content("train::trainer::network")  # then a wrong teacher, then the data
        if isinstance(network, Distiller):
            return flow.parser.get_parsed_content("train::trainer"), seed
    except Exception as error:  # MONAI wraps what a component raises once for every id on the way
        raise _plain(error) from None
    raise TypeError(f"{shown(files)} trains a {type(network).__name__}; only a Distiller has terms to calibrate")


def _merged(files: Sequence[str]) -> ConfigParser:
    """Return the raw configuration, overlays applied."""
    try:
        return ConfigParser(ConfigParser.load_config_files(files))
    except (KeyError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"config_file {shown(files)} cannot be read ({' '.join(str(error).split())}); an overlay stands "
            "behind the file it changes, \"['configs/train.yaml','configs/OVERLAY.yaml']\""
        ) from None


def shown(files: Sequence[str]) -> str:
    """Return the names of configuration files for a message."""
    return " + ".join(Path(file).name for file in files)


def _kept_handlers(raw: ConfigParser, name: str) -> Any:
    content = raw[name] if has_id(raw, name) else []
    if isinstance(content, str) and content.startswith("@"):
        return content
    listed = [handler for handler in content if isinstance(handler, dict)] if isinstance(content, list) else []
    return [handler for handler in listed if str(handler.get("_target_")).endswith(f".{EMATeacher.__name__}")]


def _plain(error: Exception) -> BaseException:
    """Return the first cause as an error that the command line prints in one line."""
    cause = first_cause(error)
    if isinstance(cause, (OSError, ImportError)):
        return cause
    is_plain = isinstance(cause, (ValueError, TypeError, RuntimeError))
    return ValueError(reason(error).removeprefix(f"{type(cause).__name__}: " if is_plain else ""))
