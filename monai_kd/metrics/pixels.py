"""Scores of a two-class segmentation of pixels inside a mask: of one image, and pooled over a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_kd.metrics.center_line import center_line_dice

__all__ = ["PIXEL_METRICS", "PixelCounts", "area_under_curve", "pool_pixels", "score_pixels", "summarize_pixels"]

PIXEL_METRICS = ("dice", "iou", "sensitivity", "specificity", "accuracy", "auc", "cldice")
_BINS = 8192
_MOST_LOG_ODDS = 16.0  # float32 tells nothing finer from 1


@dataclass(frozen=True)
class PixelCounts:
    """What pooled scores need of one image; add the counts of several images.

    Attributes:
        confusion: true and false positives, false and true negatives.
        histogram: ``(2, bins)``, negative and positive pixels by their probability; bins are equal in log odds from -16
            to 16.
    """

    confusion: tuple[int, int, int, int]
    histogram: np.ndarray

    def __add__(self, other: PixelCounts) -> PixelCounts:
        summed = tuple(a + b for a, b in zip(self.confusion, other.confusion, strict=True))
        return PixelCounts(summed, self.histogram + other.histogram)  # type: ignore[arg-type]


def score_pixels(
    probability: Tensor, label: Tensor, mask: Tensor | None = None, threshold: float = 0.5, cldice: bool = True
) -> tuple[dict[str, float | None], PixelCounts]:
    """Score one image inside a mask; what is outside does not count as anything.

    With TP, FP, FN and TN the true and false positive and negative pixels: Dice ``2 TP / (2 TP + FP + FN)``, IoU
    ``TP / (TP + FP + FN)``, sensitivity ``TP / (TP + FN)``, specificity ``TN / (TN + FP)``, accuracy. AUC is the chance
    that a positive pixel has a higher probability than a negative one, equal ones count half; it is exact, and the
    threshold has no part in it. clDice: see :func:`~monai_kd.metrics.center_line_dice`.

    A score whose denominator is 0 is None: all of them for an empty mask; sensitivity and AUC without positive pixels,
    specificity and AUC without negative ones; Dice, IoU and clDice where label and prediction are both empty.

    Args:
        probability: ``(H, W)``, 0 to 1.
        label: ``(H, W)``, above 0 is positive.
        mask: ``(H, W)``, above 0 counts; None counts every pixel.
        threshold: a probability above it is positive; 0.5 itself is background, as argmax of two equal classes has it.
        cldice: False leaves clDice out; it needs scikit-image.

    Returns:
        ``{metric: value}`` in the order of :data:`PIXEL_METRICS`, each 0 to 1 or None, and the counts for
        :func:`pool_pixels`.

    Raises:
        ValueError: shapes differ, or probabilities outside of 0 to 1.
    """
    if probability.ndim != 2 or label.shape != probability.shape or (mask is not None and mask.shape != label.shape):
        shapes = [None if part is None else tuple(part.shape) for part in (probability, label, mask)]
        raise ValueError(f"probability, label and mask have the shapes {shapes}; give (H, W) on one grid")
    if probability.numel() and not (probability.min() >= 0 and probability.max() <= 1):  # also where it is NaN
        raise ValueError(
            f"probabilities are {probability.min():g} to {probability.max():g}; they must lie in 0 to 1: take the "
            "softmax or sigmoid first"
        )
    inside = torch.ones_like(label, dtype=torch.bool) if mask is None else mask > 0
    truth, found = (label > 0) & inside, (probability > threshold) & inside
    seen, positive = probability[inside].double(), truth[inside]
    counts = PixelCounts(_confusion(found[inside], positive), _histogram(seen, positive))
    scores = _ratios(*counts.confusion)
    scores["auc"] = area_under_curve(seen, positive)
    if cldice:
        scores["cldice"] = center_line_dice(found.cpu().numpy(), truth.cpu().numpy())
    return scores, counts


def area_under_curve(score: Tensor, positive: Tensor) -> float | None:
    """Return the exact area under the ROC curve of ``(n,)`` scores; None if all or none of them are positive."""
    high, low = score[positive], score[~positive].sort().values
    if not len(high) or not len(low):
        return None
    below = torch.searchsorted(low, high)
    not_above = torch.searchsorted(low, high, right=True)
    return float((below + not_above).double().mean() / 2 / len(low))


def pool_pixels(counts: Iterable[PixelCounts]) -> dict[str, float | None]:
    """Return the scores of all pixels of several images together, where large images weigh more.

    All but AUC are exact, and clDice is left out: it has no pooled form. AUC comes from histograms, in which pixels of
    one bin are ties: ``auc_error`` is the most that the exact one may lie apart, half the part of pairs of a positive
    and a negative pixel that share a bin. Bins are 0.004 wide in log odds; on made-up logits of SD 3 it is below 2e-4.
    """
    listed = list(counts)
    if not listed:
        return {**_ratios(0, 0, 0, 0), "auc": None, "auc_error": None}
    total = listed[0]
    for part in listed[1:]:
        total = total + part
    negative, positive = total.histogram.astype(np.float64)
    pairs = negative.sum() * positive.sum()
    scores = _ratios(*total.confusion)
    if not pairs:
        return {**scores, "auc": None, "auc_error": None}
    ties = float((positive * negative).sum())
    below = float((positive * (np.cumsum(negative) - negative)).sum())
    return {**scores, "auc": (below + ties / 2) / pairs, "auc_error": ties / 2 / pairs}


def summarize_pixels(
    cases: Sequence[dict[str, float | None]], counts: Sequence[PixelCounts]
) -> dict[str, dict[str, Any]]:
    """Return ``mean`` and ``sd`` over the images that have a score, their number ``n``, and the ``pooled`` scores.

    The standard deviation is that of a sample (n - 1); None for one image. A metric without any score has None.
    """
    names = [name for name in PIXEL_METRICS if any(name in case for case in cases)]
    known = {name: [value for case in cases if (value := case.get(name)) is not None] for name in names}
    return {
        "mean": {name: float(np.mean(values)) if values else None for name, values in known.items()},
        "sd": {name: float(np.std(values, ddof=1)) if len(values) > 1 else None for name, values in known.items()},
        "n": {name: len(values) for name, values in known.items()},
        "pooled": pool_pixels(counts),
    }


def _confusion(found: Tensor, truth: Tensor) -> tuple[int, int, int, int]:
    return (
        int((found & truth).sum()),
        int((found & ~truth).sum()),
        int((~found & truth).sum()),
        int((~found & ~truth).sum()),
    )


def _ratios(tp: int, fp: int, fn: int, tn: int) -> dict[str, float | None]:
    parts = {
        "dice": (2 * tp, 2 * tp + fp + fn),
        "iou": (tp, tp + fp + fn),
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "accuracy": (tp + tn, tp + fp + fn + tn),
    }
    return {name: part / whole if whole else None for name, (part, whole) in parts.items()}


def _histogram(probability: Tensor, positive: Tensor) -> np.ndarray:
    log_odds = torch.logit(probability).clamp(-_MOST_LOG_ODDS, _MOST_LOG_ODDS)
    place = ((log_odds + _MOST_LOG_ODDS) / (2 * _MOST_LOG_ODDS) * _BINS).long().clamp(max=_BINS - 1)
    counted = torch.bincount(positive.long() * _BINS + place, minlength=2 * _BINS)
    return counted.reshape(2, _BINS).cpu().numpy()
