"""MONAI's supervised trainer, driven by a Distiller."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

from monai_kd.distillers import Distiller, DistillOutput

__all__ = ["DistillationTrainer"]


class DistillationTrainer(SupervisedTrainer):
    """Train the network of a :class:`~monai_kd.distillers.Distiller` with MONAI's own training loop.

    ``network`` is a ``Distiller`` (or one wrapped by DDP); ``prepare_batch`` must hand it the label, e.g.
    ``monai.engines.PrepareBatchExtraInput(extra_keys={"label": "label"})``. After each iteration ``state.output``
    holds ``pred`` (the student's logits), ``loss``, every term by its own name, unweighted, and as ``weighted/<term>``
    what it adds to the loss. AMP, gradient
    accumulation, compilation, handlers and decollation are MONAI's.

    Raises:
        TypeError: ``network`` is not a Distiller, or a ``loss_function`` was given: losses belong into terms.
    """

    def __init__(self, *, network: nn.Module, **kwargs: Any) -> None:
        if "loss_function" in kwargs:
            raise TypeError("DistillationTrainer takes no loss_function: give the Distiller a Term with that loss")
        inner = getattr(network, "module", network)
        if not isinstance(inner, Distiller):
            raise TypeError(f"DistillationTrainer needs a Distiller as its network, got {type(network).__name__}")
        super().__init__(network=network, loss_function=self._unpack, **kwargs)
        if hasattr(inner, "loss_scale"):  # takes gradients before the loss is scaled
            self.add_event_handler(Events.ITERATION_STARTED, self._tell_loss_scale, inner)

    def _tell_loss_scale(self, _engine: Engine, distiller: Any) -> None:
        scaler = getattr(self, "scaler", None)  # MONAI makes it when the run starts
        distiller.loss_scale = 1.0 if scaler is None else scaler.get_scale()

    def _unpack(self, output: DistillOutput, _label: Tensor) -> Tensor:
        """Replace the record in ``state.output`` by its parts and return the loss."""
        self.state.output[Keys.PRED] = output.pred
        self.state.output.update(output.terms)
        self.state.output.update({f"weighted/{name}": value for name, value in output.weighted.items()})
        return output.loss
