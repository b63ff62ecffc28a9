"""TransUNet: published sizes, what is tapped, two halves, every setting, and the layers it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from two_part_networks import check_another_bottleneck

from monai_kd.distillers import FeatureTaps, network_stages, stage_paths
from monai_kd.networks.blocks.standardized_bottleneck import StandardizedBottleneck, StandardizedConv2d
from monai_kd.networks.nets.transunet import TransUNet

SMALL: dict[str, Any] = {"channels": (8, 32, 64, 96), "residual_blocks": (1, 2, 1), "norm_groups": 4}
SMALL |= {"hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 4, "position_grid": 3}
SMALL |= {"decoder_channels": (32, 16, 12, 8, 4)}
# of a 224 x 224 image
SHAPES = {"encoder_1": (64, 112), "encoder_2": (256, 56), "encoder_3": (512, 28), "encoder_4": (1024, 14)}
SHAPES |= {"bottleneck": (768, 14)}
SHAPES |= {"decoder_3": (256, 28), "decoder_2": (128, 56), "decoder_1": (64, 112), "decoder_0": (16, 224)}


def small(in_channels: int = 1, out_channels: int = 3, **settings: Any) -> TransUNet:
    torch.manual_seed(0)
    return TransUNet(2, in_channels, out_channels, **{**SMALL, **settings})


def image(*sizes: int, batch: int = 2, channels: int = 1) -> Tensor:
    return torch.rand(batch, channels, *sizes, generator=torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- published numbers ----------------------------------------------------------------------------------------------


def test_size_operations_and_stages_are_the_published_ones():
    with torch.device("meta"):
        network, slices = TransUNet(2, 1, 9).eval(), torch.empty(1, 1, 224, 224)
        assert count(network) == count(TransUNet(2, 3, 9)) == 105_277_081
        assert count(network.transformer.blocks) == 12 * 7_087_872
        with FlopCounterMode(display=False) as counter, FeatureTaps(network, list(SHAPES)) as features:
            logits = network(slices)
    assert counter.get_total_flops() / 2e9 == pytest.approx(29.2, abs=0.05)
    assert {name: tuple(features[name].shape) for name in SHAPES} == {
        name: (1, channels, side, side) for name, (channels, side) in SHAPES.items()
    }
    assert logits.shape == (1, 9, 224, 224)
    assert list(stage_paths(network)) == list(SHAPES)


def test_the_first_stage_is_one_short_and_its_skip_is_filled_with_zeros():
    network, stages = small().eval(), ["stages.0", "encoder_2"]
    with pytest.warns(UserWarning, match="not stage outputs"):
        taps = FeatureTaps(network, stages)
    with torch.no_grad(), taps as features:
        network(image(96, 160))
    assert features["stages.0"].shape[2:] == (23, 39)
    assert features["encoder_2"].shape[2:] == (24, 40)
    assert torch.equal(features["encoder_2"][..., :-1, :-1], features["stages.0"])
    assert not features["encoder_2"][..., -1, :].any()
    assert not features["encoder_2"][..., :, -1].any()


@pytest.mark.parametrize("sizes", [(96, 160), (16, 32), (48, 48)])
def test_every_stage_is_a_map_at_every_size(sizes):
    strides = {stage.name: stage.stride for stage in network_stages(small(), (1, 1, *sizes))}
    assert strides == {name: (224 / side,) * 2 for name, (_, side) in SHAPES.items()}
    assert small().eval()(image(*sizes)).shape == (2, 3, *sizes)


# ---- two halves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_decode_after_encode_is_forward_bit_for_bit(training):
    results = []
    for halves in (False, True):
        network = small().train(training)
        torch.manual_seed(2)  # of the dropout
        results.append(network.decode(*network.encode(image(32, 48))) if halves else network(image(32, 48)))
    assert torch.equal(*results)


def test_the_bottleneck_is_the_tokens_and_can_be_replaced():
    network = small().eval()
    features, skips = network.encode(image(32, 48))
    assert features.shape == (2, network.feature_channels, 32 // network.feature_stride, 3)
    assert [tuple(skip.shape[1:]) for skip in skips] == [(8, 16, 24), (32, 8, 12), (64, 4, 6)]
    with FeatureTaps(network, ["bottleneck"]) as taps:
        network(image(32, 48))
    assert torch.equal(taps["bottleneck"], features)
    check_another_bottleneck(network, image(32, 48))
    with pytest.raises(ValueError, match=r"TransUNet.decode got features \(2, 24, 2, 2\); .* takes \(2, 24, 2, 3\)"):
        network.decode(features[..., :-1], skips)


# ---- how it computes ------------------------------------------------------------------------------------------------


def test_every_weight_has_a_gradient():
    network = small()
    network(image(32, 48)).square().mean().backward()
    silent = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_weights_are_used_standardized_by_hand():
    torch.manual_seed(0)
    layer, features = StandardizedConv2d(2, 1, 1, bias=False), torch.randn(1, 2, 3, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([5.0, 1.0]).view(1, 2, 1, 1))  # mean 3, variance 4
    scaled = 2 / (4 + 1e-5) ** 0.5
    torch.testing.assert_close(layer(features), scaled * (features[:, :1] - features[:, 1:]))
    before = layer(features)
    with torch.no_grad():
        layer.weight.add_(7.0)
    torch.testing.assert_close(layer(features), before)


def test_a_residual_block_is_its_formula():
    torch.manual_seed(0)
    features = torch.randn(2, 16, 6, 6)
    for block in (StandardizedBottleneck(16, 16, norm_groups=2), StandardizedBottleneck(16, 32, 2, norm_groups=2)):
        inside = block.norm1(block.conv1(features)).relu()
        inside = block.norm3(block.conv3(block.norm2(block.conv2(inside)).relu()))
        assert torch.equal(block(features), (inside + block.shortcut(features)).relu())
    assert isinstance(StandardizedBottleneck(16, 16, norm_groups=2).shortcut, nn.Identity)
    assert block.shortcut[1].num_groups == 32, "a group per channel"


def test_norms_have_the_published_constants():
    network = small()
    shortcuts = {id(stage[0].shortcut[1]) for stage in network.stages}
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            assert module.eps == (1e-5 if id(module) in shortcuts else 1e-6)
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6


def test_positions_are_interpolated_as_the_authors_do_once():
    network = small().eval()
    transformer, features = network.transformer, torch.zeros(1, 96, 5, 7)
    table = transformer.positions.detach()[0].numpy()
    seen = []
    transformer.drop.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        transformer.embedding.bias.zero_()
        transformer(features)
        transformer(features[..., :3, :3])
    zoomed = ndimage.zoom(table, (1, 5 / 3, 7 / 3), order=1)
    np.testing.assert_allclose(seen[0][0].T.reshape(24, 5, 7), zoomed, atol=1e-6)
    assert np.array_equal(seen[1][0].T.reshape(24, 3, 3), table), "its own grid is not changed by a bit"


def test_each_token_sees_the_others_and_its_place():
    network = small().eval()
    features = torch.randn(1, 96, 3, 4)
    (other := features.clone())[..., 0, 0] += 1.0
    with torch.no_grad():
        before, after = network.transformer(features), network.transformer(other)
        assert ((after - before).abs().sum(dim=1) > 0).all(), "one moved, all follow"
        turned = network.transformer(features.flip(-1)).flip(-1)
    assert not torch.allclose(turned, before, atol=1e-3)


def test_one_channel_is_shown_three_times():
    one, three = small(1).eval(), small(3).eval()
    assert torch.equal(one(image(32, 48)), three(image(32, 48).repeat(1, 3, 1, 1)))
    assert small(4).root[0].weight.shape[1] == 4
    assert small(4).eval()(image(32, 48, channels=4)).shape == (2, 3, 32, 48)


def test_the_decoder_aligns_corners_and_joins_the_skip_behind():
    level = small().eval().up[0]
    features, skip = torch.randn(1, 32, 2, 3), torch.randn(1, 64, 4, 6)
    raised = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)
    expected = level.conv2(level.conv1(torch.cat([raised, skip], dim=1)))
    torch.testing.assert_close(level(features, skip), expected)


def test_double_precision_agrees_and_half_is_finite():
    network = small().eval()
    with torch.no_grad():
        single = network(image(32, 48))
        with torch.autocast("cpu", torch.bfloat16):
            half = network(image(32, 48))
        double = network.double()(image(32, 48).double())
    torch.testing.assert_close(single, double.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half.float(), single, rtol=0.2, atol=0.2)


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"in_channels": 4},
        {"out_channels": 5},
        {"channels": (16, 32, 64, 96)},
        {"channels": (8, 32, 64, 112)},
        {"residual_blocks": (1, 2, 2)},
        {"hidden_size": 32},
        {"mlp_dim": 16},
        {"num_layers": 1},
        {"position_grid": 4},
        {"decoder_channels": (32, 16, 12, 8, 8)},
        {"decoder_channels": (40, 16, 12, 8, 4)},
    ],
)
def test_every_setting_of_a_size_changes_the_number_of_parameters(changed):
    assert count(small(**changed)) != count(small())


@pytest.mark.parametrize("changed", [{"num_heads": 2}, {"norm_groups": 2}, {"norm": "instance"}])
def test_settings_without_weights_change_the_logits(changed):
    assert torch.equal(small().eval()(image(32, 48)), small().eval()(image(32, 48)))
    assert not torch.equal(small(**changed).eval()(image(32, 48)), small().eval()(image(32, 48)))


def test_dropout_changes_what_is_trained_on_alone():
    trained, evaluated = [], []
    for dropout in (0.1, 0.5):
        network = small(dropout=dropout)
        evaluated.append(network.eval()(image(32, 48)))
        torch.manual_seed(1)
        trained.append(network.train()(image(32, 48)))
    assert torch.equal(*evaluated)
    assert not torch.equal(*trained)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": (8, 32, 64)}, "channels is .* give a whole number above 0 for each of 4 levels"),
        ({"channels": (8, 32, 64, 72)}, "with norm_groups 4 the first must be a multiple of 4, the others of 16"),
        ({"channels": (6, 32, 64, 96)}, "with norm_groups 4 the first must be a multiple of 4"),
        ({"residual_blocks": (1, 0, 1)}, "residual_blocks is .* for each of 3 levels"),
        ({"decoder_channels": (16, 8, 4, 2)}, "decoder_channels is .* for each of 5 levels"),
        ({"hidden_size": 25}, "hidden_size is 25; it must be a multiple of num_heads, 4"),
        ({"num_layers": 0}, "num_layers is 0; it must be a whole number above 0"),
        ({"position_grid": True}, "position_grid is True; it must be a whole number above 0"),
        ({"dropout": 1.0}, "dropout is 1.0; give a share of at least 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_three_axes_are_refused():
    with pytest.raises(ValueError, match="spatial_dims is 3; TransUNet has 2 axes alone, give it slices"):
        TransUNet(3, 1, 9, **SMALL)


def test_an_image_that_does_not_fit_is_refused():
    network = small().eval()
    for wrong in (image(32, 40), image(32, 48, channels=3), image(32, 48)[0], image(32, 48, 16)):
        with pytest.raises(ValueError, match=r"TransUNet got .* takes \(batch, 1, \*spatial\) .* multiples of 16"):
            network(wrong)
    with pytest.raises(ValueError, match=r"whose deepest map is a single voxel, .* one size must be 32 or more"):
        network(image(16, 16))


# ---- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_gives_the_same_logits_at_other_sizes():
    network = small().eval()
    traced = torch.jit.trace(network, image(32, 48), check_trace=False)
    for other in (image(48, 48), image(64, 80, batch=1)):
        with torch.no_grad():
            torch.testing.assert_close(traced(other), network(other))


@pytest.mark.slow
def test_an_onnx_graph_gives_the_same_logits_at_two_sizes(tmp_path: Path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from monai_kd.export.onnx import onnx_parity, write_onnx

    network, path = small(residual_blocks=(1, 1, 1), num_layers=1).eval(), tmp_path / "model.onnx"
    write_onnx(network, path, image(32, 48))
    # the second is the grid of the positions
    parity = onnx_parity(network, path, [image(32, 48), image(48, 48, batch=1), image(64, 80, batch=1)])
    assert parity["max_logit_difference"] < 1e-4 * network(image(32, 48)).abs().max()
    assert parity["label_agreement"] > 0.999
