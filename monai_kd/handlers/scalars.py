"""The named scalars of a training iteration: the loss and every term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai.utils.enums import CommonKeys as Keys
from torch import Tensor

__all__ = ["named_scalars"]


def named_scalars(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the scalars of an engine's output (decollated or not), e.g. ``{"loss": 0.9, "seg": 0.7, "soft": 0.2}``.

    Serves as ``output_transform`` of ``TensorBoardStatsHandler``: one curve for the loss and one for each term.
    """
    record = output if isinstance(output, Mapping) else output[0]
    tensors = (Keys.IMAGE, Keys.LABEL, Keys.PRED)
    return {
        name: float(value)
        for name, value in record.items()
        if name not in tensors and (isinstance(value, float) or (isinstance(value, Tensor) and value.numel() == 1))
    }
