"""The literal step of MTMS-KD that ours is timed against, the benchmark of both, and its table."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from monai_kd.networks.nets import MultiTaskUNet, SlimUNet
from monai_kd.visualize import write_tables
from monai_kd.visualize.mtms_step import mtms_step_markdown, mtms_step_table


@pytest.fixture(scope="module")
def command(repository: Path) -> Iterator[ModuleType]:
    """The benchmark: what it times is what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        yield importlib.import_module("mtms_step")


@pytest.fixture
def literal(command: ModuleType) -> ModuleType:
    return sys.modules["literal_mtms"]


@pytest.fixture
def small(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with tiny networks."""

    def student():
        torch.manual_seed(0)
        return SlimUNet(2, 1, 2, (2, 4, 8)).train()

    def teacher():
        torch.manual_seed(1)
        network = MultiTaskUNet(2, 1, 2, (4, 8, 12, 16), reconstruction_skips=3)
        return network.eval().requires_grad_(False)

    monkeypatch.setattr(command, "make_student", student)
    monkeypatch.setattr(command, "make_teacher", teacher)
    return command


def test_the_networks_are_the_published_ones(command):
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in make().parameters()) for make in (command.make_teacher, command.make_student)]
    assert sizes == [43_234_819, 57_026]  # one channel in and two out, in place of three and one


def test_supervision_and_prediction_maps_are_ours_and_the_contrast_is_drawn_anew(small, literal):
    batch = small.make_batch(case := small.Case(2, 32))
    small.check_terms(case)
    step = literal.LiteralStep(small.make_student(), small.make_teacher())
    first, second = (step.terms(batch["image"], batch["label"]) for _ in range(2))
    assert first.keys() == set(literal.WEIGHTS)
    assert all(torch.equal(first[name], second[name]) for name in small.SAME)
    assert all(not torch.equal(first[name], second[name]) for name in literal.STAGES)


def test_the_literal_contrast_has_the_values_of_its_formula(literal):
    rows = torch.eye(4).reshape(4, 1, 2, 2)
    wanted = -math.log(math.exp(1 / literal.TAU) / (math.exp(1 / literal.TAU) + 3))
    assert literal.info_nce(rows, 3 * rows).item() == pytest.approx(wanted)
    assert literal.info_nce(torch.ones(4, 1, 2, 2), rows).item() == pytest.approx(math.log(4))
    assert literal.projected(torch.rand(2, 6, 4, 4), torch.rand(2, 3, 8, 8)).shape == (2, 3, 8, 8)


def test_the_literal_teacher_rebuilds_and_its_step_trains_the_student_alone(small, literal):
    batch, student, teacher = small.make_batch(small.Case(2, 32)), small.make_student(), small.make_teacher()
    ran = []
    teacher.reconstruction.register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
    literal.LiteralStep(student, teacher).loss(batch["image"], batch["label"]).backward()
    assert ran == [False]
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_stored_targets_give_the_gradient_of_the_live_teacher(small):
    ways = small.make_ways(small.Case(2, 32))
    for _ in range(2):  # the second with a queue
        torch.testing.assert_close(small.gradient(ways["cached"]), small.gradient(ways["live"]))


def test_steps_that_are_others_are_not_timed(small, monkeypatch):
    small.check_gradient(torch.ones(3), torch.ones(3))
    with pytest.raises(RuntimeError, match=r"with stored targets differs from the live teacher's by 1\.0e-02"):
        small.check_gradient(torch.full((3,), 1.01), torch.ones(3))
    monkeypatch.setattr(small, "TEMPERATURE", 2.0)
    with pytest.raises(RuntimeError, match="the term 'maps' differs from the literal form's"):
        small.measure(small.Case(2, 32), rounds=1)


def test_a_quick_run_writes_a_record_that_the_table_reads(small, monkeypatch, tmp_path, capsys):
    path = tmp_path / "record.json"
    monkeypatch.setattr(small, "matrix_gflops", lambda: 80.0)
    threads = str(torch.get_num_threads())
    monkeypatch.setattr(sys, "argv", ["mtms_step.py", "--quick", "--threads", threads, "--out", str(path)])
    small.main()
    record = json.loads(path.read_text())
    assert (record["batch"], record["size"], record["rounds"]) == (2, 64, 1)
    assert record["teacher"]["target"].endswith("MultiTaskUNet")
    gflop = {name: found["gflop"] for name, found in record["steps"].items()}
    assert gflop["literal"] > gflop["live"] > gflop["cached"] > gflop["student alone"] > 0
    assert all(found["peak_mb"] > 0 for found in record["steps"].values())
    assert mtms_step_table(path) == mtms_step_markdown(record)
    assert mtms_step_markdown(record) in capsys.readouterr().out


def record() -> dict:
    def step(seconds: float, gflop: float, speedup: float, peak: float) -> dict:
        spread = {"median": speedup, "low": speedup - 1, "high": speedup + 1}
        return {"wall_ms": 1000 * seconds, "cpu_ms": 1.0, "gflop": gflop, "speedup": spread, "peak_mb": peak}

    return {
        "device": {"type": "cpu", "name": "AMD EPYC", "threads": 2},
        **{"batch": 4, "size": 256, "grid": 4, "rounds": 5, "load_before": 0.1, "matrix_gflops": 80.0},
        "student": {"target": "a.b.Slim", "parameters": 57026},
        "teacher": {"target": "a.b.Wide", "parameters": 43234819},
        "steps": {
            "literal": step(8.0, 400.0, 1.0, 900.0),
            "live": step(4.0, 200.0, 2.0, 500.0),
            "cached": step(0.5, 20.0, 16.0, 300.0),
            "student alone": step(0.4, 16.0, 20.0, 250.0),
        },
    }


def test_the_table_says_what_was_measured(tmp_path):
    text = mtms_step_markdown(record())
    assert "| literal, both decoders of the teacher | 8 | 1 | 400 | 5 | 50 | 900 |" in text
    assert "| ours, stored targets | 0.5 | 16 (15 to 17) | 20 | 0.25 | 40 | 300 |" in text
    assert "4 slices of 256 x 256; Wide (43,234,819 parameters) teaches Slim (57,026 parameters)" in text
    assert "2 times as fast with a live teacher" in text
    assert "16 times with stored targets, where a step takes 1.25 times as long as the student alone." in text


def test_a_missing_record_is_said_a_wrong_one_named_and_documents_ask_for_it(tmp_path):
    path = tmp_path / "mtms_step.json"
    assert mtms_step_table(path) == "No results recorded."
    path.write_text("{}")
    with pytest.raises(ValueError, match="no record of steps of MTMS-KD"):
        mtms_step_table(path)
    path.write_text(json.dumps(record()))
    page = tmp_path / "page.md"
    page.write_text("<!-- >>> results: mtms_step -->\n<!-- <<< results -->")
    assert write_tables(tmp_path, [page]) == [page]
    assert "| ours, live teacher | 4 | 2 (1 to 3) |" in page.read_text()
