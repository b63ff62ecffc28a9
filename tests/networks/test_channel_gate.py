"""ChannelGate: what its gate is, and what it does not depend on."""

from __future__ import annotations

import pytest
import torch

from monai_kd.networks.blocks import ChannelGate, channel_gate


def make_gate(channels: int = 6, reduction: int = 2) -> ChannelGate:
    torch.manual_seed(0)
    return ChannelGate(channels, reduction)


@pytest.mark.parametrize("size", [(5,), (4, 3), (4, 3, 2)])
def test_on_constant_maps_mean_and_maximum_say_the_same(size):
    gate, constants = make_gate(), torch.randn(2, 6)
    features = constants.reshape(2, 6, *[1] * len(size)).expand(2, 6, *size)
    expected = (2 * gate.layers(constants)).sigmoid()
    torch.testing.assert_close(gate.gate(features), expected)
    torch.testing.assert_close(gate(features), features * expected.reshape(2, 6, *[1] * len(size)))


def test_by_hand():
    gate = ChannelGate(2, 2)
    with torch.no_grad():  # hidden = first channel, halved where negative by the slope 0.01; both outputs read it
        gate.layers[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
        gate.layers[0].bias.zero_()
        gate.layers[2].weight.copy_(torch.tensor([[1.0], [-2.0]]))
        gate.layers[2].bias.zero_()
    features = torch.tensor([[[-3.0, 1.0], [5.0, 7.0]]])  # mean -1, maximum 1 of the first channel
    hidden = -0.01 + 1.0
    torch.testing.assert_close(gate.gate(features), torch.tensor([[hidden, -2 * hidden]]).sigmoid())


def test_a_gate_lies_between_zero_and_one():
    found = make_gate().gate(10 * torch.randn(3, 6, 4, 4, 4))
    assert found.shape == (3, 6)
    assert found.min() > 0
    assert found.max() < 1


def test_the_order_of_voxels_does_not_matter():
    gate, features = make_gate(), torch.randn(2, 6, 24)
    order = torch.randperm(24)
    torch.testing.assert_close(gate.gate(features[..., order]), gate.gate(features))
    torch.testing.assert_close(gate(features.reshape(2, 6, 4, 6)), gate(features).reshape(2, 6, 4, 6))


def test_the_order_of_channels_matters_to_the_layers_alone():
    gate, features = make_gate(), torch.randn(2, 6, 8)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    plain = gate.gate(features)
    assert not torch.allclose(gate.gate(features[:, order]), plain[:, order])
    with torch.no_grad():
        gate.layers[0].weight.copy_(gate.layers[0].weight[:, order])
        gate.layers[2].weight.copy_(gate.layers[2].weight[order])
        gate.layers[2].bias.copy_(gate.layers[2].bias[order])
    torch.testing.assert_close(gate.gate(features[:, order]), plain[:, order])


def test_samples_do_not_see_each_other():
    gate, features = make_gate(), torch.randn(3, 6, 4, 4)
    torch.testing.assert_close(gate(features)[1:2], gate(features[1:2]))


@pytest.mark.parametrize(
    ("channels", "reduction", "hidden"), [(384, 16, 24), (192, 16, 12), (96, 16, 6), (64, 16, 4), (8, 16, 1), (6, 2, 3)]
)
def test_the_hidden_layer_has_at_least_one_unit(channels, reduction, hidden):
    gate = ChannelGate(channels, reduction)
    assert gate.layers[0].out_features == hidden
    assert sum(p.numel() for p in gate.parameters()) == 2 * channels * hidden + hidden + channels


@pytest.mark.parametrize(("channels", "reduction"), [(0, 2), (6, 0), (6, True), (6.0, 2), (6, "2")])
def test_bad_settings_are_refused(channels, reduction):
    with pytest.raises(ValueError, match="it must be a whole number above 0"):
        ChannelGate(channels, reduction)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("is_half", [False, True])
def test_gradients_of_mean_and_maximum_in_place_are_those_of_autograd_to_the_bit(layout, is_half, monkeypatch):
    torch.manual_seed(0)
    gate = ChannelGate(8, reduction=2)
    features = torch.randn(2, 8, 4, 6, 4).contiguous(memory_format=layout)
    features[0, 0, :2] = 9.0  # a maximum that is reached more than once
    weight = torch.randn_like(features)
    found = []
    for is_plain in (True, False):
        monkeypatch.setattr(channel_gate, "_is_plain_training", lambda _, answer=is_plain: answer)
        given = features.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            result = gate(given * 1.0)
        (result.float() * weight).sum().backward()
        found.append([result.detach(), given.grad, *(value.grad.clone() for value in gate.parameters())])
        gate.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_maximum_reached_more_often_than_half_precision_counts_is_shared_as_autograd_does(monkeypatch):
    gate = make_gate(4)
    features = torch.rand(1, 4, 10, 10, 10).clamp(max=0.25).bfloat16()  # three quarters of the voxels
    found = []
    for is_plain in (True, False):
        monkeypatch.setattr(channel_gate, "_is_plain_training", lambda _, answer=is_plain: answer)
        given = features.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            gate(given * 1.0).float().sum().backward()
        found.append(given.grad)
    assert torch.equal(*found)


def test_a_second_derivative_is_refused():
    given = torch.randn(1, 4, 2, 2, 2, requires_grad=True)
    (first,) = torch.autograd.grad(ChannelGate(4)(given).sum(), given, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
