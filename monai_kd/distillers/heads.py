"""The outputs of a network by name: its logits, and the auxiliary heads of deep supervision."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__: list[str] = []

AUXILIARY_HEAD = re.compile(r"logits_[1-9]\d*")


def named_heads(output: Any, ndim: int, owner: str) -> dict[str, Tensor]:
    """Return ``logits``, and ``logits_1``, ``logits_2``, ... of a network with deep supervision, in its own order.

    Args:
        output: of the network: logits ``(B, K, *spatial)``; a list of them, the full resolution first;
            ``(B, heads, K, *spatial)``, as MONAI's DynUNet stacks them; or a mapping of names, ``logits`` among them.
        ndim: axes of the image.
        owner: name of the network, for the message.

    Raises:
        TypeError: anything else.
    """
    if isinstance(output, Mapping) and "logits" in output:
        return dict(output)
    if isinstance(output, Tensor):
        heads = list(output.unbind(1)) if output.ndim == ndim + 1 else [output]
    elif isinstance(output, (list, tuple)) and output and all(isinstance(head, Tensor) for head in output):
        heads = list(output)
    else:
        got = type(output).__name__
        raise TypeError(f"network '{owner}' returned {got}; a distiller needs a logits tensor, or a list of them")
    return {f"logits_{number}" if number else "logits": head for number, head in enumerate(heads)}
