"""On one fixed task whose labels are wrong and whose teacher knows, each classic distiller helps."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

SEEDS = 5


@pytest.fixture(scope="module")
def noisy_labels(repository: Path) -> Iterator[ModuleType]:
    """The benchmark itself, so that the published figures and this test are of the same code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        yield importlib.import_module("noisy_labels")


@pytest.fixture(scope="module")
def corrupted(noisy_labels: ModuleType) -> Callable[..., np.ndarray]:
    return importlib.import_module("noisy_labels_task").corrupted


@pytest.fixture(scope="module")
def task(noisy_labels: ModuleType) -> Any:
    return noisy_labels.Task()


@pytest.fixture(scope="module")
def data(noisy_labels: ModuleType, task: Any) -> Any:
    return noisy_labels.make_data(task)


@pytest.fixture(scope="module")
def teacher(noisy_labels: ModuleType, task: Any, data: Any) -> nn.Module:
    teacher: nn.Module = noisy_labels.make_teacher(task, data)
    return teacher


def test_the_labels_mislead_and_the_teacher_knows(noisy_labels, task, data, teacher):
    clean, (_, noisy) = data.training_clean, data.training
    assert set(np.unique(clean)) == set(np.unique(noisy)) == {0, 1, 2, 3}
    wrong = (noisy != clean)[clean > 0].float().mean().item()
    assert 0.3 < wrong < 0.7
    assert noisy_labels.mean_dice(teacher, data.test) > 85
    again = noisy_labels.make_data(task)
    assert all(torch.equal(*pair) for pair in zip(data.training, again.training, strict=True))


def test_a_missing_and_a_swapped_object(noisy_labels, corrupted):
    label = np.zeros((32, 32), dtype=np.int64)
    label[4:10, 4:10] = 1
    rng = np.random.default_rng(0)
    quiet: dict[str, Any] = {"most_shift": 0, "most_growth": 0}
    cases = {(1.0, 0.0): {0}, (0.0, 1.0): {0, 2, 3}, (0.0, 0.0): {0, 1}}
    for (missing, swapped), expected in cases.items():
        task = noisy_labels.Task(missing=missing, swapped=swapped, **quiet)
        found = [corrupted(label, task, rng) for _ in range(20)]
        assert set(np.unique(found)) == expected
        assert all((noisy > 0).sum() == (0 if missing else 36) for noisy in found)


def test_gain_is_measured_against_the_same_seed(noisy_labels):
    dice = {"baseline": [10.0, 30.0], "kd": [15.0, 29.0]}
    assert noisy_labels.gains(dice) == {"kd": [5.0, -1.0]}
    assert noisy_labels.table(dice).splitlines()[2].split() == ["kd", "22.0", "+2.0", "4.2", "1", "of", "2"]


@pytest.fixture(scope="module")
def taught(noisy_labels: ModuleType, task: Any, data: Any, teacher: nn.Module) -> dict[str, list[float]]:
    """Dice of every method and seed."""
    outcome = noisy_labels.run(task, data, teacher, SEEDS)
    print(noisy_labels.table(outcome.dice))
    return dict(outcome.dice)


@pytest.mark.slow
def test_each_classic_gains_two_dice_points_and_four_of_five_seeds(noisy_labels, taught):
    found = noisy_labels.gains(taught)
    assert list(found) == ["kd", "at", "dkd", "cwd", "review", "dist"]
    for method, gain in found.items():
        assert statistics.mean(gain) >= 2, f"{method}: {gain}"
        assert sum(value > 0 for value in gain) >= 4, f"{method}: {gain}"


@pytest.mark.slow
def test_what_helps_is_what_the_teacher_knows(noisy_labels, task, data, taught):
    untrained = noisy_labels.run(task, data, noisy_labels.make_teacher(task, data, steps=0), 2).dice
    print(noisy_labels.table(untrained))
    known = {method: values[:2] for method, values in taught.items()}
    assert untrained["baseline"] == known["baseline"]
    gain, of_nothing = (
        {method: statistics.mean(values) for method, values in noisy_labels.gains(dice).items()}
        for dice in (known, untrained)
    )
    for method in gain:
        assert gain[method] - of_nothing[method] >= 2, method
    # to match any features keeps a student from learning wrong labels by heart, so AT and ReviewKD help a little too
    for method in ("kd", "dkd", "cwd", "dist"):
        assert of_nothing[method] < 0.25 * gain[method], method
