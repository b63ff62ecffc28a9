"""AverageWeights: the average in closed form, its warm-up, where it starts, and a resumed training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.utils import set_determinism
from torch import nn

from monai_kd.handlers import AverageWeights, ResumableTraining

CPU = torch.device("cpu")


def scalar_network(weight: float = 1.0) -> nn.Conv1d:
    network = nn.Conv1d(1, 1, 1, bias=False)
    network.weight.data.fill_(weight)
    return network


def trainer_of(network: nn.Module, handler: AverageWeights, epochs: int = 2, steps: int = 1) -> SupervisedTrainer:
    """The weight goes towards 3, by a fifth of the way in each step."""
    return SupervisedTrainer(
        device=CPU,
        max_epochs=epochs,
        train_data_loader=[{"image": torch.ones(1, 1, 4), "label": torch.full((1, 1, 4), 3.0)}] * 3,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=nn.MSELoss(),
        train_handlers=[handler],
        accumulation_steps=steps,
        decollate=False,
    )


def value(network: nn.Module) -> float:
    return network.weight.item()


# ---- the average ----------------------------------------------------------------------------------------------------


def test_the_average_in_closed_form():
    """With the decay d = 0.1 at every step: ``d^n w_0 + (1 - d) sum_t d^(n - t) w_t``."""
    network = scalar_network()
    handler = AverageWeights(network, decay=0.1)
    trainer_of(network, handler).run()
    weights = [3 - 2 * 0.8**t for t in range(7)]
    assert value(network) == pytest.approx(weights[6], rel=1e-6)
    expected = 0.1**6 * weights[0] + 0.9 * sum(0.1 ** (6 - t) * weights[t] for t in range(1, 7))
    assert value(handler.average) == pytest.approx(expected, rel=1e-6)


def test_it_forgets_faster_at_the_beginning():
    handler = AverageWeights(scalar_network(), decay=0.99)
    assert [handler.decay_at(t) for t in (1, 2, 3)] == pytest.approx([2 / 11, 3 / 12, 4 / 13])
    assert handler.decay_at(880) == pytest.approx(881 / 890)
    assert handler.decay_at(891) == handler.decay_at(10**6) == 0.99
    assert AverageWeights(scalar_network(), decay=0.1).decay_at(1) == 0.1


def test_the_warm_up_is_used():
    network = scalar_network()
    handler = AverageWeights(network, decay=0.99)
    trainer_of(network, handler, epochs=1).run()
    average, weight = 1.0, 1.0
    for t in (1, 2, 3):
        weight += 0.2 * (3 - weight)
        decay = (1 + t) / (10 + t)
        average = decay * average + (1 - decay) * weight
    assert value(handler.average) == pytest.approx(average, rel=1e-6)


def test_without_decay_it_is_the_network():
    network = scalar_network()
    handler = AverageWeights(network, decay=0.0)
    trainer_of(network, handler).run()
    assert value(handler.average) == value(network)


def test_it_starts_from_the_weights_that_the_training_starts_from():
    network = scalar_network()
    handler = AverageWeights(network, decay=0.9)
    network.weight.data.fill_(3.0)  # loaded after construction, and at the optimum
    trainer_of(network, handler, epochs=1).run()
    assert value(handler.average) == pytest.approx(3.0)


def test_with_gradient_accumulation_it_moves_when_the_weights_do():
    network = scalar_network()
    handler = AverageWeights(network, decay=0.99)
    moved: list[float] = []
    update = handler.update

    def record(decay: float) -> None:
        moved.append(decay)
        update(decay)

    handler.update = record
    trainer_of(network, handler, steps=2).run()
    # of epochs of 3 iterations, 2 and 3 end with a step
    assert moved == pytest.approx([(1 + t) / (10 + t) for t in (2, 3, 5, 6)])


def test_buffers_are_copied():
    network = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2))
    handler = AverageWeights(network, decay=0.9)
    network(torch.randn(2, 1, 5))
    handler.update(0.9)
    own, other = handler.average[1], network[1]
    assert torch.equal(own.running_mean, other.running_mean)
    assert own.num_batches_tracked == other.num_batches_tracked == 1


def test_the_average_learns_nothing_and_does_not_touch_the_training():
    plain, watched = scalar_network(), scalar_network()
    handler = AverageWeights(watched)
    trainer_of(watched, handler).run()
    trainer_of(plain, AverageWeights(scalar_network())).run()
    assert value(plain) == value(watched)
    assert not handler.average.training
    assert not any(p.requires_grad for p in handler.average.parameters())


@pytest.mark.parametrize("decay", [1.0, -0.1, True, "0.9", None])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="it must be a number from 0 to below 1"):
        AverageWeights(scalar_network(), decay)


# ---- resume ---------------------------------------------------------------------------------------------------------


def run(run_dir: Path, stop_in_epoch: int = 0, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    """A small training with dropout and shuffling; return network and average."""
    set_determinism(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    handler = AverageWeights(network, 0.9)
    items = [{"image": torch.full((4,), float(number)), "label": torch.ones(1)} for number in range(6)]
    dataset = CacheDataset(items, progress=False)
    evaluator = SupervisedEvaluator(CPU, items[:1], network)
    parts = {"network": network, "average": handler.average, "optimizer": optimizer}
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=4,
        train_data_loader=DataLoader(dataset, batch_size=2, shuffle=True),
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[handler, ResumableTraining(str(run_dir), 0, parts, dataset, evaluator, **arguments)],
    )

    @trainer.on(Events.ITERATION_COMPLETED)
    def fail(engine: Any) -> None:
        if engine.state.epoch == stop_in_epoch and engine.state.iteration % 3 == 2:
            raise ConnectionError("power cut")

    if stop_in_epoch:
        with pytest.raises(ConnectionError):
            trainer.run()
    else:
        trainer.run()
    return network, handler.average


@pytest.mark.parametrize("stop_in_epoch", [1, 2, 4])
def test_a_resumed_training_ends_with_the_same_average(tmp_path, stop_in_epoch):
    whole = run(tmp_path / "whole")
    run(tmp_path / "run", stop_in_epoch)
    resumed = run(tmp_path / "run", resume=True)
    for own, other in zip(resumed, whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))
    assert not torch.equal(whole[0][0].weight, whole[1][0].weight)
