"""clDice: whether thin structures are connected where they should be."""

from __future__ import annotations

import numpy as np
from monai.utils import optional_import

__all__ = ["center_line_dice"]


def center_line_dice(pred: np.ndarray, label: np.ndarray) -> float | None:
    """Return the harmonic mean of two parts: of the prediction's center line in the label, and the other way round.

    Center lines are one pixel wide (thinning by scikit-image, which is needed: ``pip install 'monai_kd[vessels]'``).
    MONAI has this as a loss alone, with a soft center line.

    Args:
        pred, label: ``(H, W)`` or ``(D, H, W)`` bool; mask both before.

    Returns:
        0 to 1; 0 if one is empty, or neither center line lies in the other; None if both are empty.
    Source: Shit et al. 2021, eq. 1 to 3.
    """
    if not pred.any() and not label.any():
        return None
    if not pred.any() or not label.any():
        return 0.0
    skeletonize, _ = optional_import("skimage.morphology", name="skeletonize")
    pred_line, label_line = skeletonize(pred) > 0, skeletonize(label) > 0
    precision = float((pred_line & label).sum() / pred_line.sum())
    sensitivity = float((label_line & pred).sum() / label_line.sum())
    total = precision + sensitivity
    return 2 * precision * sensitivity / total if total else 0.0
