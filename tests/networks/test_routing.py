"""RouteModalities: which channels a network gets, and a state dict with the network's own keys."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_kd.distillers import FeatureTaps, stage_paths
from monai_kd.networks import RouteModalities
from monai_kd.networks.nets import ChannelAttentionResUNet

IMAGE = torch.arange(4.0).reshape(1, 4, 1, 1).expand(2, 4, 3, 3)


def make_network(in_channels: int = 1) -> ChannelAttentionResUNet:
    torch.manual_seed(0)
    return ChannelAttentionResUNet(2, in_channels, 2, (4, 8, 12), reduction=4)


@pytest.mark.parametrize("channels", [[2], [0, 1], [3, 1], [1, 3], [2, 2], [0, 1, 2, 3]])
def test_channels_come_in_the_order_that_is_asked_for(channels):
    routed = RouteModalities(nn.Identity(), channels)(IMAGE)
    assert routed[0, :, 0, 0].tolist() == channels
    assert torch.equal(routed, IMAGE[:, channels])


@pytest.mark.parametrize(("channels", "is_view"), [([2], True), ([1, 2], True), ([2, 1], False), ([0, 2], False)])
def test_neighbors_are_a_view(channels, is_view):
    image = torch.rand(1, 4, 2, 2)
    routed = RouteModalities(nn.Identity(), channels).select(image)
    assert (routed.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()) == is_view


def test_the_networks_output_is_passed_on():
    network, image = make_network(2), torch.rand(1, 4, 8, 8)
    assert torch.equal(RouteModalities(network, [3, 0])(image), network(image[:, [3, 0]]))
    outputs = RouteModalities(ChannelAttentionResUNet(2, 1, 2, (4, 8, 12), side_heads=True), [1])(image)
    assert [tuple(output.shape) for output in outputs] == [(1, 2, 8, 8), (1, 2, 4, 4)]


def test_lower_and_top_are_those_of_the_network():
    network, image = make_network(), torch.rand(1, 4, 8, 8)
    routed = RouteModalities(network, [2])
    for own, other in zip(routed.lower(image), network.lower(image[:, 2:3]), strict=True):
        assert torch.equal(own, other)
    assert torch.equal(routed.top(*routed.lower(image)), routed(image))


def test_stages_are_those_of_the_network():
    network, image = make_network(), torch.rand(1, 4, 8, 8)
    routed = RouteModalities(network, [2])
    assert list(stage_paths(routed)) == list(stage_paths(network))
    with FeatureTaps(routed, ["decoder_2"]) as features:
        routed(image)
    assert torch.equal(features["decoder_2"], network.lower(image[:, 2:3])[0])


# ---- state dict -----------------------------------------------------------------------------------------------------


def test_the_state_has_the_networks_own_keys_both_ways():
    network = make_network()
    routed = RouteModalities(make_network(), [1])
    assert list(routed.state_dict()) == list(network.state_dict())
    with torch.no_grad():
        network.head.bias.fill_(7.0)
    assert routed.load_state_dict(network.state_dict()) == ([], [])
    assert (routed.network.head.bias == 7).all()
    assert network.load_state_dict(routed.state_dict()) == ([], [])


def test_inside_another_module_only_its_own_keys_are_renamed():
    def parent() -> nn.Module:
        inner = {"flair": RouteModalities(make_network(), [0]), "network": RouteModalities(nn.Linear(2, 2), [1])}
        return nn.ModuleDict({**inner, "flairs": nn.Linear(2, 2)})

    own, other = parent(), parent()
    keys = [f"flair.{key}" for key in make_network().state_dict()]
    keys += ["network.weight", "network.bias", "flairs.weight", "flairs.bias"]
    assert sorted(own.state_dict()) == sorted(keys)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.normal_()
    assert other.load_state_dict(own.state_dict()) == ([], [])
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))


def test_one_inside_another_keeps_bare_keys():
    nested = RouteModalities(RouteModalities(make_network(), [0]), [2])
    assert list(nested.state_dict()) == list(make_network().state_dict())
    assert nested.load_state_dict(make_network().state_dict()) == ([], [])


def test_keys_that_are_missing_or_too_many_are_still_told():
    routed, state = RouteModalities(make_network(), [1]), make_network().state_dict()
    del state["head.bias"]
    state["extra"] = torch.zeros(1)
    missing, unexpected = routed.load_state_dict(state, strict=False)
    assert [key.removeprefix("network.") for key in missing] == ["head.bias"]
    assert [key.removeprefix("network.") for key in unexpected] == ["extra"]


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [[], [-1], [0.0], [True], ["0"]])
def test_what_is_no_number_of_a_channel_is_refused(channels):
    with pytest.raises(ValueError, match="give the numbers of the image's channels, from 0"):
        RouteModalities(nn.Identity(), channels)


def test_an_image_with_too_few_channels_is_refused():
    with pytest.raises(ValueError, match=r"the image has 4 channels and channel 4 is asked for \(counted from 0\)"):
        RouteModalities(nn.Identity(), [0, 4])(IMAGE)
