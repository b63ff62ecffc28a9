"""Weights for a network that a configuration has built already, such as teachers that were trained together."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from monai_kd.teachers.report import LoadReport, finish
from monai_kd.teachers.weights import file_sha256, read_state_dict

__all__ = ["load_weights"]


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Give a network the weights of a file, all of them, freeze it, and return it.

    Args:
        network: built as the one that was saved.
        path: a state dict, plain or under ``model``, ``state_dict`` or ``network``; tensors alone are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its weights are another network's; names the first that differ.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights '{file}' do not exist; train them first, or give the path of trained ones")
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
    return finish(network, report)
