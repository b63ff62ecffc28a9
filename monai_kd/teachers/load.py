"""Load the network and the weights of any MONAI bundle, and say exactly what was loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from monai_kd.teachers.contract import check_teacher
from monai_kd.teachers.network_config import DEFAULT_ID, build_network, find_network
from monai_kd.teachers.weights import file_sha256, find_weights, is_torchscript, read_state_dict, weight_files

__all__ = ["LoadReport", "load_report", "load_teacher"]


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
    network_id: str = DEFAULT_ID,
    config_file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    key_in_ckpt: str | None = None,
    strict: bool = True,
    map_location: str | torch.device = "cpu",
    in_channels: int | None = None,
    class_names: Sequence[str] | None = None,
    patch_size: Sequence[int] | None = None,
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
        in_channels, class_names, patch_size: the student's task. With ``class_names`` the teacher is run once on a
            patch of zeros and must give one channel a class, in the student's order
            (:func:`~monai_kd.teachers.check_teacher`); None leaves its outputs unchecked.

    Returns:
        The network; ``load_report(network)`` says which files were used.

    Raises:
        FileNotFoundError: no such folder, config or weights; the message says where it looked.
        ValueError: no network in the configs, an unknown or ineffective override, unreadable or ambiguous weights, or
            a teacher of another task.
        TypeError: the id does not build a ``torch.nn.Module``.
        RuntimeError: the network cannot be built, or the weights do not fit it.
    """
    network = _load(bundle_root, weights, network_id, config_file, overrides, key_in_ckpt, strict, map_location)
    if class_names is not None:
        check_teacher(network, bundle_root, class_names, in_channels or 1, patch_size or (32, 32, 32))
    return network


def _load(
    bundle_root: str | Path,
    weights: str | Path | None,
    network_id: str,
    config_file: str | Path | None,
    overrides: Mapping[str, Any] | None,
    key_in_ckpt: str | None,
    strict: bool,
    map_location: str | torch.device,
) -> nn.Module:
    root = Path(bundle_root).expanduser().resolve()
    if not root.exists():
        raise FileNotFoundError(f"bundle_root '{root}' does not exist; give a bundle folder or a TorchScript file")
    script = _find_torchscript(root, weights, config_file)
    if script is not None:
        settings = {"config_file": config_file, "overrides": overrides, "key_in_ckpt": key_in_ckpt}
        settings["network_id"] = None if network_id == DEFAULT_ID else network_id
        settings["weights"] = weights if root.is_file() else None  # beside a folder, weights chose the file
        return _load_torchscript(script, map_location, settings)

    found_file, found_id, config = find_network(root, network_id, config_file)
    weights_file = find_weights(root, weights)
    network = build_network(root, config, found_id, found_file, overrides or {}, torch.device(map_location))
    state = read_state_dict(weights_file, key_in_ckpt, map_location)
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


def _find_torchscript(root: Path, weights: str | Path | None, config_file: str | Path | None) -> Path | None:
    """The TorchScript file that ``bundle_root`` stands for; None if it is a folder with configs."""
    if root.is_file():
        if is_torchscript(root):
            return root
        raise ValueError(
            f"'{root}' is not TorchScript, so it holds no network; give the bundle folder, with its configs/"
        )
    if config_file is not None or (root / "configs").is_dir():
        return None
    files = weight_files(root) + weight_files(root / "models") if weights is None else [find_weights(root, weights)]
    scripts = [path for path in files if is_torchscript(path)]
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
    return _finish(network, LoadReport(None, None, path, file_sha256(path), loaded=len(network.state_dict())))


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
        sha256=file_sha256(weights),
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
    warnings.warn(f"weights fit in part: {summary}", stacklevel=4)
