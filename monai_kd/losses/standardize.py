"""Logit standardization: the z-score of each voxel's logits over the classes (Sun et al. 2024)."""

from __future__ import annotations

from torch import Tensor

__all__: list[str] = []

_EPS = 1e-7


def standardize_logits(logits: Tensor) -> Tensor:
    """Return ``(logits - mean) / (std + 1e-7)`` over the classes, std with n - 1: ``(B, C, *spatial)`` as given."""
    centered = logits - logits.mean(dim=1, keepdim=True)
    # the root of a clamped variance: the gradient of std() is NaN where all logits of a voxel agree
    variance = centered.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)
    return centered / (variance.clamp_min(_EPS**2).sqrt() + _EPS)


def check_standardizable(classes: int) -> None:
    if classes < 3:
        raise ValueError(
            f"standardize needs 3 classes or more, got {classes}: z-scores of 2 classes keep nothing but their order"
        )
