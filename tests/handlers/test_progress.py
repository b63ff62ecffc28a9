"""Progress: a bar that counts, shows the named numbers, and never swallows an error."""

from __future__ import annotations

from typing import Any

import pytest
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from torch import nn, zeros
from tqdm import tqdm

from monai_kd.handlers import Progress, progress
from monai_kd.handlers.failure import on_failure


class Bar(tqdm):
    """A bar that remembers what was shown."""

    made: list[Bar] = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shown: list[dict[str, Any]] = []
        self.closed = False
        Bar.made.append(self)

    def set_postfix(self, ordered_dict: Any = None, refresh: bool = True, **kwargs: Any) -> None:
        self.shown.append(dict(ordered_dict))
        super().set_postfix(ordered_dict, refresh, **kwargs)

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.fixture(autouse=True)
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    Bar.made = []
    monkeypatch.setattr(progress, "tqdm", Bar)
    return Bar.made


def engine_that(step: Any) -> Engine:
    return Engine(lambda _engine, batch: step(batch))


def test_the_bar_counts_every_iteration_of_every_epoch_and_closes(bars):
    engine = engine_that(lambda batch: {"loss": 0.25 + batch, "seg": 0.5})
    Progress("distilled").attach(engine)
    engine.run([0, 1, 2], max_epochs=2)
    (bar,) = bars
    assert (bar.total, bar.n, bar.closed) == (6, 6, True)
    assert bar.shown[0] == {"loss": "0.250", "seg": "0.500"}
    assert bar.shown[-1] == {"loss": "2.250", "seg": "0.500"}


def test_training_shows_the_epoch_and_the_best_validation(bars):
    validator = Engine(lambda *_: None)
    validator.state.best_metric, validator.state.best_metric_epoch = -1.0, -1
    engine = engine_that(lambda _batch: {"loss": 1.0})

    def validate(engine: Engine) -> None:
        validator.state.best_metric, validator.state.best_metric_epoch = 0.87654, engine.state.epoch

    Progress("distilled", validator).attach(engine)
    engine.add_event_handler("EPOCH_COMPLETED", validate)
    engine.run([0, 1], max_epochs=2)
    assert bars[0].shown[0] == {"epoch": "1/2", "loss": "1.000"}
    assert bars[0].shown[-1] == {"epoch": "2/2", "loss": "1.000", "best Dice": "0.8765"}


def test_a_validator_that_counts_on_from_the_trainers_epoch_has_one_epoch_to_go(bars):
    cases = [{"image": zeros(1, 2, 2), "label": zeros(1, 2, 2)}] * 3
    evaluator = SupervisedEvaluator(
        "cpu", DataLoader(Dataset(cases)), nn.Identity(), val_handlers=[Progress("evaluate")]
    )
    evaluator.run(5)
    (bar,) = bars
    assert (bar.total, bar.n, bar.closed) == (3, 3, True)


def test_an_error_closes_the_bar_and_is_raised_again(bars):
    def fail_later(batch: int) -> dict[str, float]:
        if batch == 1:
            raise RuntimeError("out of memory")
        return {"loss": 1.0}

    engine = engine_that(fail_later)
    Progress("distilled").attach(engine)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.run([0, 1, 2])
    (bar,) = bars
    assert (bar.n, bar.closed) == (1, True)


def test_an_engine_can_run_again_with_a_fresh_bar(bars):
    engine = engine_that(lambda _batch: {"loss": 1.0})
    Progress("distilled").attach(engine)
    for _ in range(2):
        engine.run([0], max_epochs=1)
    assert [(bar.n, bar.closed) for bar in bars] == [(1, True), (1, True)]


def test_every_handler_behind_it_sees_the_error_too(bars):
    def fail(_batch: int) -> None:
        raise RuntimeError("out of memory")

    engine, seen = engine_that(fail), []
    for number in range(2):
        Progress("distilled").attach(engine)
        on_failure(engine, lambda _engine, error, number=number: seen.append((number, str(error))))
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.run([0])
    assert {number for number, _ in seen} == {0, 1}
    assert {text for _, text in seen} == {"out of memory"}
    assert [bar.closed for bar in bars] == [True, True]
