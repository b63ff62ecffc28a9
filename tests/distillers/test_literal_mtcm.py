"""The literal joint step that ours is timed against is the formulas, and ours equals it, in parts and as a whole."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from monai_kd.losses import DiceJaccardCE, PerformanceKL
from monai_kd.metrics import confusion_matrix, region_dice
from monai_kd.visualize.mtcm_step import mtcm_step_markdown

REGIONS = {"whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]}


@pytest.fixture(scope="module")
def benchmarks(repository: Path) -> Iterator[None]:
    """Make the benchmarks importable: what they time is what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        yield


@pytest.fixture(scope="module")
def literal(benchmarks: None) -> ModuleType:
    return importlib.import_module("literal_mtcm")


@pytest.fixture(scope="module")
def ways(benchmarks: None) -> ModuleType:
    return importlib.import_module("mtcm_ways")


def make_pair(classes=4, size=6, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, *[size] * 3, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (batch, 1, *[size] * 3), generator=generator)


def gradient(loss, logits):
    given = logits.clone().requires_grad_()
    value = loss(given)
    (found,) = torch.autograd.grad(value, given)
    return value.detach(), found


# ---- the whole step -------------------------------------------------------------------------------------------------


def run_step(ways, name):
    """Return the gradients of one step in float64, where biases before a normalization have none but for rounding."""
    case, way = ways.Case(16, 4), ways.WAYS[name]
    distiller = ways.make_distiller(case, way).double()
    image, label = ways.make_batch(case.size)
    ways.make_step(distiller, way)(image.double(), label)
    return ways.gradients(distiller)


@pytest.fixture(scope="module")
def literal_gradients(ways: ModuleType) -> dict[str, torch.Tensor]:
    return run_step(ways, "literal")


@pytest.mark.parametrize(
    "name", ["joint", "joint staged", "joint channels_last", "joint staged channels_last", "pretrained"]
)
def test_our_step_has_the_gradients_of_the_literal_one(ways, literal_gradients, name):
    found = run_step(ways, name)
    is_joint = name.startswith("joint")
    own = {key for key in literal_gradients if is_joint or not key.startswith("trained_teachers")}
    assert set(found) == own
    assert len(own) > 40
    for key, value in found.items():
        expected = literal_gradients[key]
        assert float((value - expected).norm()) <= 1e-6 * float(expected.norm()) + 1e-12, key


def test_every_way_is_another_way(ways):
    assert len(ways.WAYS) == len(set(ways.WAYS.values())) == 11
    assert {way.mode for way in ways.WAYS.values()} == {"literal", "joint", "pretrained"}


def test_staged_step_holds_less_at_once_than_the_plain_one(benchmarks, ways):
    """By torch's own record of what it allocates, which neither the system nor other processes move."""
    measurements = importlib.import_module("measurements")
    case, peaks = ways.Case(32, 8), {}  # narrower, and the columns of small convolutions would outweigh the rest
    batch = ways.make_batch(case.size)
    for name in ("joint", "joint staged", "pretrained"):
        distiller = ways.make_distiller(case, ways.WAYS[name])
        peaks[name] = measurements.allocated_peak(lambda own=distiller: own(*batch).loss.backward())
    assert peaks["joint staged"] < 0.7 * peaks["joint"]
    assert peaks["pretrained"] < 0.6 * peaks["joint"]


# ---- its parts ------------------------------------------------------------------------------------------------------


def test_literal_supervised_loss_is_the_formula_of_the_paper_by_hand(literal):
    # two voxels, probabilities (3/4, 1/4) and (1/4, 3/4), labels 0 and 1: I = 3/4, C = 2, for both classes
    logits = torch.log(torch.tensor([[3.0, 1.0], [1.0, 3.0]])).reshape(1, 2, 2)
    label = torch.tensor([0, 1]).reshape(1, 1, 2)
    expected = ((1 - 0.75) + (1 - 0.6) - torch.log(torch.tensor(0.75))) / 3
    torch.testing.assert_close(literal.supervised_loss(logits, label), expected)


def test_one_softmax_gives_what_three_give(literal):
    logits, label = make_pair()
    ours = DiceJaccardCE(include_background=True, smooth=0.0, resampling="nearest")
    got = gradient(lambda given: ours(given, label), logits)
    expected = gradient(lambda given: literal.supervised_loss(given, label), logits)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-10)


def test_half_resolution_takes_the_same_voxels(literal):
    label = make_pair()[1]
    logits = make_pair(size=3)[0]
    ours = DiceJaccardCE(include_background=True, smooth=0.0, resampling="nearest")
    got = gradient(lambda given: ours(given, label), logits)
    expected = gradient(lambda given: literal.supervised_loss(given, literal.even_voxels(label)), logits)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_one_divergence_to_the_mixture_has_the_gradient_of_three(literal, temperature):
    student, label = make_pair()
    teachers = [3 * make_pair(seed=seed)[0] for seed in (1, 2, 3)]
    dice = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)
    ours = PerformanceKL(3, REGIONS, temperature, mode="linear").double()
    ours.dice.copy_(dice.unsqueeze(1).expand(3, 3))
    got = gradient(lambda given: ours(given, teachers, label), student)
    weights = (dice / dice.sum()).tolist()
    expected = gradient(lambda given: literal.response_loss(given, teachers, weights, temperature), student)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=1e-12)
    assert got[0] < expected[0]  # what the teachers disagree about among themselves is no part of it


def test_counts_give_the_volumetric_dice_of_loops(literal):
    logits, label = make_pair(size=4, batch=1)
    got, found = region_dice(confusion_matrix(logits.argmax(dim=1), label[:, 0], 4), REGIONS)
    assert bool(found.all())
    predicted, labeled = logits.argmax(dim=1).flatten().tolist(), label.flatten().tolist()
    for value, members in zip(got.tolist(), REGIONS.values(), strict=True):
        both = total = 0
        for one, other in zip(predicted, labeled, strict=True):
            both += one in members and other in members
            total += (one in members) + (other in members)
        assert value == pytest.approx(2 * both / total)


def test_slice_dice_scores_an_empty_prediction_as_the_reference_does(literal):
    label = torch.zeros(1, 1, 4, 4, 4, dtype=torch.long)
    label[0, 0, 0] = 2  # one slice of four
    background = torch.zeros(1, 4, 4, 4, 4)
    background[:, 0] = 1.0
    assert literal.slice_dice(background, label) == [1.0, 0.75, 1.0, 1.0, 0.75]
    counts = confusion_matrix(background.argmax(dim=1), label[:, 0], 4)
    assert region_dice(counts, {"whole_tumor": [1, 2, 3]})[0].item() == 0


# ---- the record -----------------------------------------------------------------------------------------------------


def test_a_gradient_of_another_step_is_refused(benchmarks):
    command = importlib.import_module("mtcm_step")
    command.check_gradient("joint", 1e-5)
    command.check_gradient("joint staged bfloat16", 1e-2)
    with pytest.raises(RuntimeError, match=r"joint: the gradient differs from the literal step's by 1\.0e-02"):
        command.check_gradient("joint", 1e-2)
    with pytest.raises(RuntimeError, match="joint"):
        command.check_gradient("joint", float("nan"))


def test_operations_of_a_step_are_those_of_the_networks(benchmarks, ways):
    command = importlib.import_module("mtcm_step")
    found = command.operations(ways.Case(64, 32))
    assert found["forward"] == pytest.approx(222, rel=0.01)
    assert found["backward"] == pytest.approx(2 * found["forward"], rel=0.02)
    assert found["joint"] / found["pretrained"] == pytest.approx(2, rel=0.01)


def test_what_the_benchmark_records_is_what_the_tables_read(benchmarks, ways, monkeypatch, tmp_path):
    command, parts = importlib.import_module("mtcm_step"), importlib.import_module("mtcm_parts")
    names = ("literal", "joint", "pretrained", "joint staged bfloat16")
    monkeypatch.setattr(command, "WAYS", {name: ways.WAYS[name] for name in names})
    case, asked = ways.Case(8, 4), []

    def stand_in(case, trial, threads, warm_up, file):
        asked.append((*trial, warm_up))
        torch.save({"weight": torch.ones(3)}, file)
        return {"seconds": 2.0 if trial[1] == "literal" else 1.0, "cpu_seconds": 1.0, "peak_mb": 10.0}

    monkeypatch.setattr(command, "in_fresh_process", stand_in)
    monkeypatch.setattr(command, "cpu_has_bfloat16", lambda: False)
    record = {
        "device": {"type": "cpu", "name": "AMD EPYC", "threads": 1},
        **case._asdict(),
        **{"rounds": 2, "load_before": 0.1, "bfloat16_in_hardware": False, "matrix_gflops": 40.0},
        "network": {"target": "ChannelAttentionResUNet", "parameters": 1},
        "gflop": command.operations(case),
        "parts": parts.measure_parts(case.size, 1),
        "memory": command.measure_steps(case, 1, 2),
    }
    assert len(asked) == 2 * 2 * 3 + 1  # rounds, handlings of memory, ways; and the emulated one once
    assert asked[-1] == ("kept", "joint staged bfloat16", False)
    text = mtcm_step_markdown(json.loads(json.dumps(record)))
    assert "| ours, joint | 1.00 (1.00 to 1.00) | 2.00 (2.00 to 2.00) | 0.01 |" in text
    assert "| ours, joint, staged, bfloat16 | 1.00 \\* |" in text


def test_one_process_measures_one_way(benchmarks, ways, capsys, tmp_path):
    command = importlib.import_module("mtcm_step")
    threads = torch.get_num_threads()
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux: /proc/self/clear_refs resets the high water mark of a process")
    command.run_here(["joint staged", "8", "4", str(threads), "True", str(tmp_path / "gradients.pt")])
    numbers = json.loads(capsys.readouterr().out)
    assert set(numbers) == {"seconds", "cpu_seconds", "peak_mb"}
    assert numbers["seconds"] > 0
    assert command.gradient_error(tmp_path / "gradients.pt", tmp_path / "gradients.pt") == 0
