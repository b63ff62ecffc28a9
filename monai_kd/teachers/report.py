"""How well weights fitted a teacher's network, and the report that says so."""

from __future__ import annotations

import warnings
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from monai_kd.teachers.weights import file_sha256

__all__ = ["LoadReport", "fill", "finish", "judge", "load_report"]


@dataclass(frozen=True)
class LoadReport:
    """What ``load_teacher`` read and how well the weights fitted.

    Attributes:
        config_file: the config that defines the network, plans.json for nnU-Net; None for TorchScript and ensembles.
        network_id: the id in it, the configuration for nnU-Net; None for TorchScript and ensembles.
        weights: the weights file, absolute; None for ensembles.
        sha256: of the weights file, 64 hex digits; of an ensemble that of its members' hashes, one a line, in order.
        loaded: number of tensors copied into the network.
        missing: keys of the network that the file lacks; they keep their initial values.
        unexpected: keys of the file that the network lacks.
        mismatched: ``key: file (shape), network (shape)``; the network keeps its initial values there.
        members: the reports of an ensemble's members.
    """

    config_file: Path | None
    network_id: str | None
    weights: Path | None
    sha256: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    members: tuple[LoadReport, ...] = ()

    @property
    def complete(self) -> bool:
        own = not (self.missing or self.unexpected or self.mismatched)
        return own and all(member.complete for member in self.members)

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


def finish(network: nn.Module, report: LoadReport, freeze: bool = True) -> nn.Module:
    """Freeze a network whose weights are in place, unless it is to learn on, and remember its report."""
    if freeze:
        for parameter in network.parameters():  # a ScriptModule has no requires_grad_()
            parameter.requires_grad_(False)
        network.eval()
    _REPORTS[network] = report
    return network


def fill(
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


def judge(report: LoadReport, network: nn.Module, strict: bool) -> None:
    """Refuse weights that do not fit, or warn where ``strict`` is off and some do."""
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
    warnings.warn(f"weights fit in part: {summary}", stacklevel=5)
