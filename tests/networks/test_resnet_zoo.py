"""Networks on ResNets: published counts, operations and shapes, any size, two attention gates, and every setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from two_part_networks import check_another_bottleneck

from monai_kd.distillers import Distiller, FeatureTaps, Term, stage_paths
from monai_kd.networks.blocks import resnet_v1c
from monai_kd.networks.blocks.resnet_v1c import BasicBlock, Bottleneck, ResNetV1c
from monai_kd.networks.nets.multi_gate_attention_unet import MultiGateAttentionUNet
from monai_kd.networks.nets.resnet_fcn import ResNetFCN
from monai_kd.networks.nets.resnet_unet import ResNetUNet

WIDTHS = (8, 8, 12, 16)
NETWORKS: dict[str, tuple[Any, int]] = {
    "fcn_18": (ResNetFCN, 18),
    "fcn_50": (ResNetFCN, 50),
    "unet_18": (ResNetUNet, 18),
    "unet_50": (ResNetUNet, 50),
    "attention_unet_18": (MultiGateAttentionUNet, 18),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def narrow(name: str, spatial_dims: int = 2, **settings: Any) -> Any:
    torch.manual_seed(0)
    network, depth = NETWORKS[name]
    return network(
        **{"in_channels": 1, "out_channels": 3, "depth": depth, "channels": WIDTHS, **settings},
        spatial_dims=spatial_dims,
    )


def full(name: str, **settings: Any) -> Any:
    network, depth = NETWORKS[name]
    return network(2, 1, 9, depth=depth, **settings)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def image_of(*size: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(1))


def awake(network: Any) -> Any:
    """Return the network with residual branches that count, as after some training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.ones_(module.weight)
    return network


# ---- the published numbers ------------------------------------------------------------------------------------------


ENCODERS = {
    "18": {"encoder_1": (64, 56), "encoder_2": (128, 28), "encoder_3": (256, 28), "bottleneck": (512, 28)},
    "50": {"encoder_1": (256, 56), "encoder_2": (512, 28), "encoder_3": (1024, 28), "bottleneck": (2048, 28)},
    "50 plain": {"encoder_1": (256, 56), "encoder_2": (512, 28), "encoder_3": (1024, 14), "bottleneck": (2048, 7)},
}
DECODERS = {
    "18": {"decoder_3": (256, 28), "decoder_2": (128, 28), "decoder_1": (64, 56)},
    "50": {"decoder_3": (1024, 14), "decoder_2": (512, 28), "decoder_1": (256, 56)},
}
GATES = {"gated_3": (256, 28), "attention_3_1": (1, 14), "attention_3_2": (1, 14)}
GATES |= {"gated_2": (128, 28), "attention_2_1": (1, 14), "attention_2_2": (1, 14)}
GATES |= {"gated_1": (64, 56), "attention_1_1": (1, 28), "attention_1_2": (1, 28)}


@pytest.mark.parametrize(
    ("name", "parameters", "gmac", "shapes"),
    [
        ("fcn_18", 12_671_657, 10.60, {**ENCODERS["18"], "decoder_2": (128, 28)}),
        ("fcn_50", 47_127_337, 37.81, {**ENCODERS["50"], "decoder_2": (512, 28)}),
        ("unet_18", 13_694_185, 11.68, {**ENCODERS["18"], **DECODERS["18"]}),
        ("unet_50", 50_977_865, 16.35, {**ENCODERS["50 plain"], **DECODERS["50"]}),
        ("attention_unet_18", 15_076_271, 12.41, {**ENCODERS["18"], **DECODERS["18"], **GATES}),
    ],
)
def test_parameters_operations_and_stages_of_a_224_image_are_the_published_ones(name, parameters, gmac, shapes):
    with torch.device("meta"):
        network = full(name).eval()
        with FeatureTaps(network, list(stage_paths(network))) as features, FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 1, 224, 224))
    assert count(network) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.006)
    assert {stage: tuple(value.shape[1:3]) for stage, value in features.items()} == shapes
    assert list(stage_paths(network)) == list(shapes)
    assert (network.feature_channels, 224 // network.feature_stride) == shapes["bottleneck"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("unet_18", 13_694_185 + 2_313), ("unet_50", 50_977_865 + 9_225), ("attention_unet_18", 15_076_271 + 2_313)],
)
def test_the_auxiliary_head_adds_its_own_parameters(name, parameters):
    with torch.device("meta"):
        assert count(full(name, deep_supervision=True)) == parameters


def test_the_full_width_runs():
    torch.manual_seed(0)
    with torch.no_grad():
        logits = full("attention_unet_18").eval()(image_of(64, 64, batch=1))
    assert logits.shape == (1, 9, 64, 64)
    assert torch.isfinite(logits).all()


# ---- the encoder ----------------------------------------------------------------------------------------------------


def dilations(stage: nn.Module) -> list[int]:
    layers = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    return [layer.dilation[0] for layer in layers]


def test_dilated_stages_begin_with_half_their_dilation():
    assert [dilations(stage) for stage in ResNetV1c(2, 1, 18, WIDTHS).stages] == [
        [1, 1, 1, 1],
        [1, 1, 1, 1],
        [1, 1, 2, 1],  # the second convolution of a basic block has none
        [2, 1, 4, 1],
    ]
    deeper = ResNetV1c(2, 1, 50, WIDTHS).stages
    assert [dilations(stage) for stage in deeper] == [[1] * 3, [1] * 4, [1, 2, 2, 2, 2, 2], [2, 4, 4]]
    plain = ResNetV1c(2, 1, 50, WIDTHS, plain=True)
    assert {dilation for stage in plain.stages for dilation in dilations(stage)} == {1}
    assert plain.stem[0].conv.kernel_size == (7, 7)


def test_the_stride_of_a_bottleneck_is_on_its_3x3_convolution():
    block = ResNetV1c(2, 1, 50, WIDTHS, plain=True).stages[1][0]
    assert [layer.conv.stride for layer in block.branch] == [(1, 1), (2, 2), (1, 1)]
    assert block.shortcut.conv.stride == (2, 2)


@pytest.mark.parametrize(("depth", "kind"), [(18, BasicBlock), (50, Bottleneck)])
def test_a_fresh_block_is_its_shortcut(depth, kind):
    torch.manual_seed(0)
    encoder = ResNetV1c(2, 1, depth, WIDTHS)
    blocks = [module for module in encoder.modules() if type(module) is kind]
    assert len(blocks) == {18: 8, 50: 16}[depth]
    for block in blocks:
        last = block.branch[-1].adn.N
        assert not last.weight.any()
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d) and module is not last]
        assert all((norm.weight == 1).all() for norm in norms)
    features = torch.rand(2, blocks[1].branch[0].conv.in_channels, 6, 6)
    assert torch.equal(blocks[1](features), features)


def test_convolutions_start_from_kaiming_by_fan_out_and_the_classifier_small():
    torch.manual_seed(0)
    network = ResNetUNet(2, 1, 9, channels=(32, 32, 64, 64))
    for layer in [*network.encoder.stages.modules(), *network.up.modules()]:
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert network.head[1].weight.std().item() == pytest.approx(0.01, rel=0.2)


# ---- sizes ----------------------------------------------------------------------------------------------------------


@each_network
@pytest.mark.parametrize("size", [(97, 130), (33, 47)])
def test_logits_have_the_size_of_any_image(name, size):
    network = narrow(name).eval()
    with torch.no_grad():
        features, skips = network.encode(image_of(*size))
        assert list(features.shape[2:]) == [-(-length // network.feature_stride) for length in size]
        assert network.decode(features, skips).shape == (2, 3, *size)


@each_network
def test_three_axes(name):
    network = narrow(name, spatial_dims=3, deep_supervision=True) if "unet" in name else narrow(name, spatial_dims=3)
    image = image_of(35, 33, 40)
    logits = network(image)
    for value in logits.values() if isinstance(logits, dict) else [logits]:
        assert value.shape == (2, 3, 35, 33, 40)
    assert network.eval()(image).shape == (2, 3, 35, 33, 40)


def test_a_gate_reads_the_last_row_of_an_odd_size():
    gate = narrow("attention_unet_18").eval().gates[0].gates[0]
    skip, gating = torch.rand(1, 12, 5, 5), torch.rand(1, 16, 5, 5)
    (other := skip.clone())[..., 4, :] += 10.0
    maps = []
    for value in (skip, other):
        hook = gate.attention.register_forward_hook(lambda *record: maps.append(record[2]))
        gate(value, gating)
        hook.remove()
    assert maps[0].shape == (1, 1, 3, 3)
    assert not torch.equal(maps[0][..., 2, :], maps[1][..., 2, :])
    assert torch.equal(maps[0][..., :2, :], maps[1][..., :2, :])


@pytest.mark.parametrize(
    ("name", "training", "size", "message"),
    [
        ("fcn_18", True, (8, 8), "ResNetFCN got .*on which batch norm .* above 8, or train on batches of 2 or more"),
        ("unet_50", False, (32, 17), "ResNetUNet got .*on which instance norm has no variance; give a size above 32$"),
    ],
)
def test_an_image_too_small_for_its_norm_is_refused(name, training, size, message):
    network = narrow(name).train(training)
    with pytest.raises(ValueError, match=message):
        network(image_of(*size, batch=1))
    assert network(image_of(size[0] + 1, size[1], batch=1)).shape[2:] == (size[0] + 1, size[1])
    if training:
        assert network(image_of(*size)).shape[2:] == size
        assert network.eval()(image_of(1, 1, batch=1)).shape[2:] == (1, 1)


@each_network
def test_what_does_not_fit_is_refused(name):
    network, image = narrow(name).eval(), image_of(40, 40)
    kind = type(network).__name__
    for wrong in (torch.cat([image, image], dim=1), image[0], image[..., :0], image[..., None]):
        with pytest.raises(ValueError, match=rf"{kind} got \(.*\); it takes \(batch, 1, \*spatial\) with 2 spatial "):
            network(wrong)
    features, skips = network.encode(image)
    for wrong in (features[..., :-1], features[:, :-1], features[:1]):
        with pytest.raises(ValueError, match=rf"{kind}.decode got features \(.*\); with these skips it takes \(2, "):
            network.decode(wrong, skips)
    with pytest.raises(ValueError, match=rf"{kind}.decode got 0 skips; it takes the {len(skips)} that encode gives"):
        network.decode(features, ())


# ---- two halves, and the auxiliary head -----------------------------------------------------------------------------


@each_network
@pytest.mark.parametrize("training", [False, True])
def test_decode_after_encode_is_forward_bit_for_bit(name, training):
    network, image = awake(narrow(name)).train(training), image_of(49, 64)
    torch.manual_seed(2)  # of the dropout
    whole = network(image)
    features, skips = network.encode(image)
    torch.manual_seed(2)
    assert torch.equal(network.decode(features, skips), whole)
    with FeatureTaps(network, list(stage_paths(network))) as taps:  # raises where a stage was overwritten
        network(image)
    assert torch.equal(taps["bottleneck"], features)


@each_network
def test_another_bottleneck_changes_the_logits_and_gets_a_gradient(name):
    check_another_bottleneck(narrow(name).eval(), image_of(41, 48))


@each_network
def test_every_parameter_has_a_gradient(name):
    settings = {"deep_supervision": True} if "unet" in name else {}
    network = awake(narrow(name, **settings))
    output = network(image_of(65, 72))
    heads = list(output.values()) if isinstance(output, dict) else [output]
    sum((head * torch.randn_like(head)).sum() for head in heads).backward()
    silent = {key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    redundant = {key for key in silent if key.endswith("conv.bias")}  # a norm behind takes them away
    assert silent == redundant


@pytest.mark.parametrize("name", ["unet_18", "unet_50", "attention_unet_18"])
def test_the_auxiliary_head_is_there_in_training_and_trained_by_a_term_of_its_own(name):
    network, image = narrow(name, deep_supervision=True), image_of(65, 72)
    assert narrow(name).head_names == ()
    output = network(image)
    assert list(output) == ["logits", *network.head_names] == ["logits", "logits_1"]
    assert output["logits"].shape == output["logits_1"].shape == (2, 3, 65, 72)
    assert network.eval()(image).shape == (2, 3, 65, 72)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    seg = Term(loss, "student/logits", "label", weight=4 / 7)
    with pytest.raises(ValueError, match=r"no term trains the heads \['logits_1'\]"):
        Distiller(network, terms={"seg": seg})
    auxiliary = Term(loss, "student/logits_1", "label", weight=1 / 7)
    distiller = Distiller(network, terms={"seg": seg, "auxiliary": auxiliary}).train()
    label = torch.randint(0, 3, (2, 1, 65, 72))
    distiller(image, label).loss.backward()
    assert network.auxiliary[1].weight.grad.any()


def test_the_auxiliary_head_reads_the_lowest_decoder_level():
    network = narrow("unet_18", deep_supervision=True, dropout=0.0)
    with FeatureTaps(network, ["decoder_3"]) as taps:
        auxiliary = network(image_of(64, 64))["logits_1"]
    expected = F.interpolate(network.auxiliary(taps["decoder_3"]), size=(64, 64), mode="bilinear")
    assert torch.equal(auxiliary, expected)


# ---- the gates ------------------------------------------------------------------------------------------------------


def test_each_gate_is_the_published_formula_and_both_are_joined():
    torch.manual_seed(0)
    multi = narrow("attention_unet_18").eval().gates[2]
    skip, gating = torch.randn(2, 8, 12, 16), torch.randn(2, 8, 6, 8)
    gated = []
    for gate in multi.gates:
        theta = F.conv2d(skip, gate.of_skip.weight, stride=2)
        phi = F.conv2d(gating, gate.of_gating.weight, gate.of_gating.bias)
        attention = torch.sigmoid(gate.attention[1](torch.relu(theta + phi)))
        assert attention.shape == (2, 1, 6, 8)
        raised = F.interpolate(attention, size=(12, 16), mode="bilinear")
        gated.append(gate.project(raised * skip))
    torch.testing.assert_close(multi(skip, gating), multi.join(torch.cat(gated, dim=1)))
    shared = {id(p) for p in multi.gates[0].parameters()} & {id(p) for p in multi.gates[1].parameters()}
    assert not shared
    assert not torch.allclose(gated[0], gated[1])


def test_gates_read_the_decoder_before_it_is_raised():
    network, inputs = narrow("attention_unet_18").eval(), []
    for multi in network.gates:
        multi.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
    stages = ["bottleneck", "encoder_3", "encoder_2", "encoder_1", "decoder_3", "decoder_2"]
    with FeatureTaps(network, stages) as taps:
        network(image_of(64, 64))
    for (skip, gating), encoder, below in zip(inputs, stages[1:4], ["bottleneck", *stages[4:]], strict=True):
        assert torch.equal(skip, taps[encoder])
        assert torch.equal(gating, taps[below])
    assert inputs[2][0].shape[2:] == (16, 16)
    assert inputs[2][1].shape[2:] == (8, 8)


def test_a_closed_gate_hides_the_skip():
    network = narrow("attention_unet_18").eval()
    features, skips = network.encode(image_of(64, 64))
    others = (skips[0], *(skip + torch.rand_like(skip) for skip in skips[1:]))
    assert not torch.allclose(network.decode(features, others), network.decode(features, skips))
    for multi in network.gates:
        for gate in multi.gates:
            nn.init.constant_(gate.attention[1].bias, -200.0)
    torch.testing.assert_close(network.decode(features, others), network.decode(features, skips))


def test_gates_work_on_the_plain_resnet_too():
    torch.manual_seed(0)
    network = MultiGateAttentionUNet(2, 1, 3, depth=50, channels=WIDTHS).eval()
    assert network(image_of(50, 65)).shape == (2, 3, 50, 65)


# ---- settings -------------------------------------------------------------------------------------------------------


@each_network
@pytest.mark.parametrize(
    "settings",
    [{"channels": (8, 8, 12, 20)}, {"in_channels": 2}, {"out_channels": 4}, {"spatial_dims": 3}, {"depth": None}],
)
def test_every_setting_of_a_size_changes_the_number_of_parameters(name, settings):
    with torch.device("meta"):
        if "depth" in settings:
            settings = {"depth": 68 - NETWORKS[name][1]}
        assert count(narrow(name, **settings)) != count(narrow(name))


@each_network
def test_dropout_changes_what_is_trained_on_alone(name):
    image, results = image_of(40, 40), []
    for dropout in (0.0, 0.5):
        network = narrow(name, dropout=dropout)
        evaluated = network.eval()(image)
        torch.manual_seed(1)
        results.append((evaluated, network.train()(image)))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][1], results[1][1])


@each_network
def test_the_norm_is_a_setting(name):
    published = nn.InstanceNorm2d if name == "unet_50" else nn.BatchNorm2d
    assert any(isinstance(module, published) for module in narrow(name).modules())
    network = narrow(name, norm=("group", {"num_groups": 2}))
    assert not any(isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d) for module in network.modules())
    image = image_of(40, 40, batch=1)
    assert not torch.equal(network.eval()(image), narrow(name).eval()(image))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 34}, "depth is 34; known: 18, 50"),
        ({"spatial_dims": 1}, "spatial_dims is 1; known: 2, 3"),
        ({"channels": (8, 8, 8)}, r"channels is \(8, 8, 8\); give a multiple of 4 for each of 4 levels"),
        ({"channels": (8, 8, 8, 10)}, "give a multiple of 4"),
        ({"dropout": 1.0}, "dropout is 1.0; give a share of at least 0 and below 1"),
    ],
)
@pytest.mark.parametrize("name", ["fcn_18", "attention_unet_18"])
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        narrow(name, **settings)


# ---- export ---------------------------------------------------------------------------------------------------------


@each_network
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_gives_the_same_logits_at_other_sizes(name):
    network = awake(narrow(name)).eval()
    traced = torch.jit.trace(network, image_of(64, 72), check_trace=False)
    for image in (image_of(64, 72), image_of(67, 41, batch=1)):
        with torch.no_grad():
            torch.testing.assert_close(traced(image), network(image))


@pytest.mark.parametrize(
    "name",
    [
        "fcn_18",
        pytest.param("unet_50", marks=pytest.mark.slow),
        pytest.param("attention_unet_18", marks=pytest.mark.slow),
    ],
)
def test_an_onnx_graph_gives_the_same_logits_at_two_sizes(name, monkeypatch, tmp_path: Path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from monai_kd.export.onnx import onnx_parity, write_onnx

    depth = NETWORKS[name][1]  # seconds per block
    monkeypatch.setitem(resnet_v1c._DEPTHS, depth, (resnet_v1c._DEPTHS[depth][0], (1, 1, 1, 2)))
    network, path = awake(narrow(name)).eval(), tmp_path / "model.onnx"
    write_onnx(network, path, image_of(96, 128))
    images = [image_of(96, 128), image_of(131, 105, batch=1)]
    parity = onnx_parity(network, path, images)
    assert parity["max_logit_difference"] < 1e-4 * network(images[0]).abs().max()
    assert parity["label_agreement"] > 0.999
