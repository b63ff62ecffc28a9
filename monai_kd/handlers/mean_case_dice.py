"""The validation metric that selects the best epoch: the very number that tables report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from ignite.metrics import Metric
from monai.data import MetaTensor
from monai.metrics import compute_dice
from torch import Tensor

__all__ = ["MeanCaseDice", "gather_lists"]


def gather_lists(values: list[Any]) -> list[Any]:
    """Return the lists of all processes as one; without distribution the list itself."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def _check_shapes(pred: Tensor, label: Tensor) -> None:
    """Refuse a label of another shape than its image, naming its file where the label carries it."""
    if pred.shape != label.shape:
        name = label.meta["filename_or_obj"] if isinstance(label, MetaTensor) else "the label"
        raise ValueError(
            f"'{name}' has shape {tuple(label.shape[1:])}, its image has {tuple(pred.shape[1:])}; "
            "image and label must lie on the same grid"
        )


class MeanCaseDice(Metric):
    """Dice per class, mean over cases, then mean over classes, as :func:`monai_kd.metrics.summarize` defines it.

    A class that the label lacks and the prediction has scores 0; one that both lack does not count. MONAI's
    ``MeanDice`` leaves out every class that the label lacks, so false positives there would cost nothing.

    Args:
        class_names: names of the one-hot channels, background first.
        output_transform: gives ``(pred, label)``, lists of one-hot ``(K, *spatial)`` tensors, from the engine's output.
        empty: Dice of a class that both lack; None does not count it.
    """

    def __init__(
        self, class_names: Sequence[str], output_transform: Callable[..., Any], empty: float | None = None
    ) -> None:
        self.class_names = list(class_names)
        self.empty = empty
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        self._cases: list[list[float | None]] = []

    def update(self, output: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        for pred, label in zip(*output, strict=True):
            _check_shapes(pred, label)
            dice = compute_dice(pred[None], label[None], include_background=True, ignore_empty=False)[0]
            present = [bool(pred[channel].any() or label[channel].any()) for channel in range(len(self.class_names))]
            values = [float(value) if found else self.empty for value, found in zip(dice, present, strict=True)]
            self._cases.append(values[1:])

    def compute(self) -> float:
        """Return the mean Dice, 0..1; 0 if no class was in any label or prediction."""
        means = [mean for mean in self.class_means() if mean is not None]
        return sum(means) / len(means) if means else 0.0

    def class_means(self) -> list[float | None]:
        """Return the mean Dice of each class over the cases that have it, None where none has; no background."""
        columns = list(zip(*gather_lists(self._cases), strict=True)) or [()] * (len(self.class_names) - 1)
        scored = [[value for value in column if value is not None] for column in columns]
        return [sum(column) / len(column) if column else None for column in scored]
