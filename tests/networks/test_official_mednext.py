"""MedNeXt as its authors published it: numbers of parameters, agreement with MONAI's, heads, halves, and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import MedNeXtB, MedNeXtS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from two_part_networks import check_another_bottleneck

from monai_kd.distillers import Distiller, FeatureTaps, Term, network_stages, stage_paths
from monai_kd.networks import ResizeAdapter
from monai_kd.networks.nets.official_mednext import OfficialMedNeXt

PUBLISHED = {"S": (5_472_233, 6.7), "B": (10_447_625, 10.95), "M": (17_418_441, 16.8), "L": (61_556_585, 46.4)}
each_axes = pytest.mark.parametrize("axes", [2, 3])


def narrow(axes: int = 2, **settings: Any) -> OfficialMedNeXt:
    torch.manual_seed(0)
    return OfficialMedNeXt(**{"spatial_dims": axes, "in_channels": 1, "out_channels": 3, "init_filters": 4, **settings})


def image_for(axes: int = 2, batch: int = 2) -> Tensor:
    sizes = [32, 48, 16][:axes]
    return torch.rand(batch, 1, *sizes, generator=torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- the published numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameters_and_operations_are_the_published_ones(variant):
    parameters, gmac = PUBLISHED[variant]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = OfficialMedNeXt(2, 1, 9, variant).eval()
        network(torch.empty(1, 1, 224, 224))
    assert count(network) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.01)


@pytest.mark.parametrize(("variant", "millions"), [("S", 5.6), ("B", 10.5), ("M", 17.5), ("L", 61.8)])
def test_parameters_in_3d_are_those_of_the_paper(variant, millions):
    with torch.device("meta"):
        assert count(OfficialMedNeXt(3, 1, 14, variant)) / 1e6 == pytest.approx(millions, abs=0.06)


def test_stages_of_a_224_image_have_the_published_shapes():
    with torch.device("meta"):
        network = OfficialMedNeXt(2, 1, 9, "B").eval()
        stages = {stage.name: tuple(stage.shape[1:3]) for stage in network_stages(network, [1, 1, 224, 224])}
    encoders = {1: (32, 224), 2: (64, 112), 3: (128, 56), 4: (256, 28)}
    assert list(stages) == [f"encoder_{n}" for n in encoders] + ["bottleneck"] + [f"decoder_{n}" for n in (4, 3, 2, 1)]
    assert stages["bottleneck"] == (512, 14)
    for number, shape in encoders.items():
        assert stages[f"encoder_{number}"] == stages[f"decoder_{number}"] == shape


# ---- MONAI's --------------------------------------------------------------------------------------------------------


@each_axes
def test_the_small_one_is_that_of_monai_bit_for_bit(axes):
    with torch.device("meta"):
        ours = OfficialMedNeXt(axes, 1, 3, "S", deep_supervision=True)
    torch.manual_seed(0)
    theirs = MedNeXtS(spatial_dims=axes, in_channels=1, out_channels=3, deep_supervision=True)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    image = image_for(axes, batch=1)
    with torch.no_grad():
        assert torch.equal(ours.eval()(image), theirs.eval()(image))
        heads = ours.train()(image)
        expected = theirs.train()(image)
    assert list(heads) == ["logits", *ours.head_names]
    assert all(torch.equal(head, other) for head, other in zip(heads.values(), expected, strict=True))


def test_each_step_down_has_the_ratio_of_the_stage_below():
    with torch.device("meta"):
        ours, theirs = OfficialMedNeXt(2, 1, 9, "B"), MedNeXtB(spatial_dims=2, in_channels=1, out_channels=9)
    ratios = [[down.conv2.out_channels // down.conv2.in_channels for down in n.down_blocks] for n in (ours, theirs)]
    assert ratios == [[3, 4, 4, 4], [2, 3, 4, 4]]
    assert count(theirs) == 10_432_169
    assert list(ours.state_dict()) == list(theirs.state_dict())


# ---- deep supervision -----------------------------------------------------------------------------------------------


def test_heads_run_in_training_alone_and_change_no_logits():
    network, image = narrow(deep_supervision=True), image_for()
    heads = network(image)
    assert network.head_names == ("logits_1", "logits_2", "logits_3", "logits_4")
    assert [tuple(head.shape[1:]) for head in heads.values()] == [(3, 32 // 2**k, 48 // 2**k) for k in range(5)]
    logits = network.eval()(image)
    assert torch.equal(logits, heads["logits"])
    assert narrow().head_names == ()
    assert count(network) - count(narrow()) == sum(width * 3 + 3 for width in (8, 16, 32, 64))


def test_a_distiller_trains_every_head_on_the_label():
    network, image = narrow(deep_supervision=True), image_for()
    label = torch.randint(0, 3, image.shape)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    terms = {"seg": Term(loss, "student/logits", "label")}
    with pytest.raises(ValueError, match=r"no term trains the heads \['logits_1', 'logits_2', 'logits_3', 'logits_4'"):
        Distiller(network, terms=terms)
    for number, head in enumerate(network.head_names, start=1):
        terms[f"deep_{number}"] = Term(loss, f"student/{head}", "label", weight=0.5**number, adapter=ResizeAdapter())
    found = Distiller(network, terms=terms)(image, label)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(sum(0.5**k * v.item() for k, v in enumerate(found.terms.values())))
    assert all(head.conv_out.weight.grad.any() for head in network.out_blocks)


# ---- two halves -----------------------------------------------------------------------------------------------------


@each_axes
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_decode_after_encode_is_forward_bit_for_bit(axes, deep_supervision):
    network, image = narrow(axes, deep_supervision=deep_supervision), image_for(axes)
    whole = network(image)
    features, skips = network.encode(image)
    assert features.shape == (2, network.feature_channels, *(size // 16 for size in image.shape[2:]))
    logits = network.decode(features, skips)
    assert torch.equal(logits, whole["logits"] if deep_supervision else whole)
    assert logits.shape == (2, 3, *image.shape[2:])
    check_another_bottleneck(network.eval(), image)


@pytest.mark.parametrize("sizes", [(96, 160), (16, 32), (48, 32)])
def test_other_sizes_are_taken_and_stages_recorded(sizes):
    network = narrow().eval()
    with torch.no_grad(), FeatureTaps(network, list(stage_paths(network))) as features:
        logits = network(torch.rand(1, 1, *sizes))
    assert logits.shape == (1, 3, *sizes)
    assert features["bottleneck"].shape == (1, 64, *(size // 16 for size in sizes))
    assert features["decoder_1"].shape == features["encoder_1"].shape == (1, 4, *sizes)


@each_axes
def test_every_weight_has_a_gradient(axes):
    network = narrow(axes, variant="B", deep_supervision=True)
    sum(head.square().mean() for head in network(image_for(axes)).values()).backward()
    silent = [
        key
        for key, parameter in network.named_parameters()
        # a bias that the norm behind takes away: rounding is left
        if parameter.grad is None or not (parameter.grad.any() or key.endswith("conv1.bias"))
    ]
    assert silent == []


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"in_channels": 2},
        {"out_channels": 5},
        {"variant": "B"},
        {"variant": "M"},
        {"variant": "L"},
        {"kernel_size": 5},
        {"init_filters": 8},
        {"deep_supervision": True},
        {"axes": 3},
    ],
)
def test_every_setting_changes_the_number_of_parameters(settings):
    with torch.device("meta"):
        assert count(narrow(**settings)) != count(narrow())


def test_a_wider_kernel_sees_farther():
    network = narrow(kernel_size=5).eval()
    assert network(image_for()).shape == (2, 3, 32, 48)
    assert network.enc_stages[0][0].conv1.kernel_size == (5, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": 1}, "spatial_dims is 1; known: 2, 3"),
        ({"variant": "XL"}, "variant is 'XL'; known: S, B, M, L"),
        ({"kernel_size": 4}, "kernel_size is 4; give an odd number of at least 3"),
        ({"kernel_size": 1}, "kernel_size is 1; give an odd number of at least 3"),
        ({"init_filters": 0}, "init_filters is 0; give a whole number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        narrow(**settings)


@pytest.mark.parametrize("shape", [(1, 1, 32, 40), (1, 2, 32, 32), (1, 32, 32), (1, 1, 32, 0)])
def test_an_image_that_does_not_fit_is_refused(shape):
    words = (
        r"OfficialMedNeXt got \(.*\); it takes \(batch, 1, \*spatial\) with 2 spatial sizes that are multiples of 16"
    )
    with pytest.raises(ValueError, match=words):
        narrow()(torch.rand(shape))


@each_axes
def test_an_image_whose_bottleneck_is_one_voxel_is_refused(axes):
    with pytest.raises(ValueError, match=r"the bottleneck is a single voxel, .* it takes at least 32 along one axis"):
        narrow(axes)(torch.rand(2, 1, *[16] * axes))


def test_a_bottleneck_of_another_size_is_refused():
    network = narrow().eval()
    features, skips = network.encode(image_for())
    with pytest.raises(
        ValueError, match=r"OfficialMedNeXt.decode got features \(2, 64, 2, 2\); .* it takes \(2, 64, 2"
    ):
        network.decode(features[..., :-1], skips)


# ---- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_gives_the_same_logits_at_other_sizes():
    network = narrow().eval()
    traced = torch.jit.trace(network, image_for(), check_trace=False)
    with torch.no_grad():
        other = torch.rand(1, 1, 48, 32)
        torch.testing.assert_close(traced(other), network(other))


@pytest.mark.slow
def test_an_onnx_graph_gives_the_same_logits_at_two_sizes(tmp_path: Path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from monai_kd.export.onnx import onnx_parity, write_onnx

    network, path = narrow(deep_supervision=True).eval(), tmp_path / "model.onnx"
    write_onnx(network, path, image_for())
    parity = onnx_parity(network, path, [image_for(), torch.rand(1, 1, 48, 32)])
    assert parity["max_logit_difference"] < 1e-4
    assert parity["label_agreement"] > 0.999
