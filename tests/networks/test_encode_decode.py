"""EncodeDecode: MONAI's networks in two halves, bit for bit what they are as one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.nets import (
    AttentionUnet,
    BasicUNet,
    DynUNet,
    FlexibleUNet,
    SegResNet,
    SegResNetVAE,
    SwinUNETR,
    UNet,
)
from monai.networks.nets.unet import CheckpointUNet
from torch import Tensor, nn
from two_part_networks import check_another_bottleneck

from monai_kd.distillers import FeatureTaps, stage_paths
from monai_kd.networks import EncodeDecode, RouteModalities

STRIDES = {"channels": (4, 8, 16), "strides": (2, 2)}
LEVELS = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": (4, 8, 12)}
ATTENTION = {"channels": (4, 8, 16), "strides": (2, 2)}
SEGRESNET = {"init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}
FEATURES = (4, 4, 8, 8, 12, 4)

# network at 2 or 3 axes, channels of the bottleneck, sizes that the network takes: several, odd ones where it can
NETWORKS: dict[str, tuple[Callable[[int], nn.Module], int, tuple[tuple[int, ...], ...]]] = {
    "unet": (lambda dims: UNet(dims, 1, 3, **STRIDES), 16, ((16, 8, 8),)),
    "unet_residual": (lambda dims: UNet(dims, 1, 3, **STRIDES, num_res_units=2, dropout=0.2), 16, ((16, 8, 8),)),
    "unet_two_levels": (lambda dims: UNet(dims, 1, 3, channels=(4, 8), strides=(2,)), 8, ((16, 10, 8),)),
    "unet_stride_1": (lambda dims: UNet(dims, 1, 3, channels=(4, 8), strides=(1,)), 8, ((9, 7, 5),)),
    "unet_checkpoint": (lambda dims: CheckpointUNet(dims, 1, 3, **STRIDES), 16, ((16, 8, 8),)),
    "basic_unet": (lambda dims: BasicUNet(dims, 1, 3, FEATURES), 12, ((32, 16, 16), (37, 17, 16))),
    "basic_unet_linear": (
        lambda dims: BasicUNet(dims, 1, 3, FEATURES, dropout=0.2, upsample="nontrainable"),
        12,
        ((33, 16, 19),),
    ),
    "segresnet": (lambda dims: SegResNet(dims, **SEGRESNET, in_channels=1, out_channels=3), 32, ((16, 8, 8),)),
    "segresnet_dropout": (
        lambda dims: SegResNet(
            dims, **SEGRESNET, in_channels=1, out_channels=3, dropout_prob=0.2, upsample_mode="deconv"
        ),
        32,
        ((16, 8, 8),),
    ),
    "segresnet_no_head": (lambda dims: SegResNet(dims, **SEGRESNET, use_conv_final=False), 32, ((16, 8, 8),)),
    "dynunet": (lambda dims: DynUNet(dims, 1, 3, **LEVELS), 12, ((16, 8, 8),)),
    "dynunet_residual": (
        lambda dims: DynUNet(dims, 1, 3, **LEVELS, res_block=True, norm_name="batch", dropout=0.2),
        12,
        ((16, 8, 8),),
    ),
    "attention_unet": (lambda dims: AttentionUnet(dims, 1, 3, **ATTENTION), 16, ((16, 8, 8),)),
    "attention_unet_dropout": (
        lambda dims: AttentionUnet(dims, 1, 3, channels=(4, 8), strides=(2,), dropout=0.2),
        8,
        ((16, 10, 8),),
    ),
}
# a ResNet rounds halves up, its decoder doubles: no odd sizes
FLEXIBLE = [
    ("resnet10", 2, 512, ((32, 64),)),
    ("efficientnet-b0", 2, 320, ((32, 64), (45, 33))),
    ("resnet10", 3, 512, ((32, 64, 32),)),
]
each_network = pytest.mark.parametrize("name", NETWORKS)


def wrapped(name: str, dims: int = 2) -> EncodeDecode:
    torch.manual_seed(0)
    return EncodeDecode(NETWORKS[name][0](dims))


def image_of(sizes: tuple[int, ...]) -> Tensor:
    return torch.rand(2, 1, *sizes, generator=torch.Generator().manual_seed(1))


def run(network: EncodeDecode, image: Tensor, halves: bool) -> list[Any]:
    """Return logits, gradients and buffers."""
    network = copy.deepcopy(network)
    torch.manual_seed(2)  # of the dropout
    logits = network.decode(*network.encode(image)) if halves else network.network(image)
    logits.square().mean().backward()
    return [logits, *(p.grad for p in network.parameters()), *network.buffers()]


def assert_same(network: EncodeDecode, image: Tensor) -> None:
    for training in (False, True):
        whole, parts = (run(network.train(training), image, halves) for halves in (False, True))
        assert len(whole) > 5
        assert all(a is b or torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


# ---- the same as the network ----------------------------------------------------------------------------------------


@each_network
@pytest.mark.parametrize("dims", [2, 3])
def test_two_halves_are_the_network_bit_for_bit_with_its_gradients(name, dims):
    network, (_, channels, shapes) = wrapped(name, dims), NETWORKS[name]
    for shape in shapes:
        image = image_of(shape[:dims])
        assert_same(network, image)
        features, skips = network.eval().encode(image)
        assert features.shape[:2] == (2, channels)
        assert network.feature_channels == channels
        assert isinstance(skips, tuple)
        assert skips[-1].shape == (2, 0, *features.shape[2:])


@pytest.mark.parametrize(("backbone", "dims", "channels", "shapes"), FLEXIBLE)
def test_a_flexible_unet_too(backbone, dims, channels, shapes):
    torch.manual_seed(0)
    decoder = (16, 16, 8, 8, 4)
    network = EncodeDecode(FlexibleUNet(1, 3, backbone, decoder_channels=decoder, spatial_dims=dims)).eval()
    assert network.feature_channels == channels
    for shape in shapes:
        image = image_of(shape)
        with torch.no_grad():
            features, skips = network.encode(image)
            assert features.shape[1] == channels
            assert torch.equal(network.decode(features, skips), network.network(image))
    train, image = network.train(), image_of(shapes[0])
    whole, parts = (run(train, image, halves) for halves in (False, True))
    assert all(a is b or torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@each_network
def test_the_bottleneck_is_the_stage_of_that_name(name):
    network, image = wrapped(name).eval(), image_of(NETWORKS[name][2][0][:2])
    assert stage_paths(network) == {stage: f"network.{path}" for stage, path in stage_paths(network.network).items()}
    with FeatureTaps(network, list(stage_paths(network))) as taps:
        logits = network(image)
    features, skips = network.encode(image)
    assert torch.equal(taps["bottleneck"], features)
    encoders = [taps[stage] for stage in taps if stage.startswith("encoder")]
    assert all(torch.equal(a, b) for a, b in zip(encoders, skips[:-1], strict=True))
    assert torch.equal(network.decode(features, skips), logits)


@each_network
def test_decoding_leaves_features_and_skips_as_they_are(name):
    network = wrapped(name).eval()
    features, skips = network.encode(image_of(NETWORKS[name][2][0][:2]))
    kept = [value.clone() for value in (features, *skips)]
    assert torch.equal(network.decode(features, skips), network.decode(features, skips))
    assert all(torch.equal(a, b) for a, b in zip(kept, (features, *skips), strict=True))


@each_network
def test_another_bottleneck_changes_the_logits_and_gets_a_gradient(name):
    check_another_bottleneck(wrapped(name).eval(), image_of(NETWORKS[name][2][0][:2]))


@each_network
def test_a_bottleneck_of_another_size_is_refused(name):
    network = wrapped(name).eval()
    features, skips = network.encode(image_of(NETWORKS[name][2][0][:2]))
    for wrong in (features[..., :-1], features[:, :-1], features[:1]):
        with pytest.raises(ValueError, match=r"decode got features .*; with these skips it takes \(2, ") as caught:
            network.decode(wrong, skips)
        assert str(caught.value).startswith(type(network.network).__name__)


# ---- as a wrapper ---------------------------------------------------------------------------------------------------


def test_the_file_is_that_of_the_network():
    network, alone = wrapped("unet"), UNet(2, 1, 3, **STRIDES)
    state = network.state_dict()
    assert list(state) == list(alone.state_dict())
    alone.load_state_dict(state)
    image = image_of((8, 8))
    assert torch.equal(alone.eval()(image), network.eval()(image))
    other = EncodeDecode(UNet(2, 1, 3, **STRIDES))
    other.load_state_dict(alone.state_dict())
    assert torch.equal(other.eval()(image), network(image))
    routed = RouteModalities(EncodeDecode(UNet(2, 1, 3, **STRIDES)), [0])
    assert list(routed.state_dict()) == list(state)
    routed.load_state_dict(state)


def test_it_can_be_copied_and_pickled():
    network, image = wrapped("unet").eval(), image_of((8, 8))
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other.decode(*other.encode(image)), network(image))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_it_can_be_traced():
    network = wrapped("unet").eval()
    traced = torch.jit.trace(network, image_of((8, 8)))
    with torch.no_grad():
        torch.testing.assert_close(traced(image_of((16, 8))), network(image_of((16, 8))))


# ---- what is refused ------------------------------------------------------------------------------------------------

KNOWN = "known: UNet, BasicUNet, SegResNet, DynUNet, AttentionUnet, FlexibleUNet, and subclasses that keep"


class OtherForward(UNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(1, 2, 1),
        lambda: OtherForward(2, 1, 3, **STRIDES),
        lambda: SegResNetVAE((16, 16), spatial_dims=2, **SEGRESNET),
        lambda: SwinUNETR(1, 3, feature_size=12, spatial_dims=2),
    ],
)
def test_other_networks_are_refused_with_the_known_ones(make):
    network = make()
    with pytest.raises(TypeError, match=f"EncodeDecode got {type(network).__name__}; {KNOWN}"):
        EncodeDecode(network)


def test_deep_supervision_is_refused():
    with pytest.raises(ValueError, match="deep supervision, which has several outputs in training; build it with"):
        EncodeDecode(DynUNet(2, 1, 3, **LEVELS, deep_supervision=True))
