"""Per-case scores of exclusive classes: Dice and HD95 in millimeters, with misses named instead of averaged away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.metrics import compute_dice, compute_hausdorff_distance
from torch import Tensor

__all__ = ["score_case", "summarize"]


def score_case(
    pred: Tensor,
    label: Tensor,
    class_names: Sequence[str],
    spacing_mm: Sequence[float],
    empty: float | None = None,
) -> dict[str, Any]:
    """Score one case, class by class, background excluded.

    * Dice: ``2|P and L| / (|P| + |L|)``, in 0..1.
    * HD95: symmetric 95th percentile of the surface distances, in mm.
    * A class the label has and the prediction lacks is *missed*: Dice 0, and HD95 the diagonal of the image in mm,
      the largest distance it could have been; it is named in ``missed``.
    * A class the prediction has and the label lacks is a *false positive*, scored the same and named so.
    * A class that both lack has no score (``None``), or the Dice ``empty`` and HD95 0 if that is given.

    Args:
        pred, label: one-hot ``(K, *spatial)``, channel 0 is background.
        class_names: K names, background first.
        spacing_mm: voxel size per spatial axis, mm.
        empty: Dice of a class that both lack; the BraTS challenges count 1.

    Returns:
        ``{"dice": {name: value}, "hd95_mm": {name: value}, "missed": [names], "false_positive": [names]}``

    Raises:
        ValueError: shapes differ, or do not have one channel per class.
    """
    if pred.shape != label.shape or pred.shape[0] != len(class_names):
        raise ValueError(
            f"prediction {tuple(pred.shape)} and label {tuple(label.shape)} must be one-hot with one channel for each "
            f"of the {len(class_names)} classes ({', '.join(class_names)}) on one grid"
        )
    diagonal_mm = math.hypot(*(size * mm for size, mm in zip(label.shape[1:], spacing_mm, strict=True)))
    scores: dict[str, Any] = {"dice": {}, "hd95_mm": {}, "missed": [], "false_positive": []}
    dice = compute_dice(pred[None], label[None], include_background=True, ignore_empty=False)[0]
    for channel, name in enumerate(class_names[1:], start=1):
        in_pred, in_label = bool(pred[channel].any()), bool(label[channel].any())
        nowhere = not (in_pred or in_label)
        scores["dice"][name] = empty if nowhere else float(dice[channel])
        scores["hd95_mm"][name] = (None if empty is None else 0.0) if nowhere else diagonal_mm
        if in_pred and in_label:
            scores["hd95_mm"][name] = _hd95(pred[channel], label[channel], spacing_mm)
        elif in_label:
            scores["missed"].append(name)
        elif in_pred:
            scores["false_positive"].append(name)
    return scores


def _hd95(pred: Tensor, label: Tensor, spacing_mm: Sequence[float]) -> float:
    one, other = pred[None, None], label[None, None]
    value = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=list(spacing_mm))
    return float(value)


def summarize(cases: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """Average scored cases per class, misses included, and count misses and false positives.

    Returns:
        ``dice`` and ``hd95_mm``, each ``{name: mean, "mean": mean over classes}``; ``missed`` and ``false_positive``,
        each ``{name: count}``; ``n_cases``. A class without a scored case has ``None``.
    """
    foreground = list(class_names[1:])
    summary: dict[str, Any] = {"n_cases": len(cases)}
    for metric in ("dice", "hd95_mm"):
        values = {name: [c[metric][name] for c in cases if c[metric][name] is not None] for name in foreground}
        means = {name: float(np.mean(found)) if found else None for name, found in values.items()}
        known = [mean for mean in means.values() if mean is not None]
        summary[metric] = {**means, "mean": float(np.mean(known)) if known else None}
    for failure in ("missed", "false_positive"):
        summary[failure] = {name: sum(name in case[failure] for case in cases) for name in foreground}
    return summary
