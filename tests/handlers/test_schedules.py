"""TermSchedules: exact factors at given iterations, the same after a resume, and mistakes that are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_kd.distillers import Distiller, Term
from monai_kd.handlers.schedules import TermSchedules


class Wrapped(nn.Module):
    """What DistributedDataParallel looks like from outside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def distiller() -> Distiller:
    torch.manual_seed(0)
    terms = {
        "seg": Term(nn.MSELoss(), "student/logits", "label"),
        "soft": Term(nn.L1Loss(), "student/logits", "label", weight=2.0),
    }
    return Distiller(nn.Linear(2, 2), terms=terms)


def factors(schedule: Any, epochs: int = 2, length: int = 5) -> list[float]:
    """The factor of ``soft`` at every iteration of a training of ``epochs * length`` iterations."""
    network = distiller()
    seen: list[float] = []
    engine = Engine(lambda *_: seen.append(network.terms["soft"].factor))  # what the step itself sees
    TermSchedules(network, {"soft": schedule}).attach(engine)
    engine.run(range(length), max_epochs=epochs)
    assert network.terms["seg"].factor == 1.0
    assert network.terms["soft"].weight == 2.0
    return seen


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"ramp": 0.4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ({"ramp": 0.25}, [0.4, 0.8, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"ramp": 0.05}, [1] * 10),
        ({"ramp": 0}, [1] * 10),
        ({"stop": [0.5, 1.0]}, [1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0]),
        ({"stop": [0.2, 0.6]}, [1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0]),
        ({"stop": 0.8}, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]),
        ({"stop": [0.8, 0.8]}, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]),
        ({"stop": 0}, [0] * 10),
        ({"stop": 1.0}, [1] * 10),
        ({"ramp": 0.2, "stop": [0.8, 1.0]}, [0.5, 1, 1, 1, 1, 1, 1, 1, 0.5, 0]),
        ({"ramp": 1.0, "stop": [0.0, 1.0]}, [i / 10 * (1 - i / 10) for i in range(1, 11)]),
        ({}, [1] * 10),
    ],
)
def test_the_factor_follows_from_the_iteration_by_hand(schedule, expected):
    assert factors(schedule) == pytest.approx(expected, abs=1e-12)


def test_a_fraction_that_floats_cannot_hold_stops_after_its_own_iteration():
    assert 0.29 * 100 < 29  # 28.999999999999996
    assert factors({"stop": 0.29}, epochs=20).index(0.0) == 29


def test_the_scheduled_weight_is_in_the_loss_and_not_in_the_logged_term():
    network = distiller()
    x, y = torch.randn(4, 2), torch.randn(4, 2)
    plain = network(x, y)
    engine = Engine(lambda *_: network(x, y))
    TermSchedules(network, {"soft": {"ramp": 0.4}}).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda engine: engine.terminate())
    engine.run(range(5), max_epochs=2)
    output = engine.state.output
    assert output.terms == plain.terms
    assert output.loss.item() == pytest.approx((plain.terms["seg"] + 2.0 * 0.25 * plain.terms["soft"]).item())


def train(network: Distiller, epochs: int, state: dict[str, Any] | None = None) -> tuple[Engine, list[float]]:
    """Train with SGD on data that follow from the iteration; go on from an engine's state if given."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    seen = []

    def step(engine: Engine, _batch: Any) -> None:
        generator = torch.Generator().manual_seed(engine.state.iteration)
        x, y = torch.randn(2, 4, 2, generator=generator)
        optimizer.zero_grad()
        network(x, y).loss.backward()
        optimizer.step()
        seen.append(network.terms["soft"].factor)

    engine = Engine(step)
    TermSchedules(network, {"soft": {"ramp": 0.3, "stop": [0.5, 0.9]}}).attach(engine)
    if state is not None:
        engine.load_state_dict(state)
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=epochs), lambda engine: engine.terminate())
    engine.run(range(3), max_epochs=4)
    return engine, seen


def test_a_resumed_training_equals_one_that_was_not_interrupted():
    whole, first, second = distiller(), distiller(), distiller()
    _, expected = train(whole, epochs=4)
    interrupted, begin = train(first, epochs=2)
    second.load_state_dict(first.state_dict())
    state = {"iteration": interrupted.state.iteration, "epoch_length": 3, "max_epochs": 4}
    assert state["iteration"] == 6
    _, end = train(second, epochs=4, state=state)
    assert begin + end == expected
    assert len(set(expected)) > 6
    assert all(torch.equal(second.state_dict()[key], value) for key, value in whole.state_dict().items())


def test_no_schedule_changes_nothing():
    network, engine = distiller(), Engine(lambda *_: None)
    TermSchedules(network, {}).attach(engine)
    engine.run(range(2))
    assert [term.factor for term in network.terms.values()] == [1.0, 1.0]


def test_a_distiller_wrapped_for_distributed_training_is_scheduled():
    network = distiller()
    engine = Engine(lambda *_: None)
    TermSchedules(Wrapped(network), {"soft": {"stop": 0}}).attach(engine)
    engine.run(range(2))
    assert network.terms["soft"].factor == 0.0


def test_an_empty_schedule_takes_away_that_of_a_term_which_is_disabled():
    TermSchedules(distiller(), {"cwd": {}})
    with pytest.raises(ValueError, match=r"name \['cwd'\], .* \(known: seg, soft\); .* --schedules::cwd \"{}\""):
        TermSchedules(distiller(), {"cwd": {"ramp": 0.1}, "soft": {"ramp": 0.1}})


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"rmap": 0.1}, "term 'soft' has the unknown key 'rmap'; did you mean 'ramp'?"),
        ({"ramp_iterations": 100}, "term 'soft' has the unknown key 'ramp_iterations'; "),
        ({"warm": 100}, "unknown key 'warm'; known: ramp, stop"),
        ({"ramp": 5}, "ramp of term 'soft' is 5; it must be a fraction of all iterations, a number from 0 to 1"),
        ({"ramp": -0.1}, "ramp of term 'soft' is -0.1; "),
        ({"ramp": True}, "ramp of term 'soft' is True; "),
        ({"ramp": "0.05"}, "ramp of term 'soft' is '0.05'; "),
        ({"ramp": [0.0, 0.1]}, r"ramp of term 'soft' is \[0.0, 0.1\]; "),
        ({"ramp": float("nan")}, "ramp of term 'soft' is nan; "),
        ({"stop": [0.5, 1.5]}, "stop of term 'soft' is 1.5; "),
        ({"stop": "0.8"}, "stop of term 'soft' is '0.8'; "),
        ({"stop": [0.5]}, r"stop of term 'soft' is \[0.5\]; give one fraction, or two: \[begin, end\]"),
        ({"stop": [0.9, 0.5]}, r"stop of term 'soft' is \[0.9, 0.5\]: .* write \[0.5, 0.9\]"),
    ],
)
def test_a_wrong_schedule_is_refused_in_one_line(schedule, message):
    with pytest.raises(ValueError, match=message) as error:
        TermSchedules(distiller(), {"soft": schedule})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("schedules", [None, [0.1], {"soft": None}, {"soft": 0.1}])
def test_schedules_must_be_mappings(schedules):
    with pytest.raises(TypeError, match=r"{'ramp': 0\.05}"):
        TermSchedules(distiller(), schedules)


def test_a_network_that_is_no_distiller_is_refused():
    with pytest.raises(TypeError, match="TermSchedules needs a Distiller, got Linear"):
        TermSchedules(nn.Linear(1, 1), {})


def test_a_training_of_unknown_length_is_refused():
    engine = Engine(lambda *_: None)
    TermSchedules(distiller(), {"soft": {"ramp": 0.1}}).attach(engine)
    with pytest.raises(ValueError, match="fractions of a training of known length; it has max_epochs None"):
        engine.run(iter(range(3)), max_iters=3)
