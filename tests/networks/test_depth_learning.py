"""A task that single slices cannot solve is solved by slices that exchange features."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.mark.slow
def test_slices_that_exchange_features_solve_what_single_slices_cannot(repository: Path, monkeypatch):
    monkeypatch.syspath_prepend(repository / "benchmarks")
    task = importlib.import_module("depth_learning_task")
    image, label = task.held_out_volumes()
    found = {
        name: task.dice(task.predicted(task.trained(name, 0), image), label) for name in ("none", "plain", "distill")
    }
    assert found["none"] < 0.3
    assert found["distill"] > 0.8
    assert found["plain"] > 0.6  # which of the two does better depends on the seed
