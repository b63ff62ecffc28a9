"""The authors' weights of MISSFormer: every name has its place, dead ones are left out, what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from monai_kd.networks.nets.missformer import MISSFormer
from monai_kd.teachers import load_report
from monai_kd.teachers.published_missformer import (
    convert_published_missformer,
    dead_missformer_keys,
    load_published_missformer,
)

CHANNELS, CLASSES = (4, 8, 20, 32), 3


def published_state(channels: tuple[int, ...] = CHANNELS, device: str = "cpu") -> dict[str, Tensor]:
    """The authors' file at other widths, written from the names and shapes of their network."""
    generator = torch.Generator().manual_seed(3)
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        drawn = torch.empty(*shape, device="meta") if device == "meta" else torch.randn(*shape, generator=generator)
        state[f"{name}.weight"] = drawn
        if bias:
            state[f"{name}.bias"] = drawn.flatten(1)[:, 0] if drawn.ndim > 1 else drawn + 1

    def attention(name: str, width: int) -> None:
        layer(f"{name}.q", width, width)
        layer(f"{name}.kv", 2 * width, width)
        layer(f"{name}.proj", width, width)

    def perceptron(name: str, width: int) -> None:
        layer(f"{name}.fc1", 4 * width, width)
        layer(f"{name}.dwconv.dwconv", 4 * width, 1, 3, 3)
        layer(f"{name}.fc2", width, 4 * width)
        for number in (1, 2, 3):
            layer(f"{name}.norm{number}", 4 * width)

    def block(name: str, level: int) -> None:
        width, reduction = channels[level], 8 // 2**level
        for number in (1, 2):
            layer(f"{name}.norm{number}", width)
        attention(f"{name}.attn", width)
        if reduction > 1:
            layer(f"{name}.attn.sr", width, width, reduction, reduction)
            layer(f"{name}.attn.norm", width)
        perceptron(f"{name}.mlp", width)

    def bridge(name: str) -> None:
        width = channels[0]
        for number in (1, 2):
            layer(f"{name}.norm{number}", width)
        attention(f"{name}.attn", width)
        layer(f"{name}.attn.scale_reduce.norm", width)
        for level, own in enumerate(channels):
            if level < 3:
                layer(f"{name}.attn.scale_reduce.sr{level}", own, own, 8 // 2**level, 8 // 2**level)
            perceptron(f"{name}.mixffn{level + 1}", own)

    for level, width in enumerate(channels):
        kernel = 3 if level else 7
        layer(f"backbone.patch_embed{level + 1}.proj", width, channels[level - 1] if level else 3, kernel, kernel)
        layer(f"backbone.patch_embed{level + 1}.norm", width)
        layer(f"backbone.norm{level + 1}", width)
        for number in (0, 1):
            block(f"backbone.block{level + 1}.{number}", level)
            block(f"decoder_{level}.layer_former_{number + 1}", level)
        below = channels[level + 1] // 2 if level < 3 else width  # the lowest would join two maps of its own width
        layer(f"decoder_{level}.concat_linear", width, below + width)
        layer(f"decoder_{level}.layer_up.expand", (2 if level else 16) * width, width, bias=False)
        layer(f"decoder_{level}.layer_up.norm", width // 2 if level else width)
        bridge(f"bridge.bridge_layer{level + 1}")
    layer("decoder_0.last_layer", CLASSES if channels == CHANNELS else 9, channels[0], 1, 1)
    return state


def make_network() -> MISSFormer:
    torch.manual_seed(0)
    return MISSFormer(2, 1, CLASSES, CHANNELS)


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrapped", [False, True])
def test_every_weight_has_its_place_and_counts(tmp_path, wrapped):
    state, image = published_state(), torch.rand(1, 1, 32, 64)
    saved = {f"module.{key}": value for key, value in state.items()} if wrapped else state
    network = make_network()
    before = network.eval()(image)
    assert load_published_missformer(network, save(tmp_path / "epoch_399.pth", saved)) is network
    assert not torch.equal(network(image), before)
    own = network.state_dict()
    for theirs, ours in {
        "backbone.patch_embed2.norm": "stages.1.embed_norm",
        "backbone.block3.1.attn.sr": "stages.2.blocks.1.attention.reduce",
        "bridge.bridge_layer4.mixffn2.dwconv.dwconv": "bridge.layers.3.mlps.1.depthwise",
        "bridge.bridge_layer1.attn.scale_reduce.sr2": "bridge.layers.0.attention.reduce.2",
        "decoder_2.concat_linear": "up.0.join",
        "decoder_0.layer_former_2.mlp.norm1": "up.2.blocks.1.mlp.norm",
        "decoder_3.layer_up.norm": "up.0.expand.norm",
        "decoder_0.layer_up.norm": "raise_.norm",
        "decoder_0.last_layer": "head",
    }.items():
        for kind in ("weight", "bias"):
            assert torch.equal(own[f"{ours}.{kind}"], state[f"{theirs}.{kind}"]), theirs
    joined = state["bridge.bridge_layer2.attn.kv.weight"]
    assert torch.equal(own["bridge.layers.1.attention.attend.to_k.weight"], joined[:4])
    assert torch.equal(own["bridge.layers.1.attention.attend.to_v.weight"], joined[4:])
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert load_report(network).loaded == len(own)


def test_the_names_are_those_of_the_published_numbers_of_parameters():
    with torch.device("meta"):
        state, network = published_state((64, 128, 320, 512), "meta"), MISSFormer(2, 1, 9)
    assert sum(value.numel() for value in state.values()) == 42_462_537
    dead = dead_missformer_keys()
    assert dead <= state.keys()
    assert sum(state[key].numel() for key in dead) == 7_009_792
    converted = convert_published_missformer(state)
    own = network.state_dict()
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in own.items()}


def test_dead_weights_may_lack_and_change_nothing(tmp_path):
    state = published_state()
    converted = convert_published_missformer(state)
    without = {key: value for key, value in state.items() if key not in dead_missformer_keys()}
    other = convert_published_missformer(without)
    assert converted.keys() == other.keys() == make_network().state_dict().keys()
    assert all(torch.equal(converted[key], other[key]) for key in converted)


def test_other_names_and_lacking_ones_are_named():
    state = {**published_state(), "backbone.norm5.weight": torch.ones(1), "decoder_3.last_layer.bias": torch.ones(1)}
    del state["backbone.block1.0.attn.kv.bias"], state["decoder_1.concat_linear.weight"]
    with pytest.raises(ValueError) as caught:
        convert_published_missformer(state)
    assert str(caught.value) == (
        "these are not the weights of the authors' MISSFormer: they lack decoder_1.concat_linear.weight, "
        "backbone.block1.0.attn.kv.bias; it has no backbone.norm5.weight, decoder_3.last_layer.bias"
    )


def test_other_shapes_are_named_and_nothing_is_loaded(tmp_path):
    path = save(tmp_path / "model.pth", published_state())
    network = MISSFormer(2, 1, 5, CHANNELS)
    before = network.stages[0].embed.weight.clone()
    with pytest.raises(
        ValueError, match=r"model.pth' .* MISSFormer: other shapes have head.weight \(file \(3, 4, 1, 1"
    ):
        load_published_missformer(network, path)
    with pytest.raises(ValueError, match=r"it has besides bridge.layers.2.norm_attention.weight"):
        load_published_missformer(MISSFormer(2, 1, 3, CHANNELS, bridge_layers=2), path)
    assert torch.equal(network.stages[0].embed.weight, before)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights '.*none.pth' do not exist"):
        load_published_missformer(make_network(), tmp_path / "none.pth")
