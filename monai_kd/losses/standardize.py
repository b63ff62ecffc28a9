"""Logit standardization: the z-score of each voxel's logits over the classes (Sun et al. 2024)."""

from __future__ import annotations

from torch import Tensor

__all__: list[str] = []

_EPS = 1e-7  # of the paper
# least standard deviation: logits that agree to a hundredth say nothing, and their gradient would be without bound
_FLOOR = 1e-2


def standardize_logits(logits: Tensor) -> Tensor:
    """Return ``(logits - mean) / (std + 1e-7)`` over the classes, std with n - 1 and at least 0.01; same shape."""
    centered = logits - logits.mean(dim=1, keepdim=True)
    variance = centered.square().sum(dim=1, keepdim=True) / (logits.shape[1] - 1)
    return centered / (variance.clamp_min(_FLOOR**2).sqrt() + _EPS)


def check_standardizable(classes: int) -> None:
    if classes < 3:
        raise ValueError(
            f"standardize needs 3 classes or more, got {classes}: z-scores of 2 classes keep nothing but their order"
        )
