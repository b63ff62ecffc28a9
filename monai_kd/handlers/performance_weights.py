"""Keep the Dice of several teachers up to date, by which their distillation is weighed."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn

from monai_kd.distillers import CooperativeDistiller, Distiller
from monai_kd.metrics import confusion_matrix, region_dice

__all__ = ["PerformanceWeights"]

_SOURCES = ("training", "validation")


class PerformanceWeights:
    """Measure how well each teacher segments each region, for :class:`monai_kd.losses.PerformanceKL`.

    After each iteration the volumetric Dice of the teachers on the batch, before their update, moves a running average:
    ``d = decay * d + (1 - decay) * Dice``. A region's first Dice is taken as it is. A region that neither the label nor
    the teacher has moves nothing, and neither does a sample that lacks the teacher's modality. With
    ``source: validation`` :class:`monai_kd.handlers.TeacherScores` sets them instead, once per validation.

    The averages lie in the loss and are part of the training's state. At the end of each epoch they are in
    ``engine.state.metrics`` as ``dice_<teacher>_<region>``, and in the run's record.

    Args:
        distiller: the :class:`~monai_kd.distillers.CooperativeDistiller` (or its DDP wrapper).
        term: name of the term whose loss weighs the teachers. A distiller without that term needs no weights: then
            this handler does nothing.
        decay: share of the average that each step keeps, 0 to 1.
        source: ``training`` or ``validation``.

    Raises:
        TypeError: ``distiller`` is no CooperativeDistiller.
        ValueError: the term's loss has no Dice to weigh by, or a setting is out of range.

    Source: Ahmad et al. 2024, equation 1, who take the mean over the previous epoch of a Dice averaged over slices, in
    which an empty slice counts 1. Here it is volumetric, of three regions, and follows the teachers at once.
    """

    def __init__(self, distiller: nn.Module, term: str = "kd", decay: float = 0.9, source: str = "training") -> None:
        inner = getattr(distiller, "module", distiller)
        if not isinstance(inner, Distiller) or (term in inner.terms and not isinstance(inner, CooperativeDistiller)):
            raise TypeError(f"PerformanceWeights needs a CooperativeDistiller, got {type(inner).__name__}")
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise ValueError(f"decay is {decay!r}; it must be a number from 0 to below 1")
        if source not in _SOURCES:
            raise ValueError(f"source is {source!r}; known: {', '.join(_SOURCES)}")
        self.distiller: Any = inner
        self.decay, self.source = float(decay), source
        self.loss: Any = inner.terms[term].loss if term in inner.terms else None
        if self.loss is not None and not hasattr(self.loss, "dice"):
            raise ValueError(
                f"term '{term}' has the loss {type(self.loss).__name__}, which weighs no teachers; "
                "monai_kd.losses.PerformanceKL does"
            )

    @property
    def waits_for_validation(self) -> bool:
        """Whether the Dice come from :class:`monai_kd.handlers.TeacherScores`."""
        return self.loss is not None and self.source == "validation"

    def set(self, dice: Tensor) -> None:
        """Set the Dice of all teachers, ``(M, R)``."""
        self.loss.dice.copy_(dice)

    def attach(self, engine: Engine) -> None:
        if self.loss is None:
            return
        if self.source == "training":
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._report)

    def __call__(self, _engine: Engine) -> None:
        seen = self.distiller.seen
        if seen is None:
            return
        other = 1 + max(max(members) for members in self.loss.regions.values())  # all classes of no region
        counts = torch.stack(
            [
                self._counts(pred, seen.label, seen.available[:, number], other)
                for number, pred in enumerate(seen.classes)
            ]
        )  # (M, K, K)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        self.update(*region_dice(counts, self.loss.regions))

    def update(self, dice: Tensor, found: Tensor) -> None:
        """Move the averages by new Dice ``(M, R)``, where ``found`` says that there is one."""
        own: Tensor = self.loss.dice
        new = dice.to(own)
        moved = torch.where(own > 0, self.decay * own + (1 - self.decay) * new, new)
        own.copy_(torch.where(found.to(own.device), moved, own))

    def _counts(self, pred: Tensor, label: Tensor, available: Tensor, other: int) -> Tensor:
        kept = available > 0
        index = label.reshape(pred.shape).to(pred.device).long()
        known = index.clamp(max=other)
        if self.loss.ignore_index is not None:  # a row behind the last one, which is not counted
            known = known.masked_fill(index == self.loss.ignore_index, other + 1)
        return confusion_matrix(pred[kept].clamp(max=other), known[kept], other + 1)

    def _report(self, engine: Engine) -> None:
        values = self.loss.dice.tolist()
        names = self.distiller.group.names
        record: Any = getattr(engine.state, "run_record", None)
        for name, row in zip(names, values, strict=True):
            for region, dice in zip(self.loss.regions, row, strict=True):
                engine.state.metrics[f"dice_{name}_{region}"] = dice
                if record is not None:
                    curves = record["curves"].setdefault("teacher_dice", {})
                    curves.setdefault(f"{name}/{region}", []).append(dice)
