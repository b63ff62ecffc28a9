"""Networks of two halves: ``decode(*encode(image))`` is the network, and its bottleneck can be replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from two_part_networks import check_another_bottleneck

from monai_kd.distillers import FeatureTaps, stage_paths
from monai_kd.networks.nets import (
    ENet,
    ERFNet,
    MobileNetV2UNet,
    MultiTaskTransUNet,
    MultiTaskUNet,
    PlainUNet,
    SKUNet,
    SlimUNet,
)

NARROW: dict[str, Callable[..., Any]] = {
    "sk_unet": lambda **settings: SKUNet(1, 3, **{"channels": (4, 8, 12, 16), **settings}),
    "mobilenet_v2_unet": lambda **settings: MobileNetV2UNet(1, 3, **{"width": 0.25, **settings}),
    "enet": lambda **settings: ENet(1, 3, **{"channels": (8, 16, 24), **settings}),
    "erfnet": lambda **settings: ERFNet(1, 3, **{"channels": (4, 8, 12), **settings}),
    "plain_unet": lambda **settings: PlainUNet(2, 1, 3, **{"channels": (4, 8, 12), **settings}),
    "plain_unet_3d": lambda **settings: PlainUNet(3, 1, 3, **{"channels": (4, 8, 12), **settings}),
    "slim_unet": lambda **settings: SlimUNet(2, 1, 3, **{"channels": (4, 8, 12), **settings}),
    "multi_task_unet": lambda **settings: MultiTaskUNet(2, 1, 3, **{"channels": (4, 8, 12), **settings}),
    "multi_task_trans_unet": lambda **settings: MultiTaskTransUNet(2, 1, 3, **{**TINY_TRANS, **settings}),
    "multi_task_trans_unet_3d": lambda **settings: MultiTaskTransUNet(3, 1, 3, **{**TINY_TRANS, **settings}),
}
TINY_TRANS: dict[str, Any] = {"channels": (16, 16, 32, 256), "hidden_size": 16, "mlp_dim": 32, "num_layers": 2}
TINY_TRANS |= {"num_heads": 4, "position_grid": 3}
STRIDES = {"sk_unet": 8, "mobilenet_v2_unet": 32, "enet": 8, "erfnet": 8, "plain_unet": 4, "plain_unet_3d": 4}
STRIDES |= {"slim_unet": 4, "multi_task_unet": 4, "multi_task_trans_unet": 16, "multi_task_trans_unet_3d": 16}
each_network = pytest.mark.parametrize("name", NARROW)


def narrow(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return NARROW[name](**settings)


def image_for(name: str, batch: int = 2, scale: int = 2, **kind: Any) -> Tensor:
    sizes = [STRIDES[name] * (scale + axis) for axis in range(3 if name.endswith("3d") else 2)]
    return torch.rand(batch, 1, *sizes, generator=torch.Generator().manual_seed(1)).to(**kind)


def outputs(result: Any) -> list[Tensor]:
    """The logits, and what else a network gives in training."""
    return [result] if isinstance(result, Tensor) else list(result.values())


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- the published numbers ------------------------------------------------------------------------------------------

FULL: dict[str, Callable[[], Any]] = {
    "sk_unet": lambda: SKUNet(1, 2),
    "sk_unet_published": lambda: SKUNet(1, 2, published=True),
    "mobilenet_v2_unet": lambda: MobileNetV2UNet(1, 2),
    "mobilenet_v2_unet_published": lambda: MobileNetV2UNet(1, 2, published=True),
    "enet": lambda: ENet(1, 2),
    "erfnet": lambda: ERFNet(1, 2),
    "plain_unet": lambda: PlainUNet(2, 1, 2),
}
AUXILIARY_HEAD, STRIP_SCALARS = 64 * 2 + 2, 3
REDUNDANT_BIASES = sum(2 * (width * 5 // 2) for width in (64, 128, 256, 512, 256, 128, 64))  # two blocks a level
CLASSIFIER, ENCODER_HEAD = 1280 * 1000 + 1000, 128 * 2 + 2


@pytest.mark.parametrize(
    ("name", "published", "missing"),
    [
        ("sk_unet", 38_292_295, REDUNDANT_BIASES + AUXILIARY_HEAD + STRIP_SCALARS),
        ("sk_unet_published", 38_292_295, AUXILIARY_HEAD + STRIP_SCALARS),
        ("mobilenet_v2_unet", 5_963_323, CLASSIFIER + (16 * 3 + 3 + 3 * 2 + 2) - (16 * 2 + 2)),
        ("mobilenet_v2_unet_published", 5_963_323, CLASSIFIER),
        ("enet", 348_996, 0),
        ("erfnet", 2_063_130, ENCODER_HEAD),
        ("plain_unet", 31_042_434, 0),
    ],
)
def test_parameters_are_the_published_ones_without_the_dead_ones(name, published, missing):
    with torch.device("meta"):  # sizes without weights
        assert count(FULL[name]()) == published - missing


def test_the_dead_parameters_add_up():
    assert AUXILIARY_HEAD + STRIP_SCALARS == 38_292_295 - 38_292_162
    assert CLASSIFIER == 5_963_323 - 4_682_323
    assert REDUNDANT_BIASES == 7_040


@pytest.mark.parametrize(
    ("name", "encoder", "whole", "bottleneck"),
    [
        ("sk_unet", 19.26, 41.73, (512, 16, 16)),
        ("mobilenet_v2_unet", 0.095, 0.241, (1280, 4, 4)),
        ("enet", None, 0.115, (128, 16, 16)),
        ("erfnet", None, 0.826, (128, 16, 16)),
        ("plain_unet", None, 12.02, (1024, 8, 8)),
    ],
)
def test_operations_and_bottleneck_of_a_128_image_are_the_published_ones(name, encoder, whole, bottleneck):
    with torch.device("meta"):
        network, image = FULL[name]().eval(), torch.empty(1, 1, 128, 128)
    with FlopCounterMode(display=False) as counter:
        features, skips = network.encode(image)
        first_half = counter.get_total_flops() / 2e9
        logits = network.decode(features, skips)
    assert counter.get_total_flops() / 2e9 == pytest.approx(whole, rel=0.005)
    assert encoder is None or first_half == pytest.approx(encoder, rel=0.01)
    assert tuple(features.shape) == (1, *bottleneck)
    assert logits.shape == (1, 2, 128, 128)
    assert (network.feature_channels, 128 // network.feature_stride) == bottleneck[:2]


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("sk_unet", {1: (64, 128), 2: (128, 64), 3: (256, 32)}),
        ("mobilenet_v2_unet", {1: (16, 64), 2: (24, 32), 3: (32, 16), 4: (96, 8)}),
        ("enet", {1: (16, 64), 2: (64, 32)}),
        ("erfnet", {1: (16, 64), 2: (64, 32)}),
        ("plain_unet", {1: (64, 128), 2: (128, 64), 3: (256, 32), 4: (512, 16)}),
    ],
)
def test_shapes_of_every_stage_at_the_published_width(name, stages):
    with torch.device("meta"):
        network, image = FULL[name]().eval(), torch.empty(1, 1, 128, 128)
    taps = [name for name in stage_paths(network) if not name.startswith("pooled")]
    assert taps == [f"encoder_{n}" for n in stages] + ["bottleneck"] + [f"decoder_{n}" for n in reversed(stages)]
    with FeatureTaps(network, taps) as features:
        network(image)
    for number, (channels, side) in stages.items():
        assert tuple(features[f"encoder_{number}"].shape) == (1, channels, side, side)
        assert tuple(features[f"decoder_{number}"].shape) == (1, channels, side, side)


# ---- two halves -----------------------------------------------------------------------------------------------------


@each_network
@pytest.mark.parametrize("training", [False, True])
def test_decode_after_encode_is_forward_bit_for_bit_with_its_gradients(name, training):
    image, results = image_for(name), []
    for halves in (False, True):
        network = narrow(name).train(training)
        torch.manual_seed(2)  # of the dropout
        if halves:
            parts = network.encode(image)
            logits = network.decode(*parts)
            if training and hasattr(network, "reconstruct"):
                network.reconstruct(*parts)  # its norms remember the image too
        else:
            logits = outputs(network(image))[0]
        logits.square().mean().backward()
        reached = [p.grad for p in network.parameters() if p.grad is not None]
        results.append([logits, *reached, *network.buffers()])
    assert len(results[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@each_network
def test_the_bottleneck_has_the_promised_shape_and_skips_are_tensors(name):
    network, image = narrow(name).eval(), image_for(name)
    features, skips = network.encode(image)
    assert isinstance(skips, tuple)
    assert all(isinstance(skip, Tensor) for skip in skips)
    assert network.feature_stride == STRIDES[name]
    grid = [size // network.feature_stride for size in image.shape[2:]]
    assert list(features.shape) == [2, network.feature_channels, *grid]
    with FeatureTaps(network, ["bottleneck"]) as taps:
        logits = network(image)
    assert torch.equal(taps["bottleneck"], features)
    assert logits.shape == (2, 3, *image.shape[2:])


@each_network
def test_decoding_leaves_features_and_skips_as_they_are(name):
    network = narrow(name).eval()
    features, skips = network.encode(image_for(name))
    kept = [value.clone() for value in (features, *skips)]
    first, second = network.decode(features, skips), network.decode(features.clone(), skips)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(kept, (features, *skips), strict=True))


@each_network
def test_another_bottleneck_changes_the_logits_and_gets_a_gradient(name):
    check_another_bottleneck(narrow(name).eval(), image_for(name))


@each_network
def test_a_batch_of_stacked_bottlenecks_takes_repeated_skips(name):
    network = narrow(name).eval()
    features, skips = network.encode(image_for(name))
    logits = network.decode(torch.cat([features, features]), tuple(torch.cat([skip, skip]) for skip in skips))
    torch.testing.assert_close(logits[2:], network.decode(features, skips), rtol=1e-4, atol=1e-5)


@each_network
def test_a_bottleneck_of_another_size_is_refused(name):
    network = narrow(name).eval()
    features, skips = network.encode(image_for(name))
    for wrong in (features[..., :-1], features[:, :-1], features[:1]):
        with pytest.raises(ValueError, match=r"decode got features \(.*\); with these skips it takes \(2, ") as caught:
            network.decode(wrong, skips)
        assert str(tuple(wrong.shape)) in str(caught.value)
        assert str(tuple(features.shape)) in str(caught.value)
    with pytest.raises(ValueError, match=rf"{type(network).__name__}.decode got 0 skips; it takes the {len(skips)}"):
        network.decode(features, ())


@each_network
def test_an_image_that_does_not_fit_is_refused(name):
    network, image = narrow(name).eval(), image_for(name)
    axes = image.ndim - 2
    words = rf"{type(network).__name__} got .* it takes \(batch, 1, \*spatial\) with {axes} spatial sizes that are "
    for wrong in (image[..., :-1], torch.cat([image, image], dim=1), image[0], image[..., :0]):
        with pytest.raises(ValueError, match=words + rf"multiples of {STRIDES[name]}"):
            network(wrong)


# ---- how they compute -----------------------------------------------------------------------------------------------


@each_network
def test_every_weight_has_a_gradient(name):
    network = narrow(name)
    sum(output.square().mean() for output in outputs(network(image_for(name)))).backward()
    silent = [key for key, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert silent == []


@each_network
def test_the_same_seed_gives_the_same_network(name):
    first, second = narrow(name), narrow(name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@each_network
@pytest.mark.parametrize("norm", ["instance", ("group", {"num_groups": 2})])
def test_the_norm_is_a_setting(name, norm):
    if name == "sk_unet" and norm == "instance":
        with pytest.raises(ValueError, match="averages, single voxels on which instance norm has no variance"):
            narrow(name, norm=norm)
        return
    widths = {"channels": (8, 8, 12, 16)} if name == "sk_unet" else {}  # no average alone in its group
    network, image = narrow(name, norm=norm, **widths), image_for(name, batch=1)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    trained = outputs(network(image))  # batches of one train
    assert not torch.equal(network.eval()(image), narrow(name, **widths).eval()(image))
    assert all(torch.isfinite(output).all() for output in trained)


@each_network
def test_double_precision_agrees_and_half_is_finite(name):
    network, image = narrow(name).eval(), image_for(name)
    with torch.no_grad():
        single = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(image)
        double = network.double()(image.double())
    torch.testing.assert_close(single, double.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half.float(), single, rtol=0.2, atol=0.2)
    assert double.dtype == torch.float64


# ---- export ---------------------------------------------------------------------------------------------------------


@each_network
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_gives_the_same_logits_at_other_sizes(name):
    network = narrow(name).eval()
    traced = torch.jit.trace(network, image_for(name), check_trace=False)
    for image in (image_for(name), image_for(name, batch=1, scale=3)):
        with torch.no_grad():
            torch.testing.assert_close(traced(image), network(image))


@pytest.mark.slow
@each_network
def test_an_onnx_graph_gives_the_same_logits_at_two_sizes(name, tmp_path: Path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from monai_kd.export.onnx import onnx_parity, write_onnx

    network, path = narrow(name).eval(), tmp_path / "model.onnx"
    write_onnx(network, path, image_for(name))
    parity = onnx_parity(network, path, [image_for(name), image_for(name, batch=1, scale=3)])
    assert parity["max_logit_difference"] < 1e-4 * network(image_for(name)).abs().max()
    assert parity["label_agreement"] > 0.999
