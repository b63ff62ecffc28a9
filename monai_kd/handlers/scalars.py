"""The named scalars of a training iteration: the loss and every term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai.utils.enums import CommonKeys as Keys
from torch import Tensor

__all__ = ["named_scalars", "raw_scalars"]

_WEIGHTED = "weighted/"


def named_scalars(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the scalars of an engine's output (decollated or not), e.g. ``{"loss": 0.9, "seg": 0.7, "soft": 0.2,
    "weighted/seg": 0.7, "weighted/soft": 0.2}``.

    Serves as ``output_transform`` of ``TensorBoardStatsHandler``: one curve for the loss, one for each term as it is,
    and one for each term times its weight and factor, which add up to the loss.
    """
    record = output if isinstance(output, Mapping) else output[0]
    tensors = (Keys.IMAGE, Keys.LABEL, Keys.PRED)
    return {
        name: float(value)
        for name, value in record.items()
        if name not in tensors and (isinstance(value, float) or (isinstance(value, Tensor) and value.numel() == 1))
    }


def raw_scalars(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the loss and the unweighted terms only: what a progress bar shows and a run's record keeps."""
    return {name: value for name, value in named_scalars(output).items() if not name.startswith(_WEIGHTED)}
