"""Weights under the names that the authors of a network gave them: what their loaders share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_kd.teachers.report import LoadReport, finish
from monai_kd.teachers.weights import file_sha256, read_nnunet_checkpoint, read_state_dict

__all__: list[str] = []

_NNUNET_SUFFIX = ".model"
_DATA_PARALLEL = "module."


def read_published(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict, plain or under ``model``, ``state_dict`` or ``network``, or in a checkpoint of nnU-Net v1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no state dict.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights '{file}' do not exist; give the path of the authors' file")
    if file.suffix != _NNUNET_SUFFIX:
        return dict(read_state_dict(file, None, "cpu"))
    checkpoint = read_nnunet_checkpoint(file, "cpu")
    if not isinstance(state := checkpoint.get("state_dict"), Mapping):
        raise ValueError(f"'{file}' has no state_dict; its keys: {named(map(str, checkpoint))}")
    return dict(state)


def without_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict without the prefix of data-parallel training."""
    if state and all(key.startswith(_DATA_PARALLEL) for key in state):
        return {key.removeprefix(_DATA_PARALLEL): value for key, value in state.items()}
    return dict(state)


def fill_published(network: nn.Module, state: Mapping[str, Tensor], path: str | Path, freeze: bool) -> nn.Module:
    """Give a network converted weights, all of them, freeze it, and return it.

    Raises:
        ValueError: they are another network's; names those that lack, are besides, or have another shape.
    """
    own = network.state_dict()
    shapes = [
        f"{key} (file {tuple(state[key].shape)}, network {tuple(own[key].shape)})"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    refuse(
        f"'{path}' holds the weights of another {type(network).__name__}",
        {
            "it lacks": [key for key in own if key not in state],
            "it has besides": [key for key in state if key not in own],
            "other shapes have": shapes,
        },
    )
    network.load_state_dict(state)
    file = Path(path)
    report = LoadReport(config_file=None, network_id=None, weights=file, sha256=file_sha256(file), loaded=len(state))
    return finish(network, report, freeze)


def refuse(what: str, kinds: Mapping[str, list[str]]) -> None:
    """Raise if there is anything of any kind.

    Raises:
        ValueError: names the first few of each.
    """
    if any(kinds.values()):
        raise ValueError(f"{what}: " + "; ".join(f"{kind} {named(keys)}" for kind, keys in kinds.items() if keys))


def named(keys: Iterable[str], most: int = 5) -> str:
    listed = list(keys)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return f"{', '.join(listed[:most])}{more}"


def check_tensors(state: Mapping[str, object], what: str) -> None:
    """Refuse entries that are no tensors.

    Raises:
        ValueError: names them.
    """
    refuse(what, {"no tensors are": [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]})
