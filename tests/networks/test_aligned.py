"""A network with its bottleneck passed through an alignment network."""

from __future__ import annotations

import torch
from torch import nn

from monai_kd.networks import AlignedNetwork
from monai_kd.networks.nets import AlignmentNetwork, ENet


def test_the_bottleneck_goes_through_the_alignment_and_the_skips_go_past_it():
    torch.manual_seed(0)
    network, image = ENet(1, 2).eval(), torch.randn(1, 1, 32, 32)
    alignment = AlignmentNetwork(2, 128, latent_channels=8, latent_length=4, grid=4, hidden=8)
    features, skips = network.encode(image)
    expected = network.decode(alignment(features), skips)
    assert torch.equal(AlignedNetwork(network, alignment)(image), expected)
    assert torch.equal(AlignedNetwork(network, nn.Identity())(image), network(image))
    assert not torch.equal(expected, network(image))
