"""A supervised loss that leaves out the images of a batch that have no label."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from monai_kd.losses.gather import process_count, sum_over_processes

__all__ = ["OnLabelled"]


class OnLabelled(nn.Module):
    """Any loss, on the labelled images of a batch alone: the others are there for distillation.

    Give the flag as a further input of the term: ``inputs: {labelled: labelled}``.

    Args:
        loss: ``loss(student, target)``, e.g. MONAI's ``DiceCELoss``.

    Shape:
        student ``(B, ...)``, target ``(B, ...)``, and labelled ``(B,)``, true where the target counts.

    Returns:
        The loss of those images; exactly 0, with a gradient of 0, where there is none. With several processes, all of
        which have to call it, it is weighed by their numbers of labelled images.

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
        own = keep.sum()
        # gradients are averaged over the processes: with this factor they are those of a mean over all labelled images
        share = own * process_count() / sum_over_processes(own).clamp_min(1)
        return share * self.loss(student[keep], target[keep]) if own else student.sum() * 0.0
