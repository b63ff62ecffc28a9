"""ChannelAttentionResUNet: the published numbers of parameters and operations, stage by stage, and its forms of use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_kd.distillers import FeatureTaps, stage_paths
from monai_kd.networks.blocks import PreActivationResBlock
from monai_kd.networks.blocks.pre_activation import group_norm
from monai_kd.networks.nets import ChannelAttentionResUNet

NARROW = (4, 8, 12, 16)
PARAMETERS = {
    "stem": 28_576,
    "stem_skip": 896,
    "down.0": 221_696,
    "down.1": 885_760,
    "down.2": 3_540_992,
    "up.0": 524_544,
    "gates.0": 18_840,
    "decode_blocks.0": 3_098_240,
    "up.1": 131_200,
    "gates.1": 4_812,
    "decode_blocks.1": 774_976,
    "up.2": 32_832,
    "gates.2": 1_254,
    "decode_blocks.2": 193_952,
    "head": 132,
    "side_heads.0": 260,
    "side_heads.1": 516,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def published(**settings) -> ChannelAttentionResUNet:
    with torch.device("meta"):  # sizes without weights
        return ChannelAttentionResUNet(3, 1, 4, **settings)


def narrow(dims: int = 3, **settings) -> ChannelAttentionResUNet:
    torch.manual_seed(0)
    return ChannelAttentionResUNet(dims, 1, 4, **{"channels": NARROW, "reduction": 4, **settings})


def make_image(dims: int = 3, size: int = 16, batch: int = 1, channels: int = 1) -> torch.Tensor:
    return torch.rand(batch, channels, *[size] * dims, generator=torch.Generator().manual_seed(1))


# ---- the published numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"side_heads": True}, 9_459_478), ({}, 9_458_702), ({"skip_kernel_size": 1}, 6_663_958 - 260 - 516)],
)
def test_parameters_are_those_of_the_reference(settings, expected):
    assert count(published(**settings)) == expected


def test_parameters_of_one_voxel_skips_with_side_heads():
    assert count(published(skip_kernel_size=1, side_heads=True)) == 6_663_958


def test_parameters_of_every_stage():
    network = published(side_heads=True)
    assert {name: count(network.get_submodule(name)) for name in PARAMETERS} == PARAMETERS
    assert sum(PARAMETERS.values()) == 9_459_478


@pytest.mark.parametrize(("size", "skip", "gmac"), [(64, 3, 888.7 / 8), (64, 1, 571 / 8), (128, 3, 888.7)])
def test_operations_are_those_of_the_reference(size, skip, gmac):
    network = published(skip_kernel_size=skip).eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 1, size, size, size, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.01)


@pytest.mark.filterwarnings("ignore:taps")
def test_shapes_of_every_stage_at_the_published_width():
    network = ChannelAttentionResUNet(3, 1, 4, side_heads=True).eval()
    taps = {"stem_skip": (32, 32), "encoder_1": (32, 32), "encoder_2": (64, 16), "encoder_3": (128, 8)}
    taps |= {"bottleneck": (256, 4), "decoder_3": (128, 8), "decoder_2": (64, 16), "decoder_1": (32, 32)}
    taps |= {"up.0": (256, 8), "gates.0": (384, 8), "up.1": (128, 16), "gates.1": (192, 16), "up.2": (64, 32)}
    taps |= {"gates.2": (96, 32)}
    with torch.no_grad(), FeatureTaps(network, list(taps)) as features:
        logits = network(make_image(size=32))
    assert {name: tuple(features[name].shape) for name in taps} == {
        name: (1, channels, side, side, side) for name, (channels, side) in taps.items()
    }
    assert logits.shape == (1, 4, 32, 32, 32)


@pytest.mark.parametrize("dims", [2, 3])
def test_shapes_of_a_narrow_one_at_twice_the_size(dims):
    network = narrow(dims).eval()
    expected = {"encoder_1": (4, 64), "encoder_2": (8, 32), "encoder_3": (12, 16), "bottleneck": (16, 8)}
    expected |= {"decoder_3": (12, 16), "decoder_2": (8, 32), "decoder_1": (4, 64)}
    assert list(stage_paths(network)) == list(expected)
    with torch.no_grad(), FeatureTaps(network, list(expected)) as features:
        assert network(make_image(dims, 64)).shape == (1, 4, *[64] * dims)
    assert {name: tuple(value.shape[1:]) for name, value in features.items()} == {
        name: (channels, *[side] * dims) for name, (channels, side) in expected.items()
    }


def test_groups_are_six_where_six_divides_the_channels_and_four_elsewhere():
    groups = {channels: group_norm(channels).num_groups for channels in (96, 192, 384, 12, 32, 64, 128, 256, 4)}
    assert groups == {96: 6, 192: 6, 384: 6, 12: 6, 32: 4, 64: 4, 128: 4, 256: 4, 4: 4}
    with pytest.raises(ValueError, match="10 channels cannot be normalized in 6 or 4 groups"):
        group_norm(10)
    used = {m.num_channels: m.num_groups for m in published().modules() if isinstance(m, nn.GroupNorm)}
    assert used == {32: 4, 64: 4, 128: 4, 256: 4, 384: 6, 192: 6, 96: 6}


# ---- how it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("skip", [1, 3])
def test_a_block_is_its_main_path_plus_its_skip(stride, skip):
    torch.manual_seed(0)
    block = PreActivationResBlock(3, 4, 8, stride, skip)
    features = torch.randn(1, 4, 8, 8, 8)
    main, round_it, before = block.main(features), block.skip(features), block(features)
    torch.testing.assert_close(before, main + round_it)
    assert before.shape == (1, 8, *[8 // stride] * 3)
    assert before.min() < 0  # no activation behind the sum
    with torch.no_grad():
        block.skip[1].bias += 2.0  # perturb the skip alone
    torch.testing.assert_close(block(features), before + 2.0)
    torch.testing.assert_close(block.main(features), main)


def test_a_block_does_not_change_its_input():
    features = torch.randn(1, 4, 8, 8)
    kept = features.clone()
    PreActivationResBlock(2, 4, 8)(features)
    assert torch.equal(features, kept)


def test_lower_then_top_is_forward():
    network, image = narrow().eval(), make_image(batch=2)
    half, skip = network.lower(image)
    assert half.shape == (2, 8, 8, 8, 8)
    assert skip.shape == (2, 4, 16, 16, 16)
    assert torch.equal(network.top(half, skip), network(image))
    with FeatureTaps(network, ["decoder_2"]) as features:
        network(image)
    assert torch.equal(features["decoder_2"], half)


def test_side_heads_speak_in_training_only():
    network, image = narrow(side_heads=True), make_image()
    outputs = network(image)
    assert [tuple(output.shape[1:]) for output in outputs] == [(4, 16, 16, 16), (4, 8, 8, 8), (4, 4, 4, 4)]
    half, _ = network.lower(image)
    torch.testing.assert_close(outputs[1], network.side_heads[0](half))
    assert torch.equal(outputs[0], network.eval()(image))  # no dropout, no statistics of batches
    assert isinstance(network.train()(image), list)
    assert isinstance(narrow()(image), torch.Tensor)


def test_two_levels_have_no_stage_for_a_side_head():
    network = narrow(channels=(4, 8), side_heads=True)
    assert isinstance(network(make_image(size=4)), torch.Tensor)
    assert list(stage_paths(network)) == ["encoder_1", "bottleneck", "decoder_1"]


def test_every_weight_has_a_gradient():
    network = narrow(side_heads=True)
    sum(output.square().mean() for output in network(make_image())).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert silent == []


@pytest.mark.parametrize(
    "settings", [{"skip_kernel_size": 1}, {"channels": (8, 8, 12, 16)}, {"reduction": 2}, {"side_heads": True}]
)
def test_every_setting_changes_a_number(settings):
    plain, other = narrow(), narrow(**settings)
    assert count(plain) != count(other)
    if "side_heads" not in settings:
        assert not torch.equal(plain.eval()(make_image()), other.eval()(make_image()))


def test_the_same_seed_gives_the_same_network():
    assert all(torch.equal(a, b) for a, b in zip(narrow().parameters(), narrow().parameters(), strict=True))


def test_several_modalities_and_uneven_sizes():
    network = ChannelAttentionResUNet(3, 3, 2, NARROW).eval()
    assert network(torch.rand(2, 3, 8, 16, 24)).shape == (2, 2, 8, 16, 24)


@pytest.mark.parametrize("dims", [2, 3])
def test_finite_under_autocast(dims):
    network, image = narrow(dims), make_image(dims)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(image)
    logits.float().square().mean().backward()
    assert logits.dtype == torch.bfloat16
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    torch.testing.assert_close(logits.float(), network(image), atol=0.1, rtol=0.1)


# ---- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_gives_the_same_logits_at_other_sizes():
    network = narrow(side_heads=True).eval()
    traced = torch.jit.trace(network, make_image(size=16))
    for shape in ((1, 1, 16, 16, 16), (2, 1, 24, 16, 8)):
        image = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(traced(image), network(image))


@pytest.mark.slow
def test_an_onnx_graph_gives_the_same_logits_at_other_sizes(tmp_path: Path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    network, path = narrow(2, channels=(4, 8, 12)).eval(), tmp_path / "model.onnx"  # seconds per level
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    names = {"input_names": ["image"], "output_names": ["pred"]}
    example = torch.rand(2, 1, 16, 24)
    torch.onnx.export(network, (example,), path, dynamo=True, dynamic_shapes=(axes,), verbose=False, **names)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 1, 16, 16), (2, 1, 24, 8)):
        image = torch.rand(shape)
        with torch.no_grad():
            expected = network(image).numpy()
        np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], expected, rtol=1e-4, atol=1e-5)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims is 1; known: 2, 3"),
        ({"channels": (8,)}, r"channels is \(8,\); give a multiple of 4 for each of at least 2 levels"),
        ({"channels": (8, 10)}, r"channels is \(8, 10\)"),
        ({"channels": (8, 0)}, r"channels is \(8, 0\)"),
        ({"channels": (8, 16.0)}, r"channels is \(8, 16.0\)"),
        ({"skip_kernel_size": 5}, r"skip_kernel_size is 5; known: 3 \(as published\), 1"),
        ({"reduction": 0}, "reduction of a ChannelGate is 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ChannelAttentionResUNet(**{"spatial_dims": 3, "in_channels": 1, "out_channels": 4, **settings})


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 12), (1, 2, 16, 16, 16), (1, 1, 16, 16), (1, 16, 16, 16)])
def test_an_image_that_does_not_fit_is_refused(shape):
    with pytest.raises(
        ValueError, match=r"it takes \(batch, 1, \*spatial\) with 3 spatial sizes that are multiples of 8"
    ):
        narrow()(torch.rand(shape))


def test_onnx_stays_exact_where_a_window_is_mostly_background(tmp_path):
    """Runtimes add voxels up one after the other; a sum of millions of equal ones loses digits that way."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from monai_kd.export import export_onnx

    torch.manual_seed(0)
    network = ChannelAttentionResUNet(3, 1, 4, channels=(4, 8), skip_kernel_size=1).eval()
    image = torch.full((1, 1, 96, 96, 96), 3.3)
    image[:, :, 40:50, 40:50, 40:50] += torch.randn(10, 10, 10)
    export_onnx(network, tmp_path / "model.onnx", 1, (16, 16, 16))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.inference_mode():
        exact = network.double()(image.double())
    assert (torch.as_tensor(got) - exact).abs().max() < 1e-4
