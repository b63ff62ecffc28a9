"""The supervised loss of MTCM-KD: Dice, Jaccard and cross-entropy in equal parts, from one softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kd.losses.dense import check_label, check_number, widen

__all__ = ["DiceJaccardCE"]

_RESAMPLING = ("area", "nearest")


class DiceJaccardCE(nn.Module):
    """A third each of Dice loss, Jaccard loss and cross-entropy of exclusive classes.

    With probabilities p and one-hot labels Y, sums over batch and voxels, ``I_k = sum p_k Y_k``,
    ``C_k = sum (p_k + Y_k)`` and the smoothing s::

        1/3 (1 - mean_k (2 I_k + s) / (C_k + s)) + 1/3 (1 - mean_k (I_k + s) / (C_k - I_k + s)) + 1/3 CE

    One softmax serves all three. Computed in float32, also inside autocast.

    Logits on a coarser grid than the label, as those of deep supervision, get a label of their own grid: the shares of
    the classes in each coarse voxel, or every second voxel.

    Args:
        include_background: whether class 0 is among the overlap terms; cross-entropy always has it.
        smooth: s, voxels. Above 0 a class that the label lacks has a gradient too: it costs to predict it.
        resampling: of labels to coarser grids: ``area`` (soft shares; thin structures stay) or ``nearest`` (the voxel
            at ``floor(index * stride)``, as published).

    Shape:
        logits: ``(B, K, *spatial)``, K >= 2.
        label: class indices ``(B, 1, *spatial)`` or ``(B, *spatial)``, also on a grid a whole number of times finer.
        available: optional ``(B,)`` of 0 and 1; samples of 0 do not count. If none counts the loss is exactly 0.

    Raises:
        ValueError: a setting out of range, K is 1, a label of another shape or grid, or a class that there is not.

    Source: Ahmad et al. 2024 (MTCM-KD). Their overlap terms include the background and have no smoothing in the
    numerator: ``include_background=True, smooth=0`` is that. The mean over classes was easy to lift by background alone
    there, and an absent class had no gradient.
    """

    def __init__(self, include_background: bool = False, smooth: float = 1.0, resampling: str = "area") -> None:
        super().__init__()
        self.include_background = include_background
        self.smooth = check_number("smooth", smooth, least=0)
        if resampling not in _RESAMPLING:
            raise ValueError(f"resampling is {resampling!r}; known: {', '.join(_RESAMPLING)}")
        self.resampling = resampling

    def forward(self, logits: Tensor, label: Tensor, available: Tensor | None = None) -> Tensor:
        if logits.ndim < 3 or logits.shape[1] < 2:
            raise ValueError(
                f"logits are {tuple(logits.shape)}; give (batch, classes, *spatial) with at least 2 classes"
            )
        with torch.autocast(logits.device.type, enabled=False):
            wide = widen(logits)
            shares = self.shares(label, wide)
            if available is not None:  # before the softmax: what is left out may be no number
                wide, shares = _kept(wide, shares, available)
            if not len(wide):
                return wide.sum()  # 0, with a gradient
            return self._value(torch.log_softmax(wide, dim=1), shares)

    def shares(self, label: Tensor, like: Tensor) -> Tensor:
        """Return each class's share of each voxel, ``(B, K, *spatial)``, on the grid of ``like``."""
        index = check_label(label, like).long()
        strides = _strides(index.shape[1:], like.shape[2:])
        if self.resampling == "nearest":
            index = index[(slice(None), *(slice(None, None, stride) for stride in strides))]
        classes = like.shape[1]
        if index.device.type == "cpu" and index.numel() and (int(index.max()) >= classes or int(index.min()) < 0):
            raise ValueError(
                f"the label holds class {int(index.max())}, the logits have {classes} (0 to {classes - 1})"
            )
        one_hot = torch.zeros(index.shape[0], classes, *index.shape[1:], dtype=like.dtype, device=like.device)
        one_hot.scatter_(1, index.unsqueeze(1), 1.0)
        if self.resampling == "area" and any(stride > 1 for stride in strides):
            pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(strides)]
            return pool(one_hot, strides, strides)
        return one_hot

    def _value(self, log_p: Tensor, shares: Tensor) -> Tensor:
        p, over = log_p.exp(), [0, *range(2, log_p.ndim)]
        both = (p * shares).sum(dim=over)
        total = p.sum(dim=over) + shares.sum(dim=over)
        first = 0 if self.include_background else 1
        both, total = both[first:], total[first:]
        # a class that neither has is right, also without smoothing
        dice = _ratio(2 * both + self.smooth, total + self.smooth).mean()
        jaccard = _ratio(both + self.smooth, total - both + self.smooth).mean()
        entropy = -(shares * log_p).sum(dim=1).mean()
        return ((1 - dice) + (1 - jaccard) + entropy) / 3

    def extra_repr(self) -> str:
        return f"include_background={self.include_background}, smooth={self.smooth}, resampling={self.resampling!r}"


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    empty = under <= 0
    return torch.where(empty, torch.ones_like(under), over / torch.where(empty, torch.ones_like(under), under))


def _strides(fine: torch.Size, coarse: torch.Size) -> list[int]:
    pairs = list(zip(fine, coarse, strict=True))
    if any(size < own or size % own for size, own in pairs):
        raise ValueError(
            f"the label's grid {tuple(fine)} is no whole number of times that of the logits {tuple(coarse)}"
        )
    return [size // own for size, own in pairs]


def _kept(logits: Tensor, shares: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out the samples that are not available."""
    if available.shape != logits.shape[:1]:
        raise ValueError(
            f"available has the shape {tuple(available.shape)}; give one number per sample, ({len(logits)},)"
        )
    kept = available > 0
    return logits[kept], shares[kept]
