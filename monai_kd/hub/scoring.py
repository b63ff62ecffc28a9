"""Score any network with a bundle's own validation: its preprocessing, inferer and postprocessing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import from_engine
from torch import nn

from monai_kd.data import CaseSplit
from monai_kd.hub.bundle_folder import BundleFolder
from monai_kd.hub.class_order import confusion, foreground_dice
from monai_kd.hub.probe import opened_workflow

__all__ = ["Scores", "chosen_cases", "validation_of"]


@dataclass(frozen=True)
class Scores:
    """What a network did on some cases.

    Attributes:
        counts: ``(K, K)`` voxels by labelled class (row) and predicted class (column), summed over the cases.
        dice: mean over the cases of their mean foreground Dice; None if no case has foreground.
        cases: how many.
    """

    counts: torch.Tensor
    dice: float | None
    cases: int


def chosen_cases(dataset_dir: str | Path, split_file: str | Path | None, cases: int) -> list[dict[str, str]]:
    """Return the first test cases of a split file, or the first labelled cases.

    Raises:
        FileNotFoundError, ValueError: see :class:`~monai_kd.data.CaseSplit`; or ``cases`` is not positive.
    """
    if not isinstance(cases, int) or cases < 1:
        raise ValueError(f"cases is {cases!r}; give a number of at least 1")
    split = CaseSplit(str(dataset_dir), str(split_file or ""))
    return split.cases("test" if split_file else "all")[:cases]


@contextlib.contextmanager
def validation_of(bundle: BundleFolder, cases: Sequence[Mapping[str, str]]) -> Iterator[Callable[[nn.Module], Scores]]:
    """Give a function that scores a network by the bundle's ``validate`` section on these cases, in float32.

    The label and prediction must leave the bundle's postprocessing one-hot, as Dice metrics need them.
    """
    names = (bundle.config_path("train").name,)
    overrides: dict[str, Any] = {
        "validate::dataset::data": list(cases),
        "validate::handlers": [],
        "validate::key_metric": None,
        **dict.fromkeys(("amp", "cpu_bfloat16", "validate::evaluator::amp"), False),
        "validate::dataset::cache_rate": 0.0,
    }
    with opened_workflow(bundle, names, overrides) as flow:
        flow.parser.parse(reset=True)
        evaluator = flow.parser.get_parsed_content("validate::evaluator")
        if not isinstance(evaluator, SupervisedEvaluator):
            raise TypeError(f"'validate::evaluator' is a {type(evaluator).__name__}, not MONAI's SupervisedEvaluator")
        yield _Scorer(evaluator)


class _Scorer:
    def __init__(self, evaluator: SupervisedEvaluator) -> None:
        self.evaluator = evaluator
        self._counts: list[torch.Tensor] = []
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._add)

    def _add(self, engine: Engine) -> None:
        for pred, label in zip(*from_engine(["pred", "label"])(engine.state.output), strict=True):
            if pred.shape != label.shape or len(pred) < 2:
                raise ValueError(
                    f"after postprocessing pred is {tuple(pred.shape)} and label {tuple(label.shape)}; both must be "
                    "one-hot, one channel a class"
                )
            self._counts.append(confusion(torch.as_tensor(pred).cpu(), torch.as_tensor(label).cpu()))

    def __call__(self, network: nn.Module) -> Scores:
        self._counts = []
        self.evaluator.network = network.to(self.evaluator.state.device)
        self.evaluator.run()
        dices = [dice for counts in self._counts if (dice := foreground_dice(counts)) is not None]
        mean = sum(dices) / len(dices) if dices else None
        return Scores(torch.stack(self._counts).sum(0), mean, len(self._counts))
