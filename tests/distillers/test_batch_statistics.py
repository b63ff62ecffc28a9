"""keep_running_statistics: batch statistics as ever, buffers as they were, to the last bit."""

from __future__ import annotations

import pytest
import torch
from monai.networks.layers import DropPath
from monai.networks.nets import UNet
from torch import nn

from monai_kd.distillers import keep_running_statistics, without_dropout

LAYERS = {
    "1d": (nn.BatchNorm1d, (4, 3, 5)),
    "2d": (nn.BatchNorm2d, (4, 3, 5, 6)),
    "3d": (nn.BatchNorm3d, (2, 3, 4, 5, 6)),
    "sync": (nn.SyncBatchNorm, (4, 3, 5, 6)),
}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def buffers(module):
    return {name: value.clone() for name, value in module.named_buffers()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def image(shape=(4, 3, 5, 6), seed=0):
    return 2 + 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(2, 1, 2, (4, 8, 8), (2, 2), num_res_units=1, norm="batch")


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_buffers_are_unchanged_inside_and_changed_outside(kind, momentum):
    layer_class, shape = LAYERS[kind]
    layer = layer_class(3, momentum=momentum).train()
    layer(image(shape))
    before = buffers(layer)
    assert before["num_batches_tracked"] == 1
    with keep_running_statistics(layer):
        layer(image(shape, seed=1))
        assert same(buffers(layer), before)
    assert same(buffers(layer), before)
    layer(image(shape, seed=1))
    after = buffers(layer)
    assert not any(torch.equal(after[name], before[name]) for name in BUFFERS)


@pytest.mark.parametrize("kind", LAYERS)
def test_output_and_gradients_are_those_of_training_mode(kind):
    layer_class, shape = LAYERS[kind]
    results = []
    for keep in (False, True):
        layer, value = layer_class(3).train(), image(shape).requires_grad_()
        if keep:
            with keep_running_statistics(layer):
                output = layer(value)
        else:
            output = layer(value)
        output.pow(3).sum().backward()  # also after the context
        results.append((output, value.grad, layer.weight.grad, layer.bias.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_network_s_buffers_change_by_the_main_pass_only(network):
    before = buffers(network)
    assert len(before) > 10
    with keep_running_statistics(network):
        for seed in range(3):
            network(image((4, 1, 16, 16), seed)).sum().backward()
    assert same(buffers(network), before)
    network(image((4, 1, 16, 16)))
    assert not same(buffers(network), before)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_in_evaluation_mode_are_not_concerned(kind):
    layer_class, shape = LAYERS[kind]
    layer = layer_class(3).train()
    layer(image(shape))
    layer.eval()
    before, expected = buffers(layer), layer(image(shape, seed=1))
    with keep_running_statistics(layer):
        assert torch.equal(layer(image(shape, seed=1)), expected)
        layer.train()  # the mode may change inside
        layer(image(shape, seed=1))
        layer.eval()
    assert same(buffers(layer), before)
    assert torch.equal(layer(image(shape, seed=1)), expected)


def test_all_is_as_before_after_an_exception(network):
    flags = [layer.track_running_stats for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    with pytest.raises(RuntimeError, match="on purpose"), keep_running_statistics(network):
        raise RuntimeError("on purpose")
    assert [layer.track_running_stats for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)] == flags
    assert all(flags)
    before = buffers(network)
    network(image((4, 1, 16, 16)))
    assert not same(buffers(network), before)


def test_nested_contexts_end_with_the_outermost(network):
    before = buffers(network)
    with keep_running_statistics(network):
        with keep_running_statistics(network.model):
            network(image((4, 1, 16, 16)))
        network(image((4, 1, 16, 16)))
    assert same(buffers(network), before)
    network(image((4, 1, 16, 16)))
    assert not same(buffers(network), before)


def test_layers_that_track_nothing_stay_so():
    layer = nn.BatchNorm2d(3, track_running_stats=False)
    with keep_running_statistics(layer):
        layer(image())
    assert layer.track_running_stats is False


def test_a_module_without_batch_normalization_is_fine():
    with keep_running_statistics(nn.Conv2d(3, 2, 1)), keep_running_statistics(nn.InstanceNorm2d(3)):
        pass


def test_state_dict_and_modes_are_untouched_inside(network):
    keys = list(network.state_dict())
    with keep_running_statistics(network):
        assert list(network.state_dict()) == keys
        assert all(module.training for module in network.modules())


def test_instance_normalization_that_tracks_is_refused_in_training_only():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3, track_running_stats=True))
    with (
        pytest.raises(ValueError, match="'1' is an InstanceNorm2d with track_running_stats=True"),
        keep_running_statistics(network),
    ):
        pass
    with keep_running_statistics(network.eval()):
        network(image())


# ---- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5), DropPath(0.5)]
)
def test_nothing_is_dropped_inside(layer):
    network, value = nn.Sequential(nn.Identity(), layer), image((16, 3, 5, 6))
    with without_dropout(network):
        with without_dropout(layer):
            assert torch.equal(network(value), value)
        assert torch.equal(network(value), value)
        assert network.training
    assert not torch.equal(network(value), value)


def test_dropout_is_in_its_mode_again_after_an_exception_and_stays_off_in_evaluation():
    network = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5).eval(), nn.BatchNorm2d(3))
    with without_dropout(network):
        assert [layer.training for layer in network] == [False, False, True]
    with pytest.raises(RuntimeError, match="on purpose"), without_dropout(network):
        raise RuntimeError("on purpose")
    assert [layer.training for layer in network] == [True, False, True]
