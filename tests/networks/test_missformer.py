"""MISSFormer: published numbers, where the tokens of each level lie, any size, halves, and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from two_part_networks import check_another_bottleneck

from monai_kd.distillers import FeatureTaps, network_stages, stage_paths
from monai_kd.networks.blocks.context_bridge import ContextBridge, join_levels, split_levels
from monai_kd.networks.blocks.efficient_transformer import EfficientAttention, MixFeedForward, to_map, to_tokens
from monai_kd.networks.nets.missformer import MISSFormer

CHANNELS = (4, 8, 20, 32)


def narrow(**settings: Any) -> MISSFormer:
    torch.manual_seed(0)
    defaults = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": CHANNELS}
    return MISSFormer(**{**defaults, **settings})


def image_for(batch: int = 2) -> Tensor:
    return torch.rand(batch, 1, 64, 96, generator=torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- the published numbers ------------------------------------------------------------------------------------------


def test_parameters_are_the_published_ones_without_the_dead_ones():
    with torch.device("meta"):
        assert count(MISSFormer(2, 1, 9)) == 42_462_537 - 7_009_792 == 35_452_745
        assert count(MISSFormer(2, 3, 9)) == 35_452_745


def test_operations_are_the_published_ones_without_the_layers_that_theirs_runs_twice():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        MISSFormer(2, 1, 9).eval()(torch.empty(1, 1, 224, 224))
    tokens = [56**2, 28**2, 14**2, 7**2]
    widths = [64, 128, 320, 512]
    # two blocks in the encoder, four perceptrons in the bridge, two blocks in the decoder but at the lowest level
    runs = [8, 8, 8, 6]
    expansions = sum(n * c * 4 * c * k for n, c, k in zip(tokens, widths, runs, strict=True))
    assert (counter.get_total_flops() / 2 + expansions) / 1e9 == pytest.approx(9.77, abs=0.01)


def test_stages_of_a_224_image_have_the_published_shapes():
    with torch.device("meta"):
        stages = network_stages(MISSFormer(2, 1, 9), [1, 1, 224, 224])
    levels = {1: (64, 56), 2: (128, 28), 3: (320, 14), 4: (512, 7)}
    expected = {f"encoder_{number}": shape for number, shape in levels.items()}
    expected |= {f"bridged_{number}": levels[number] for number in (1, 2, 3)}
    expected |= {"bottleneck": levels[4], **{f"decoder_{number}": levels[number] for number in (3, 2, 1)}}
    expected |= {"decoder_0": (64, 224)}
    assert {stage.name: (stage.shape[1], stage.shape[2]) for stage in stages} == expected
    assert [stage.name for stage in stages] == list(expected)
    assert all(len(stage.shape) == 4 and stage.shape[2] == stage.shape[3] for stage in stages)


# ---- the bridge -----------------------------------------------------------------------------------------------------

SHARES = (1, 2, 5, 8)


@pytest.mark.parametrize("image", [(224, 224), (512, 512), (96, 160), (32, 64)])
def test_levels_are_disjoint_and_cover_every_token_once(image):
    grids = [(image[0] // stride, image[1] // stride) for stride in (4, 8, 16, 32)]
    total = sum(height * width * share for (height, width), share in zip(grids, SHARES, strict=True))
    parts = split_levels(torch.arange(total).view(1, total, 1), grids, SHARES)
    assert [part.shape[1:] for part in parts] == [(h * w, share) for (h, w), share in zip(grids, SHARES, strict=True)]
    found = torch.cat([part.flatten() for part in parts])
    assert len(found) == total
    assert torch.equal(found.sort().values, torch.arange(total))
    if image == (224, 224):
        assert total == 6076
        assert [int(part.min()) for part in parts] == [0, 3136, 4704, 5684]


def test_maps_come_back_from_tokens_as_they_were():
    maps = [torch.randn(2, 4 * share, 16 // n, 24 // n) for share, n in zip(SHARES, (1, 2, 4, 8), strict=True)]
    grids = [(level.shape[2], level.shape[3]) for level in maps]
    tokens = join_levels([to_tokens(level) for level in maps], 4)
    # a voxel's tokens are neighbors and hold its channels in order
    first_of_second = 16 * 24
    assert torch.equal(tokens[:, first_of_second : first_of_second + 2].flatten(1), maps[1][:, :, 0, 0])
    back = [to_map(part, grid) for part, grid in zip(split_levels(tokens, grids, SHARES), grids, strict=True)]
    assert all(torch.equal(level, other) for level, other in zip(maps, back, strict=True))


def test_through_the_bridge_every_level_sees_every_other():
    torch.manual_seed(0)
    bridge = ContextBridge(CHANNELS, num_layers=1).eval()
    maps = [torch.randn(1, width, 16 // n, 16 // n) for width, n in zip(CHANNELS, (1, 2, 4, 8), strict=True)]
    with torch.no_grad():
        before = bridge(maps)
        for changed in range(4):
            moved = [torch.randn_like(level) if index == changed else level for index, level in enumerate(maps)]
            after = bridge(moved)
            assert all((a - b).abs().amax(dim=1).min() > 0 for a, b in zip(after, before, strict=True)), changed
    assert [level.shape for level in before] == [level.shape for level in maps]


def test_attention_is_that_of_its_formula():
    torch.manual_seed(0)
    block, tokens = EfficientAttention(8, num_heads=2, reduction=2), torch.randn(2, 24, 8)
    context = block.norm(block.reduce(tokens.transpose(1, 2).reshape(2, 8, 4, 6)).flatten(2).transpose(1, 2))
    query, key, value = (
        layer(source).unflatten(2, (2, 4)).transpose(1, 2)
        for layer, source in ((block.attend.to_q, tokens), (block.attend.to_k, context), (block.attend.to_v, context))
    )
    shares = (query @ key.mT / 2).softmax(dim=-1)
    expected = block.attend.out_proj((shares @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(block(tokens, (4, 6)), expected)
    assert shares.shape == (2, 2, 24, 6)


def test_the_perceptron_sees_neighbors_and_no_farther():
    torch.manual_seed(0)
    block, tokens = MixFeedForward(4), torch.randn(1, 35, 4)
    (other := tokens.clone())[:, 17] += 1.0  # row 2, column 3 of 5 x 7
    change = (block(other, (5, 7)) - block(tokens, (5, 7))).abs().sum(dim=2).view(5, 7) > 0
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(change, expected)


# ---- two halves -----------------------------------------------------------------------------------------------------


def test_decode_after_encode_is_forward_bit_for_bit_and_the_bottleneck_is_tapped():
    network, image = narrow(), image_for()
    with FeatureTaps(network, ["bottleneck", "bridged_1"]) as taps:
        whole = network(image)
    features, skips = network.encode(image)
    assert features.shape == (2, network.feature_channels, 2, 3)
    assert torch.equal(taps["bottleneck"], features)
    assert torch.equal(taps["bridged_1"], skips[0])
    assert torch.equal(network.decode(features, skips), whole)
    check_another_bottleneck(network, image)


@pytest.mark.parametrize("sizes", [(96, 160), (32, 32), (512, 512)])
def test_other_sizes_are_taken_and_stages_recorded(sizes):
    network = narrow(channels=(4, 4, 8, 8), bridge_layers=1).eval()
    with torch.no_grad(), FeatureTaps(network, list(stage_paths(network))) as features:
        logits = network(torch.rand(1, 1, *sizes))
    assert logits.shape == (1, 3, *sizes)
    assert features["bottleneck"].shape == (1, 8, sizes[0] // 32, sizes[1] // 32)
    assert features["decoder_0"].shape == (1, 4, *sizes)


def test_every_weight_has_a_gradient():
    network = narrow()
    network(image_for()).square().mean().backward()
    silent = [
        key
        for key, parameter in network.named_parameters()
        # one number more for all keys alike changes no softmax: rounding is left
        if parameter.grad is None or not (parameter.grad.any() or key.endswith("to_k.bias"))
    ]
    assert silent == []


def test_one_channel_is_three_alike_and_other_numbers_have_maps_of_their_own():
    gray, color = narrow(), narrow(in_channels=3)
    color.load_state_dict(gray.state_dict())
    image = image_for()
    assert torch.equal(gray(image), color(image.expand(-1, 3, -1, -1)))
    assert [narrow(in_channels=n).stages[0].embed.in_channels for n in (1, 2, 3, 4)] == [3, 2, 3, 4]
    assert narrow(in_channels=2)(torch.rand(1, 2, 32, 64)).shape == (1, 3, 32, 64)


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"in_channels": 2}, {"out_channels": 5}, {"channels": (4, 8, 16, 32)}, {"bridge_layers": 2}]
)
def test_every_setting_changes_the_number_of_parameters(settings):
    with torch.device("meta"):
        assert count(narrow(**settings)) != count(narrow())


def test_heads_have_the_width_of_the_first_level():
    network = narrow()
    assert [stage.blocks[0].attention.attend.num_heads for stage in network.stages] == [1, 2, 5, 8]
    assert [level.blocks[0].attention.attend.num_heads for level in network.up] == [5, 2, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spatial_dims": 3}, "spatial_dims is 3; MISSFormer takes 2"),
        ({"channels": (4, 8, 20)}, r"channels is \(4, 8, 20\); give a multiple of 4 for each of 4 levels"),
        ({"channels": (6, 12, 18, 24)}, "give a multiple of 4"),
        ({"channels": (8, 16, 20, 32)}, r"channels is \(8, 16, 20, 32\); give multiples of the first"),
        ({"bridge_layers": 0}, "bridge_layers is 0; it must be a whole number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        narrow(**settings)


@pytest.mark.parametrize("shape", [(1, 1, 64, 48), (1, 3, 64, 64), (1, 64, 64), (1, 1, 0, 32), (1, 1, 32, 32, 32)])
def test_an_image_that_does_not_fit_is_refused(shape):
    words = r"MISSFormer got \(.*\); it takes \(batch, 1, \*spatial\) with 2 spatial sizes that are multiples of 32"
    with pytest.raises(ValueError, match=words):
        narrow()(torch.rand(shape))


def test_a_bottleneck_of_another_size_is_refused():
    network = narrow().eval()
    features, skips = network.encode(image_for())
    with pytest.raises(
        ValueError, match=r"MISSFormer.decode got features \(2, 32, 2, 2\); .* it takes \(2, 32, 2, 3\)"
    ):
        network.decode(features[..., :-1], skips)


# ---- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_gives_the_same_logits_at_other_sizes():
    network = narrow(bridge_layers=1).eval()
    traced = torch.jit.trace(network, image_for(), check_trace=False)
    with torch.no_grad():
        other = torch.rand(1, 1, 128, 64)
        torch.testing.assert_close(traced(other), network(other))


@pytest.mark.slow
def test_an_onnx_graph_gives_the_same_logits_at_two_sizes(tmp_path: Path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from monai_kd.export.onnx import onnx_parity, write_onnx

    network, path = narrow(bridge_layers=1).eval(), tmp_path / "model.onnx"
    write_onnx(network, path, image_for())
    parity = onnx_parity(network, path, [image_for(), torch.rand(1, 1, 128, 64)])
    assert parity["max_logit_difference"] < 1e-4
    assert parity["label_agreement"] > 0.999


@pytest.mark.slow
def test_a_graph_of_torch_export_takes_other_sizes_and_batches():
    network = narrow(bridge_layers=1).eval()
    steps = {axis: 32 * torch.export.Dim(name, min=2, max=16) for axis, name in ((2, "h_steps"), (3, "w_steps"))}
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (image_for(),), dynamic_shapes=({0: batch, **steps},)).module()
    with torch.no_grad():
        other = torch.rand(1, 1, 128, 64)
        torch.testing.assert_close(program(other), network(other))
