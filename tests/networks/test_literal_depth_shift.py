"""The literal form that our depth shift is timed against is the formula, and ours equals it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from monai_kd.networks.layers import DistillDepthShift
from monai_kd.networks.nets import DSMUNet
from monai_kd.visualize.depth_shift_costs import depth_shift_markdown


@pytest.fixture(scope="module")
def benchmarks(repository: Path) -> Iterator[None]:
    """Make the benchmarks importable: what they time is what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        yield


@pytest.fixture(scope="module")
def literal(benchmarks: None) -> ModuleType:
    return importlib.import_module("literal_depth_shift")


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_the_literal_form_is_the_formula_slice_by_slice(literal, alpha):
    torch.manual_seed(0)
    depth, module = 3, literal.LiteralDepthShift(8, alpha)
    slices = torch.randn(2 * depth, 8, 5, 4)  # two volumes
    width = int(8 * alpha)
    conv = {
        name: F.conv2d(slices[:, :width], part.weight, part.bias, padding=1)
        for name, part in {"F": module.onward, "B": module.back, "R": module.retain}.items()
    }
    assert [len(maps[0]) for maps in conv.values()] == [width // 4, width // 4, width // 2]
    result = module(slices, depth)
    for index in range(2 * depth):
        place = index % depth
        received = conv["F"][index - 1] if place > 0 else torch.zeros_like(conv["F"][0])
        returned = conv["B"][index + 1] if place < depth - 1 else torch.zeros_like(conv["B"][0])
        expected = torch.cat([received, returned, conv["R"][index], slices[index, width:]])
        torch.testing.assert_close(result[index], expected)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_our_layer_equals_the_literal_form_in_value_and_gradients(literal, alpha):
    torch.manual_seed(0)
    ours, theirs = DistillDepthShift(8, alpha).double(), literal.LiteralDepthShift(8, alpha).double()
    ours.count.slices = 3
    theirs.take_over(ours)
    features, weight = torch.randn(2, 6, 8, 5, 4, dtype=torch.float64)
    given = [features.clone().requires_grad_() for _ in range(2)]
    results = [ours(given[0]), theirs(given[1], 3)]
    torch.testing.assert_close(*results)
    for result in results:
        (result * weight).sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad)
    gradients = literal.flat_gradient(ours), literal.flat_gradient(theirs)
    assert gradients[0].numel() == 9 * ours.width**2 + ours.width
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("alpha", "size"), [(1.0, (16, 32)), (0.5, (32, 16))])
def test_our_network_equals_the_literal_one_in_value_and_gradients(literal, alpha, size):
    torch.manual_seed(0)
    ours, theirs = DSMUNet(2, 3, alpha=alpha, depth_axis=0).double(), literal.LiteralUNet(2, 3, alpha).double()
    theirs.take_over(ours)
    volume = torch.randn(2, 2, 3, *size, dtype=torch.float64)
    results = [network(volume) for network in (ours, theirs)]
    assert results[0].shape == (2, 3, 3, *size)
    torch.testing.assert_close(*results)
    for result in results:
        result.square().mean().backward()
    torch.testing.assert_close(literal.flat_gradient(ours), literal.flat_gradient(theirs))


def test_the_literal_network_has_the_parameters_of_the_paper(literal):
    counts = {
        alpha: sum(value.numel() for value in literal.LiteralUNet(channels, 2, alpha).parameters())
        for alpha, channels in ((0.5, 1), (0.25, 2), (1.0, 2))
    }
    assert counts == {0.5: 1_216_266, 0.25: 1_115_606, 1.0: 1_619_330}


def test_the_literal_form_refuses_channels_that_it_cannot_split(literal):
    with pytest.raises(ValueError, match=r"alpha 0\.5 of 12 channels is 6; it must be a multiple of 4"):
        literal.LiteralDepthShift(12, 0.5)


def test_the_benchmark_refuses_to_time_an_exchange_that_is_another(benchmarks):
    block = importlib.import_module("depth_shift_block")
    made = block.Block(block.QUICK[1], "cpu")
    made.check()
    with torch.no_grad():
        made.forms["literal"].module.back.bias += 0.1
    with pytest.raises(RuntimeError, match=r"ours NCHW: the output differs from the literal form's by"):
        made.check()


def test_a_gradient_that_is_missing_is_named(literal):
    module = literal.LiteralDepthShift(8, 1.0)
    with pytest.raises(RuntimeError, match=r"no gradient for onward\.weight, "):
        literal.flat_gradient(module)


def test_what_the_benchmark_records_is_what_the_tables_read(benchmarks):
    command, networks = importlib.import_module("depth_shift"), importlib.import_module("depth_shift_networks")
    record = command.measure(["block"], quick=True, rounds=1, device="cpu")
    made = networks.make_trials(networks.Volume(2, 16), "cpu")
    trials = {name: trial for name, trial in made.items() if "3-D" not in name}  # which need more slices
    found = networks.measure_trials(trials, 1, "cpu")
    record["network"] = {"shape": [1, 1, 2, 16, 16], "space_network": "none", "networks": found}
    assert command.parts("network,block") == ["block", "network"]
    text = depth_shift_markdown(record)
    assert text.count("\n| D3 C8 8², alpha 1, ") == 2
    assert "| ours, alpha 0.5, channels_last | 1,216,249 | " in text


def test_folded_norms_and_a_compared_variant(benchmarks):
    variants = importlib.import_module("depth_shift_variants")
    trials = importlib.import_module("depth_shift_trials")
    trial = trials.make_trial(trials.Volume(3, 16), "cpu")
    means = [buffer for name, buffer in trial.network.named_buffers() if name.endswith("running_mean")]
    assert all(mean.abs().max() > 0 for mean in means)  # or folding would be no test
    folded = trials.Trial(variants.with_folded_norms(trial.network), trial.volume)
    expected: dict[str, torch.Tensor] = {}
    plain = variants._compared(trials.as_variant(trial, "cpu", ("forward",)), expected)
    found = variants._compared(trials.as_variant(folded, "cpu", ("forward",)), expected)
    assert plain["forward"]["error"] == 0
    assert 0 < found["forward"]["error"] < 1e-5
