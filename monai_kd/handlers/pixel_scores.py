"""Pixel scores of each image inside its field of view, beside the Dice and HD95 of an evaluation."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import Tensor

from monai_kd.data.case_names import case_id
from monai_kd.handlers.mean_case_dice import gather_lists
from monai_kd.metrics import PixelCounts, score_pixels, summarize_pixels

__all__ = ["PixelScores"]


class PixelScores:
    """Score the foreground of every 2-D image inside a mask, see :func:`~monai_kd.metrics.score_pixels`.

    Stands behind :class:`CaseScores` among the handlers and adds to what that sets: ``pixels`` to each entry of
    ``engine.state.case_scores`` and to ``engine.state.case_summary`` (mean, SD and number of images, pooled), and the
    metrics ``pixel_<metric>``, means over images. Records and ``metrics.csv`` carry them. Several processes end with
    all images; one that padding handed out twice counts once.

    Args:
        probability_key: of the foreground's probability, ``(1, H, W)``, or ``(2, H, W)`` with the background first.
            Keep it by ``CopyItemsd`` before the prediction is made discrete.
        label_key: of the label, ``(1, H, W)``, or ``(2, H, W)`` with the background first.
        mask_key: of the pixels that count, ``(1, H, W)``; ``""`` counts all.
        threshold: a probability above it is positive.
        cldice: False goes without clDice, and without scikit-image.

    Raises:
        KeyError: on use, neither the evaluator's output nor its batch has a key.
        ValueError: on use, more than two channels, or shapes that differ.
        RuntimeError: on use, there is no :class:`CaseScores` before it.
    """

    def __init__(
        self,
        probability_key: str = "probability",
        label_key: str = "label",
        mask_key: str = "fov",
        threshold: float = 0.5,
        cldice: bool = True,
    ) -> None:
        self.probability_key = probability_key
        self.label_key = label_key
        self.mask_key = mask_key
        self.threshold = threshold
        self.cldice = cldice
        self._images: list[tuple[str, dict[str, float | None], PixelCounts]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _reset(self, _engine: Engine) -> None:
        self._images = []

    def _score(self, engine: Engine) -> None:
        # a mask stays in the batch: the evaluator puts image, label, prediction and what is new into its output
        state: Any = engine.state
        for given, output in zip(state.batch, state.output, strict=True):
            item = {**given, **output}
            name = case_id(item["image"].meta["filename_or_obj"])
            probability = _foreground(item, self.probability_key, name)
            label = _foreground(item, self.label_key, name)
            mask = _foreground(item, self.mask_key, name) if self.mask_key else None
            try:
                scores, counts = score_pixels(probability, label, mask, self.threshold, self.cldice)
            except ValueError as error:
                raise ValueError(f"case '{name}': {error}") from None
            self._images.append((name, scores, counts))

    def _finish(self, engine: Engine) -> None:
        state: Any = engine.state
        images = {name: (scores, counts) for name, scores, counts in gather_lists(self._images)}
        cases = getattr(state, "case_scores", None)
        if cases is None or {case["case"] for case in cases} != set(images):
            raise RuntimeError("PixelScores adds to the scores of this epoch: place it behind CaseScores")
        for case in cases:
            case["pixels"] = images[case["case"]][0]
        ordered = [images[case["case"]] for case in cases]
        summary = summarize_pixels([scores for scores, _ in ordered], [counts for _, counts in ordered])
        state.case_summary["pixels"] = summary
        state.metrics.update({f"pixel_{metric}": mean for metric, mean in summary["mean"].items() if mean is not None})


def _foreground(item: dict[str, Any], key: str, name: str) -> Tensor:
    """Return the last of one or two channels, ``(H, W)``."""
    if key not in item:
        raise KeyError(f"case '{name}' has no '{key}' to score, it has {', '.join(map(str, item))}")
    tensor = item[key].as_tensor() if isinstance(item[key], MetaTensor) else torch.as_tensor(item[key])
    if tensor.ndim != 3 or len(tensor) not in (1, 2):
        raise ValueError(
            f"case '{name}': '{key}' has the shape {tuple(tensor.shape)}; pixel scores are of (1, H, W), or (2, H, W) "
            "with the background first"
        )
    return tensor[-1]
