"""What holds of every network that comes in two halves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_another_bottleneck(network: Any, image: Tensor) -> None:
    """Another bottleneck changes the logits, and gets a gradient through the decoder."""
    features, skips = network.encode(image)
    other = torch.randn_like(features).requires_grad_()
    logits = network.decode(other, skips)
    logits.square().mean().backward()
    assert not torch.equal(logits, network.decode(features, skips))
    assert other.grad is not None
    assert other.grad.abs().sum() > 0
