"""bottleneck_reliance: 0 where skips do everything, and by hand where they do nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from monai_kd.metrics import bottleneck_reliance
from monai_kd.networks.nets import ENet, PlainUNet


class Halves(nn.Module):
    """Logits of two classes: ``weight`` times the bottleneck, which is the image at half resolution, and the image."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def encode(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return nn.functional.avg_pool2d(image, 2), (image,)

    def decode(self, features: Tensor, skips: tuple[Tensor, ...]) -> Tensor:
        up = nn.functional.interpolate(features, scale_factor=2)
        return torch.cat([self.weight * up, skips[0]], 1)


def test_a_decoder_that_leaves_its_bottleneck_alone_has_none():
    images = torch.randn(5, 1, 8, 8)
    assert bottleneck_reliance(Halves(0.0), images) == 0.0
    assert bottleneck_reliance(Halves(0.1), images) < 0.1 * bottleneck_reliance(Halves(3.0), images)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_by_hand(batch_size):
    images = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    # the mean bottleneck is 0: softmax(0, x) in place of softmax(2 x, x)
    own, without = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(1.0))
    expected = own * math.log(own / without) + (1 - own) * math.log((1 - own) / (1 - without))
    assert bottleneck_reliance(Halves(2.0), images, batch_size) == pytest.approx(expected, rel=1e-6)


def test_the_network_is_left_as_it_was():
    network = ENet(1, 2).train()
    network.head.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert bottleneck_reliance(network, torch.randn(3, 1, 64, 64)) > 0
    assert network.training
    assert not network.head.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert bottleneck_reliance(PlainUNet(2, 1, 2, channels=(4, 8, 16)), torch.randn(3, 1, 64, 64)) > 0


def test_a_network_of_one_piece_is_refused():
    with pytest.raises(TypeError, match="Conv2d has no halves encode and decode; wrap it in monai_kd"):
        bottleneck_reliance(nn.Conv2d(1, 2, 1), torch.randn(2, 1, 8, 8))


def test_too_few_images_and_a_single_channel_are_refused():
    network = Halves(1.0)
    with pytest.raises(ValueError, match="at least two images, got 1"):
        bottleneck_reliance(network, torch.randn(1, 1, 8, 8))
    with pytest.raises(ValueError, match="got 1 channel"):
        bottleneck_reliance(ENet(1, 1), torch.randn(2, 1, 64, 64))
