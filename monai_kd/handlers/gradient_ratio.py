"""The pull of every term on the student, relative to the supervised loss, while a training runs."""

from __future__ import annotations

import contextlib
import logging
import math
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedTrainer
from monai.utils import optional_import
from torch import Tensor, autocast, nn

from monai_kd.distillers import Distiller
from monai_kd.distillers.gradients import term_gradient_norms
from monai_kd.handlers.failure import on_failure
from monai_kd.handlers.files import is_main_process

__all__ = ["GradientRatios", "check_reference", "trainer_gradient_norms"]

_logger = logging.getLogger("monai_kd")
_HALF_PRECISION_SCALE = 2.0**16  # where torch's gradient scaler starts


def trainer_gradient_norms(
    trainer: SupervisedTrainer, distiller: Distiller, batch: Any, weighted: bool = True
) -> dict[str, float]:
    """Return :func:`~monai_kd.distillers.gradients.term_gradient_norms` on a batch as the trainer treats it.

    The trainer's own ``prepare_batch``, inferer and AMP are used; the networks' modes are as they stand.

    Args:
        trainer: a trainer of the distiller.
        distiller: the module itself, not a wrapper.
        batch: what the trainer's data loader yields.
        weighted: False leaves out weight and factor of each term.
    """
    prepared = trainer.prepare_batch(batch, trainer.state.device, trainer.non_blocking, **trainer.to_kwargs)
    image, args, kwargs = (prepared[0], (), {}) if len(prepared) == 2 else (prepared[0], *prepared[2:])

    def infer(image: Tensor, network: Any, **inputs: Any) -> Any:
        with autocast("cuda", **trainer.amp_kwargs) if trainer.amp else contextlib.nullcontext():
            return trainer.inferer(image, network, **inputs)

    scale = _HALF_PRECISION_SCALE if trainer.amp else 1.0
    return term_gradient_norms(distiller, image, *args, weighted=weighted, scale=scale, inferer=infer, **kwargs)


def check_reference(distiller: Distiller, reference: str) -> None:
    """Raise ValueError unless ``reference`` is a term of the distiller with a weight, beside at least one other."""
    if reference not in distiller.terms:
        raise ValueError(
            f"the reference '{reference}' is no term of this distiller; known: {', '.join(distiller.terms)}"
        )
    term: Any = distiller.terms[reference]
    if term.weight == 0:
        raise ValueError(f"the reference term '{reference}' has weight 0; a ratio to it is not defined")


class GradientRatios:
    """Log how strongly each term pulls on the student, relative to a reference term, every few iterations.

    The ratio is the L2 norm of the gradient of ``weight * factor * term`` with respect to the student's parameters,
    divided by that of the reference. It is measured on the batch of the iteration, before the optimizer's step, with
    the trainer's own inferer and AMP, and leaves the training as it was, bit by bit on a CPU; dropout draws another
    mask. Every measurement costs one more forward pass of all networks and one backward pass a term.

    Each measurement is one line in the log; with ``log_dir`` it also goes to TensorBoard as ``gradient/<term>``. The
    ratio to a reference without a gradient is nan. Of several processes all measure and the first one logs.

    Args:
        distiller: the :class:`~monai_kd.distillers.Distiller` (or its DDP wrapper) that the trainer trains.
        reference: term that the others are compared with, usually the supervised one.
        interval: iterations from one measurement to the next; the first is at iteration ``interval``.
        log_dir: folder for TensorBoard's events; empty writes none.

    Attributes:
        ratios: term to ratio of the newest measurement.

    Raises:
        TypeError: ``distiller`` is no Distiller, or it is attached to no SupervisedTrainer.
        ValueError: ``reference`` is no term or has weight 0, or ``interval`` is not a positive whole number.
    """

    def __init__(self, distiller: nn.Module, reference: str = "seg", interval: int = 50, log_dir: str = "") -> None:
        inner = getattr(distiller, "module", distiller)
        if not isinstance(inner, Distiller):
            raise TypeError(f"GradientRatios needs a Distiller, got {type(distiller).__name__}")
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f"interval is {interval!r}; give a whole number of iterations, at least 1")
        check_reference(inner, reference)
        self.distiller = inner
        self.reference = reference
        self.interval = interval
        self.log_dir = str(log_dir)
        self.ratios: dict[str, float] = {}
        self._writer: Any = None

    def attach(self, engine: Engine) -> None:
        if not isinstance(engine, SupervisedTrainer):
            raise TypeError(f"GradientRatios belongs to a trainer, got {type(engine).__name__}")
        # behind the backward pass the networks are in training mode and the graph of the step is gone
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._close)
        on_failure(engine, self._close)

    def __call__(self, engine: SupervisedTrainer) -> None:
        if engine.state.iteration % self.interval:
            return
        norms = trainer_gradient_norms(engine, self.distiller, engine.state.batch)
        whole = norms[self.reference]
        self.ratios = {name: norm / whole if whole else math.nan for name, norm in norms.items()}
        if is_main_process():
            self._log(engine.state.iteration)

    def _log(self, iteration: int) -> None:
        shown = ", ".join(f"{name} {value:.3g}" for name, value in self.ratios.items() if name != self.reference)
        _logger.info("iteration %d, gradient relative to %s: %s", iteration, self.reference, shown)
        if not self.log_dir:
            return
        if self._writer is None:
            writer, _ = optional_import("torch.utils.tensorboard", name="SummaryWriter")
            self._writer = writer(log_dir=self.log_dir)
        for name, value in self.ratios.items():
            self._writer.add_scalar(f"gradient/{name}", value, iteration)
        self._writer.flush()

    def _close(self, _engine: Engine, _error: BaseException | None = None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
