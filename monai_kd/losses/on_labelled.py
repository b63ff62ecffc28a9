"""A supervised loss that leaves out the images of a batch that have no label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["OnLabelled"]


class OnLabelled(nn.Module):
    """Any loss, on the labelled images of a batch alone: the others are there for distillation.

    Give the flag as a further input of the term: ``inputs: {labelled: labelled}``.

    Args:
        loss: ``loss(student, target)``, e.g. MONAI's ``DiceCELoss``.

    Shape:
        student ``(B, ...)``, target ``(B, ...)``, and labelled ``(B,)``, true where the target counts.

    Returns:
        The loss of those images; exactly 0, with a gradient of 0, where there is none.

    Raises:
        ValueError: another number of flags than of images.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        keep = torch.as_tensor(labelled).flatten().bool().to(student.device)
        if len(keep) != len(student):
            raise ValueError(f"labelled has {len(keep)} flags for {len(student)} images; give one each")
        if not keep.any():
            return student.sum() * 0.0
        return self.loss(student[keep], target[keep])
