"""Validate the teachers beside the student."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.data import decollate_batch
from monai.engines import IterationEvents
from torch import Tensor, nn

from monai_kd.distillers import CooperativeTeachers
from monai_kd.handlers.mean_case_dice import MeanCaseDice
from monai_kd.handlers.performance_weights import PerformanceWeights

__all__ = ["TeacherScores"]

_logger = logging.getLogger("monai_kd")


class TeacherScores:
    """Score each teacher and each fusion on the validation cases, as the student is scored.

    Attach it to the evaluator. Every case goes through the inferer once more, with all heads in one pass, and through
    the postprocessing. The metrics ``dice_<head>_<class>`` are means over cases. Fused logits are interpolated to full
    resolution.

    Args:
        teachers: the group.
        class_names: names of the one-hot channels behind the postprocessing, background first.
        inferer, postprocessing: the evaluator's own.
        interval: validations from one such scoring to the next; 0 for none.
        weights: the :class:`PerformanceWeights` of the training, whose Dice are set if its source is ``validation``;
            their regions must be the classes.
        empty: Dice of a class that prediction and label both lack; None does not count it. As for the student.

    Raises:
        ValueError: ``interval`` is no whole number of at least 0, it is not 1 and the weights wait for a validation, or
            the regions of the weights are not the classes.
    """

    def __init__(
        self,
        teachers: CooperativeTeachers,
        class_names: Sequence[str],
        inferer: Callable[..., Tensor],
        postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
        interval: int = 1,
        weights: PerformanceWeights | None = None,
        empty: float | None = None,
    ) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 0:
            raise ValueError(f"interval is {interval!r}; it must be a number of validations, 0 for none")
        self.teachers, self.class_names, self.interval = teachers, list(class_names), interval
        self.inferer, self.postprocessing = inferer, postprocessing
        self.weights = weights if weights is not None and weights.waits_for_validation else None
        if self.weights is not None:
            self._check_weights(self.weights)
        self._heads = _AllHeads(teachers)
        self._count = 0
        self._scores = {name: _scores(self.class_names, empty) for name in teachers.head_names}

    def attach(self, engine: Engine) -> None:
        if not self.interval:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _check_weights(self, weights: PerformanceWeights) -> None:
        if self.interval != 1:  # which ones count would depend on where a resumed training began
            raise ValueError(f"the teachers' weights come from validation, and interval is {self.interval}: make it 1")
        if list(weights.loss.regions) != self.class_names[1:]:
            raise ValueError(
                f"the teachers are weighed by the regions {list(weights.loss.regions)} and scored on "
                f"{self.class_names[1:]}; give the same, in the same order"
            )

    @property
    def _due(self) -> bool:
        return (self._count - 1) % self.interval == 0

    def _start(self, _engine: Engine) -> None:
        self._count += 1
        for metric in self._scores.values():
            metric.reset()

    def _score(self, engine: Engine) -> None:
        if not self._due:
            return
        output: Any = engine.state.output
        was_training = self.teachers.training
        self.teachers.eval()
        try:
            with torch.no_grad():  # the evaluator's own ends with its forward pass
                joined = self.inferer(output["image"], self._heads)
        finally:
            self.teachers.train(was_training)
        names = self.teachers.head_names
        for name, logits in zip(names, joined.chunk(len(names), dim=1), strict=True):
            batch = {"image": output["image"], "label": output["label"], "pred": logits}
            items = [self.postprocessing(item) for item in decollate_batch(batch)]
            self._scores[name].update(([item["pred"] for item in items], [item["label"] for item in items]))

    def _finish(self, engine: Engine) -> None:
        if not self._due:
            return
        dice = []
        for name, metric in self._scores.items():
            means = metric.class_means()
            for label, mean in zip(self.class_names[1:], means, strict=True):
                if mean is not None:
                    engine.state.metrics[f"dice_{name}_{label}"] = mean
            dice.append([0.0 if mean is None else mean for mean in means])
            known = [mean for mean in means if mean is not None]
            _logger.info("validation Dice of %s: %s", name, ", ".join(f"{mean:.4f}" for mean in known))
        if self.weights is not None:
            self.weights.set(torch.tensor(dice[: len(self.teachers.names)]))


class _AllHeads(nn.Module):
    """Every head's logits behind each other, at full resolution."""

    def __init__(self, teachers: CooperativeTeachers) -> None:
        super().__init__()
        self.teachers = teachers

    def forward(self, image: Tensor) -> Tensor:
        heads = self.teachers.heads(image)
        mode = "trilinear" if image.ndim == 5 else "bilinear"
        whole = [
            value if value.shape[2:] == image.shape[2:] else F.interpolate(value, image.shape[2:], mode=mode)
            for value in heads.values()
        ]
        return torch.cat(whole, dim=1)


def _scores(class_names: Sequence[str], empty: float | None) -> MeanCaseDice:
    return MeanCaseDice(class_names, output_transform=lambda output: output, empty=empty)
