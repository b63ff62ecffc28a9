"""The networks of GKD one by one: selective kernels, strip pooling, places of maxima, and every setting."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_kd.networks.blocks import ENetBlock, InvertedResidual, NonBottleneck1D, SelectiveKernelConv, StripPooling
from monai_kd.networks.blocks.enet_blocks import unpool
from monai_kd.networks.blocks.strip_pooling import pooled, spread
from monai_kd.networks.blocks.units import conv_beside_pool
from monai_kd.networks.nets import ENet, ERFNet, MobileNetV2UNet, PlainUNet, SKUNet


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- selective kernels ----------------------------------------------------------------------------------------------


def test_shares_of_the_branches_add_up_to_one_and_weigh_them():
    torch.manual_seed(0)
    block, features = SelectiveKernelConv(4).eval(), torch.randn(2, 4, 8, 8)
    wide, narrow = block.wide(features), block.narrow(features)
    shares = block.shares(wide + narrow)
    assert shares.shape == (2, 2, 4, 1, 1)
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(2, 4, 1, 1))
    torch.testing.assert_close(block(features), wide * shares[0] + narrow * shares[1])
    with torch.no_grad():
        block.scores[0].bias.fill_(40.0)
    torch.testing.assert_close(block(features), wide)


def test_redundant_biases_change_nothing():
    plain, biased = SelectiveKernelConv(4), SelectiveKernelConv(4, bias=True)
    assert count(biased) - count(plain) == 4 + 4 + 2
    left = biased.load_state_dict(plain.state_dict(), strict=False)
    assert set(left.missing_keys) == {"wide.0.bias", "narrow.0.bias", "squeeze.0.bias"}
    features = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(plain(features), biased(features), rtol=1e-4, atol=1e-5)


def test_one_image_to_train_on_is_refused_with_batch_norm():
    network, image = SKUNet(1, 2, (4, 8, 12, 16)), torch.rand(1, 1, 16, 16)
    with pytest.raises(ValueError, match="SKUNet got one image to train on with batch norm; it takes batches of 2"):
        network(image)
    assert network.eval()(image).shape == (1, 2, 16, 16)


def test_convolutions_start_from_xavier_and_biases_from_zero():
    torch.manual_seed(0)
    network = SKUNet(1, 2, (8, 16, 24, 32), published=True)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in layers) == 3
    for layer in layers:
        size = layer.kernel_size[0] * layer.kernel_size[1]
        limit = (6 / (size * (layer.in_channels + layer.out_channels))) ** 0.5
        assert layer.weight.abs().max() <= limit
        if layer.weight.numel() > 500:
            assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.1)
        assert layer.bias is None or not layer.bias.any()


# ---- strip pooling --------------------------------------------------------------------------------------------------


def test_strips_see_the_whole_row_and_column_and_grids_the_whole_image():
    torch.manual_seed(0)
    block = StripPooling(4, (2, 3)).eval()
    image = torch.zeros(1, 4, 40, 40)
    (other := image.clone())[..., 20, 20] = 100.0
    with torch.no_grad():
        by_strips = (block._strips(other) - block._strips(image)).abs().sum(dim=(0, 1)) > 1e-6
        by_grids = (block._grids(other) - block._grids(image)).abs().sum(dim=(0, 1)) > 1e-6
    assert by_strips[20].all()
    assert by_strips[:, 20].all()
    assert not by_strips[0, 0]
    assert by_grids.float().mean() > 0.4
    assert by_grids[5, 20]


def test_both_forms_of_strip_pooling_have_the_published_numbers_of_parameters():
    assert count(StripPooling(64, (3, 6))) == 55 * 64**2 + 20 * 64
    assert count(StripPooling(64, (3, 6), gated=True)) == 55 * 64**2 + 18 * 64


@pytest.mark.parametrize("gated", [False, True])
def test_strip_pooling_adds_to_its_input(gated):
    torch.manual_seed(0)
    block, features = StripPooling(4, (2, 3), gated).eval(), torch.randn(1, 4, 7, 9)
    kept = features.clone()
    grids, strips = block._grids(features), block._strips(features)
    joined = block.join(torch.cat([grids, strips * features if gated else strips], dim=1))
    torch.testing.assert_close(block(features), (features + joined).relu())
    assert torch.equal(features, kept)


@pytest.mark.parametrize("cells", [1, 3, 6, 12])
@pytest.mark.parametrize("sizes", [(8, 32), (16, 7), (5, 18)])
def test_what_an_export_computes_is_what_pytorch_does(monkeypatch, cells, sizes):
    features, grid = torch.randn(2, 3, *sizes), torch.randn(2, 3, cells, cells)
    expected = F.adaptive_avg_pool2d(features, cells), F.interpolate(grid, size=sizes, mode="nearest-exact")
    assert torch.equal(pooled(features, cells), expected[0])
    assert torch.equal(spread(grid, sizes), expected[1])
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(pooled(features, cells), expected[0])
    assert torch.equal(spread(grid, sizes), expected[1])


@pytest.mark.parametrize("sizes", [(8, 6), (2, 10)])
def test_an_exported_convolution_beside_pooling_is_the_same(monkeypatch, sizes):
    convolution, features = nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.randn(2, 3, *sizes)
    expected = torch.cat([convolution(features), F.max_pool2d(features, 2)], dim=1)
    assert torch.equal(conv_beside_pool(convolution, features), expected)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(conv_beside_pool(convolution, features), expected)


# ---- the blocks of the students -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4, 6), (8, 2)])
def test_unpooling_is_that_of_pytorch_with_its_gradient(sizes):
    maps = torch.randn(2, 3, *(2 * size for size in sizes))
    values, places = F.max_pool2d(maps, 2, return_indices=True)
    other = torch.randn_like(values).requires_grad_()
    expected = F.max_unpool2d(other, places, 2)
    got = unpool(other, places)
    assert torch.equal(got, expected)
    weights = torch.randn_like(got)
    (mine,), (theirs,) = (torch.autograd.grad((result * weights).sum(), other) for result in (got, expected))
    assert torch.equal(mine, theirs)


def test_residual_blocks_add_their_input():
    torch.manual_seed(0)
    features = torch.randn(1, 8, 8, 8)
    blocks = [InvertedResidual(8, 8), NonBottleneck1D(8, 2, 0.1), ENetBlock(8), ENetBlock(8, asymmetric=True)]
    expected = [
        lambda block: features + block.layers(features),
        lambda block: (features + block.layers(features)).relu(),
        lambda block: block.act(features + block.branch(features)),
        lambda block: block.act(features + block.branch(features)),
    ]
    for block, formula in zip(blocks, expected, strict=True):
        torch.testing.assert_close(block.eval()(features), formula(block))
    assert not InvertedResidual(8, 16).residual
    assert InvertedResidual(8, 8, stride=2)(features).shape == (1, 8, 4, 4)


def test_the_published_head_has_rank_3_and_ours_all_classes():
    torch.manual_seed(0)
    image = torch.rand(2, 1, 64, 64)
    for published, rank in ((True, 3), (False, 6)):
        network = MobileNetV2UNet(1, 6, width=0.25, published=published).eval()
        logits = network(image).detach().transpose(0, 1).flatten(1).double()
        spread_out = torch.linalg.svdvals(logits - logits.mean(dim=1, keepdim=True))
        assert int((spread_out > 1e-5 * spread_out[0]).sum()) == rank


def test_a_reduced_bottleneck_is_the_bottleneck():
    network = MobileNetV2UNet(1, 2, width=0.25, reduced_channels=24)
    features, _ = network.encode(torch.rand(2, 1, 64, 64))
    assert features.shape == (2, 24, 2, 2)
    assert network.feature_channels == 24
    with torch.device("meta"):
        whole, reduced = MobileNetV2UNet(1, 2), MobileNetV2UNet(1, 2, reduced_channels=256)
    narrowing = 1280 * 256 + 2 * 256
    assert count(whole) - count(reduced) == (1280 - 256) * 96 * 16 - narrowing


# ---- settings -------------------------------------------------------------------------------------------------------

SMALL = {
    SKUNet: {"channels": (4, 8, 12, 16)},
    MobileNetV2UNet: {"width": 0.25},
    ENet: {"channels": (8, 16, 24)},
    ERFNet: {"channels": (4, 8, 12)},
}


def built(network, **settings):
    torch.manual_seed(0)
    return network(**{"in_channels": 1, "out_channels": 2, **SMALL[network], **settings})


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (SKUNet, {"channels": (4, 8, 12, 20)}),
        (SKUNet, {"published": True}),
        (MobileNetV2UNet, {"width": 0.5}),
        (MobileNetV2UNet, {"reduced_channels": 16}),
        (MobileNetV2UNet, {"published": True}),
        (ENet, {"channels": (8, 16, 28)}),
        (ERFNet, {"channels": (4, 8, 16)}),
        *((network, {"in_channels": 3}) for network in SMALL),
        *((network, {"out_channels": 5}) for network in SMALL),
    ],
)
def test_every_setting_of_a_size_changes_the_number_of_parameters(network, settings):
    plain, other = built(network), built(network, **settings)
    assert count(plain) != count(other)
    channels, classes = settings.get("in_channels", 1), settings.get("out_channels", 2)
    assert other.eval()(torch.rand(2, channels, 64, 64)).shape == (2, classes, 64, 64)


@pytest.mark.parametrize(
    ("network", "dropout"),
    [(SKUNet, 0.0), (ENet, (0.5, 0.1)), (ENet, (0.01, 0.5)), (ERFNet, (0.5, 0.3)), (ERFNet, (0.03, 0.5))],
)
def test_dropout_changes_what_is_trained_on_alone(network, dropout):
    image, results = torch.rand(2, 1, 32, 32), []
    for settings in ({}, {"dropout": dropout}):
        one = built(network, **settings)
        evaluated = one.eval()(image)
        torch.manual_seed(1)
        results.append((evaluated, one.train()(image)))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (SKUNet, {"channels": (4, 8, 12)}, r"channels is \(4, 8, 12\); give a multiple of 2 for each of 4 levels"),
        (SKUNet, {"channels": (4, 8, 12, 15)}, "give a multiple of 2"),
        (SKUNet, {"dropout": 1.0}, "dropout is 1.0; give a share of at least 0 and below 1"),
        (MobileNetV2UNet, {"width": 0.0}, "width is 0.0; give a factor above 0"),
        (MobileNetV2UNet, {"reduced_channels": 0}, "reduced_channels is 0; give a whole number above 0"),
        (ENet, {"channels": (8, 16)}, "give a multiple of 4 for each of 3 levels"),
        (ENet, {"channels": (8, 18, 32)}, "give a multiple of 4"),
        (ENet, {"channels": (8, 32, 16)}, "for no level fewer than for the one before"),
        (ENet, {"in_channels": 8}, "for 8 channels of the image; give more for the first level"),
        (ERFNet, {"channels": (4, 8)}, "give a whole number above 0 for each of 3 levels"),
        (ERFNet, {"channels": (4, 4, 8)}, "give more for each level than for the one before"),
        (ERFNet, {"in_channels": 4}, "for 4 channels of the image"),
    ],
)
def test_bad_settings_are_refused(network, settings, message):
    with pytest.raises(ValueError, match=message):
        built(network, **settings)


def test_bad_settings_of_a_plain_unet_are_refused():
    with pytest.raises(ValueError, match="spatial_dims is 4; known: 2, 3"):
        PlainUNet(4, 1, 2)
    with pytest.raises(ValueError, match=r"channels is \(8,\); give a whole number above 0 for each of at least 2"):
        PlainUNet(2, 1, 2, channels=(8,))


def test_settings_of_a_plain_unet_change_its_size():
    with torch.device("meta"):
        sizes = {
            count(PlainUNet(*numbers, channels=channels))
            for numbers in ((2, 1, 2), (3, 1, 2), (2, 2, 2), (2, 1, 3))
            for channels in ((8, 16), (8, 16, 24))
        }
    assert len(sizes) == 8
