"""The literal step of GKD that ours is timed against: the same loss, the same gradient, the same statistics."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from two_halves import TwoHalves, alignment

from monai_kd.visualize.gkd_step import gkd_step_markdown, gkd_step_table


@pytest.fixture(scope="module")
def command(repository: Path) -> Iterator[ModuleType]:
    """The benchmark: what it times is what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        yield importlib.import_module("gkd_step")


@pytest.fixture
def small(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with tiny networks."""

    def networks():
        torch.manual_seed(0)
        student, teacher = TwoHalves(3).train(), TwoHalves(5).eval().requires_grad_(False)
        own, other = (alignment(channels).requires_grad_(False).eval() for channels in (6, 10))
        return command.Networks(student, teacher, own, other)

    monkeypatch.setattr(command, "make_networks", networks)
    return command


@pytest.mark.parametrize("way", ["live", "bank"])
def test_loss_gradient_and_statistics_are_those_of_the_literal_step(small, way):
    ways = small.make_ways(small.make_batch(small.Case(2, 16)))
    (literal, expected), (student, loss) = ways["literal"], ways[way]
    torch.testing.assert_close(loss(), expected())
    torch.testing.assert_close(small.gradient(student, loss), small.gradient(literal, expected))
    for name, value in literal.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value)


def test_a_step_with_another_gradient_is_not_timed(small, monkeypatch):
    monkeypatch.setitem(small.WEIGHTS, "cross_decoder", 0.0)
    ways = small.make_ways(small.make_batch(small.Case(2, 16)))
    monkeypatch.setitem(small.WEIGHTS, "cross_decoder", 1.0)  # the literal step reads it when it runs
    monkeypatch.setattr(small, "make_ways", lambda _batch: ways)
    with pytest.raises(RuntimeError, match="the gradient of 'live' differs"):
        small.measure(small.Case(2, 16), rounds=1)


def test_a_bank_saves_the_teachers_operations(small):
    steps = small.measure(small.Case(2, 16), rounds=1)
    gflop = {name: found["gflop"] for name, found in steps.items()}
    assert gflop["live"] == pytest.approx(gflop["literal"], rel=0.01)
    assert gflop["live"] > gflop["bank"] > gflop["bank, no cross_encoder"] > gflop["student alone"]


def record(speedup: float) -> dict:
    facts = {"target": "a.b.Net", "parameters": 1234}
    spread = {"median": speedup, "low": speedup - 1, "high": speedup + 1}
    step = {"wall_ms": 500.0, "cpu_ms": 400.0, "gflop": 20.0, "speedup": spread}
    names = ("literal", "live", "bank", "bank, no cross_encoder", "student alone")
    return {
        "device": {"type": "cpu", "name": "AMD EPYC", "threads": 2},
        **{"batch": 2, "size": 128, "views": 4, "rounds": 5, "load_before": 0.1, "matrix_gflops": 80.0},
        "student": facts,
        "teacher": facts,
        "steps": dict.fromkeys(names, step),
    }


def test_the_table_says_what_was_measured_and_whether_it_is_enough(tmp_path):
    text = gkd_step_markdown(record(12.0))
    assert "| ours, live teacher | 0.5 | 12 (11 to 13) | 20 | 0.25 | 40 |" in text
    assert "All terms: reached, 12" in text
    assert "All terms: missed, 3" in gkd_step_markdown(record(3.0))
    path = tmp_path / "step.json"
    assert gkd_step_table(path) == "No results recorded."
    path.write_text(json.dumps(record(3.0)))
    assert gkd_step_table(path) == gkd_step_markdown(record(3.0))
    path.write_text("{}")
    with pytest.raises(ValueError, match="no record of steps of GKD"):
        gkd_step_table(path)
