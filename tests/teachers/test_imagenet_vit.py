"""Published weights in a TransUNet: names, layouts, what is refused, and that the forward uses what was loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet
from scipy import ndimage
from torch import Tensor, nn

from monai_kd.networks import RouteModalities
from monai_kd.networks.nets.transunet import TransUNet
from monai_kd.teachers.imagenet_vit import load_imagenet_vit
from monai_kd.teachers.published_transunet import load_published_transunet
from monai_kd.teachers.report import load_report

CHANNELS, BLOCKS, HIDDEN, MLP, LAYERS, HEADS, GRID = (8, 32, 64, 96), (1, 2, 1), 24, 32, 2, 4, 3
DECODER = (32, 16, 12, 8, 4)
ATTENTION = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1"
NOT_USED = ["cls", "head/kernel", "head/bias", "pre_logits/kernel", "pre_logits/bias"]
HYBRID, TRANSFORMER = "R50+ViT-B_16.npz", "ViT-B_16.npz"


def make(seed: int = 0, **settings: Any) -> TransUNet:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"channels": CHANNELS, "residual_blocks": BLOCKS, "norm_groups": 4, "num_layers": LAYERS}
    sizes |= {"hidden_size": HIDDEN, "mlp_dim": MLP, "num_heads": HEADS, "position_grid": GRID}
    return TransUNet(2, **{"in_channels": 1, "out_channels": 3, "decoder_channels": DECODER, **sizes, **settings})


def image() -> Tensor:
    return torch.rand(2, 1, 48, 48, generator=torch.Generator().manual_seed(1))


def transformer_arrays(grid: int = GRID, patch: int = 16, width: int = 3) -> dict[str, np.ndarray]:
    """The arrays of a vision transformer with the shapes that their authors give them."""
    draw = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return draw.normal(size=shape, scale=0.3).astype(np.float32)

    found = {"embedding/kernel": array(patch, patch, width, HIDDEN), "embedding/bias": array(HIDDEN)}
    found |= {"cls": array(1, 1, HIDDEN), "head/kernel": array(HIDDEN, 7), "head/bias": array(7)}
    found |= {"pre_logits/kernel": array(HIDDEN, HIDDEN), "pre_logits/bias": array(HIDDEN)}
    found["Transformer/posembed_input/pos_embedding"] = array(1, 1 + grid**2, HIDDEN)
    norms = ["Transformer/encoder_norm"]
    for number in range(LAYERS):
        block, attention = f"Transformer/encoderblock_{number}", ATTENTION.format(number)
        norms += [f"{block}/LayerNorm_0", f"{block}/LayerNorm_2"]
        for part in ("query", "key", "value"):
            found[f"{attention}/{part}/kernel"] = array(HIDDEN, HEADS, HIDDEN // HEADS)
            found[f"{attention}/{part}/bias"] = array(HEADS, HIDDEN // HEADS)
        found[f"{attention}/out/kernel"] = array(HEADS, HIDDEN // HEADS, HIDDEN)
        found[f"{attention}/out/bias"] = array(HIDDEN)
        for layer, (before, after) in enumerate(((HIDDEN, MLP), (MLP, HIDDEN))):
            found[f"{block}/MlpBlock_3/Dense_{layer}/kernel"] = array(before, after)
            found[f"{block}/MlpBlock_3/Dense_{layer}/bias"] = array(after)
    found |= {f"{name}/{kind}": array(HIDDEN) for name in norms for kind in ("scale", "bias")}
    return found


def hybrid_arrays(grid: int = GRID) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)

    def array(*shape: int) -> np.ndarray:
        return draw.normal(size=shape, scale=0.3).astype(np.float32)

    def norm(name: str, width: int) -> dict[str, np.ndarray]:
        return {f"{name}/scale": array(1, 1, 1, width), f"{name}/bias": array(1, 1, 1, width)}

    found = {"conv_root/kernel": array(7, 7, 3, CHANNELS[0]), **norm("gn_root", CHANNELS[0])}
    for stage, count in enumerate(BLOCKS):
        before, after = CHANNELS[stage : stage + 2]
        for number in range(count):
            unit, inner = f"block{stage + 1}/unit{number + 1}", after // 4
            found[f"{unit}/conv1/kernel"] = array(1, 1, after if number else before, inner)
            found[f"{unit}/conv2/kernel"] = array(3, 3, inner, inner)
            found[f"{unit}/conv3/kernel"] = array(1, 1, inner, after)
            found |= norm(f"{unit}/gn1", inner) | norm(f"{unit}/gn2", inner) | norm(f"{unit}/gn3", after)
            if not number:
                found[f"{unit}/conv_proj/kernel"] = array(1, 1, before, after)
                found |= norm(f"{unit}/gn_proj", after)
    return found | transformer_arrays(grid, patch=1, width=CHANNELS[-1])


ARRAYS: dict[str, Callable[[], dict[str, np.ndarray]]] = {HYBRID: hybrid_arrays, TRANSFORMER: transformer_arrays}


def save(folder: Path, arrays: dict[str, np.ndarray], name: str = HYBRID) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def moves(load: Callable[..., Any], path: Path, write: Callable[[str | None], object], keys: list[str]) -> list[str]:
    """Tell which keys change what a network makes of an image, in double precision, when their values change."""
    network, results = make().double(), []
    picture = image()[:1, :, :32].double()
    for key in (None, *keys):
        write(key)
        load(network, path)
        with torch.no_grad():
            features, skips = network.eval().encode(picture)
            results.append(
                torch.cat([value.flatten() for value in (features, *skips, network.decode(features, skips))])
            )
    return [key for key, result in zip(keys, results[1:], strict=True) if (result - results[0]).abs().max() > 1e-9]


# ---- what is loaded -------------------------------------------------------------------------------------------------


def test_the_hybrid_file_sets_the_encoder_and_says_so(tmp_path, caplog):
    path, network = save(tmp_path, hybrid_arrays()), make()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with caplog.at_level(logging.INFO, "monai_kd"):
        assert load_imagenet_vit(network, path) is network
    report, after = load_report(network), network.state_dict()
    same = {key for key in after if torch.equal(after[key], before[key])}
    assert same == set(report.missing)
    assert {key.partition(".")[0] for key in same} == {"enter", "up", "head"}
    assert report.loaded == len(after) - len(same)
    assert sorted(report.unexpected) == sorted(NOT_USED)
    assert report.weights == path
    used = len(hybrid_arrays()) - len(NOT_USED)
    assert f"{used} of {used + 5} arrays used; ignored: cls, head/kernel" in caplog.text
    assert f"{report.loaded} tensors of the network set, {len(same)} keep their values: enter, up, head" in caplog.text
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network.training


def test_the_transformer_file_sets_the_transformer_alone(tmp_path, caplog):
    network = make()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with caplog.at_level(logging.INFO, "monai_kd"):
        load_imagenet_vit(network, save(tmp_path, transformer_arrays(), TRANSFORMER))
    after = network.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert moved == {key for key in after if key.startswith("transformer.") and ".embedding." not in key}
    assert sorted(load_report(network).unexpected) == sorted([*NOT_USED, "embedding/kernel", "embedding/bias"])
    assert "keep their values: root, stages, transformer, enter, up, head" in caplog.text


def test_every_array_is_where_its_formula_has_it(tmp_path):
    arrays = hybrid_arrays()
    network, features = load_imagenet_vit(make(), save(tmp_path, arrays)).eval(), torch.randn(2, 5, HIDDEN)
    np.testing.assert_array_equal(network.root[0].weight.detach()[3, 1], arrays["conv_root/kernel"][:, :, 1, 3])
    unit = network.stages[1][1]
    np.testing.assert_array_equal(unit.conv2.weight.detach()[5, 2], arrays["block2/unit2/conv2/kernel"][:, :, 2, 5])
    np.testing.assert_array_equal(unit.norm3.weight.detach(), arrays["block2/unit2/gn3/scale"].ravel())
    projection = network.stages[2][0].shortcut[0].weight.detach()
    np.testing.assert_array_equal(projection[7, 3, 0, 0], arrays["block3/unit1/conv_proj/kernel"][0, 0, 3, 7])
    block, own = network.transformer.blocks[1], ATTENTION.format(1)
    with torch.no_grad():
        got, mlp = block.attention(features), block.mlp(features)
    query, key, value = (
        np.einsum("bnd,dhc->bhnc", features, arrays[f"{own}/{part}/kernel"])
        + arrays[f"{own}/{part}/bias"][None, :, None]
        for part in ("query", "key", "value")
    )
    score = np.einsum("bhnc,bhmc->bhnm", query, key) / (HIDDEN // HEADS) ** 0.5
    share = np.exp(score - score.max(-1, keepdims=True))
    seen = np.einsum("bhnm,bhmc->bhnc", share / share.sum(-1, keepdims=True), value)
    expected = np.einsum("bhnc,hcd->bnd", seen, arrays[f"{own}/out/kernel"]) + arrays[f"{own}/out/bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    first, second = (f"Transformer/encoderblock_1/MlpBlock_3/Dense_{layer}" for layer in (0, 1))
    hidden = nn.functional.gelu(features @ torch.from_numpy(arrays[f"{first}/kernel"]) + arrays[f"{first}/bias"])
    expected = hidden.numpy() @ arrays[f"{second}/kernel"] + arrays[f"{second}/bias"]
    np.testing.assert_allclose(mlp, expected, rtol=1e-4, atol=1e-5)


def test_every_used_array_changes_the_forward_and_no_other_does(tmp_path):
    """But for the keys' biases, which add the same to each score of a query."""
    arrays, noise = hybrid_arrays(), np.random.default_rng(2)

    def write(key: str | None) -> None:
        changed = {} if key is None else {key: arrays[key] + noise.normal(size=arrays[key].shape).astype(np.float32)}
        save(tmp_path, {**arrays, **changed})

    keys = [key for key in arrays if not re.match(r"block[13]/|.*encoderblock_0/", key)]  # their like is elsewhere
    assert len(keys) > 40
    moved = moves(load_imagenet_vit, tmp_path / HYBRID, write, keys)
    silent = [key for key in keys if key not in moved]
    assert sorted(silent) == sorted([*NOT_USED, f"{ATTENTION.format(1)}/key/bias"])


@pytest.mark.parametrize("class_token", [True, False])
def test_positions_lose_the_class_token_and_are_zoomed(tmp_path, class_token):
    for name, arrays in ((HYBRID, hybrid_arrays(grid=5)), (TRANSFORMER, transformer_arrays(grid=5))):
        table = arrays["Transformer/posembed_input/pos_embedding"]
        places = table[0, 1:].reshape(5, 5, HIDDEN)
        if not class_token:
            arrays["Transformer/posembed_input/pos_embedding"] = table[:, 1:]
        path = save(tmp_path, arrays, name)
        for grid in (5, 3, 8):
            network = load_imagenet_vit(make(position_grid=grid), path)
            expected = ndimage.zoom(places, (grid / 5, grid / 5, 1), order=1).transpose(2, 0, 1)
            np.testing.assert_allclose(network.transformer.positions.detach()[0], expected, atol=1e-6)


def test_a_wrapped_network_is_set_too(tmp_path):
    path = save(tmp_path, hybrid_arrays())
    routed = load_imagenet_vit(RouteModalities(make(), [2]), path)
    assert torch.equal(routed.network.transformer.positions, load_imagenet_vit(make(), path).transformer.positions)


# ---- what is refused ------------------------------------------------------------------------------------------------


REQUIRED = ["Transformer/posembed_input/pos_embedding", "Transformer/encoder_norm/bias"]
REQUIRED += [f"{ATTENTION.format(1)}/{name}" for name in ("key/kernel", "value/bias", "out/kernel")]
REQUIRED += [f"Transformer/encoderblock_0/{name}" for name in ("LayerNorm_2/scale", "MlpBlock_3/Dense_1/kernel")]
STAGES = ["conv_root/kernel", "gn_root/bias", "block3/unit1/conv_proj/kernel", "block2/unit2/gn3/scale"]
STAGES += ["block1/unit1/conv2/kernel", "embedding/kernel", "embedding/bias"]


@pytest.mark.parametrize(("name", "keys"), [(HYBRID, REQUIRED + STAGES), (TRANSFORMER, REQUIRED)])
def test_a_missing_key_is_named_and_the_network_left_alone(tmp_path, name, keys):
    network, before = make(), make()
    for key in keys:
        arrays = ARRAYS[name]()
        del arrays[key]
        with pytest.raises(ValueError, match=rf"lacks '{key}' of this TransUNet"):
            load_imagenet_vit(network, save(tmp_path, arrays, name))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))


def test_many_missing_keys_are_counted(tmp_path):
    path = save(tmp_path, {"other": np.zeros(1)})
    with pytest.raises(ValueError, match=r"lacks 'Transformer/posembed_input/pos_embedding', .* and \d+ more of this"):
        load_imagenet_vit(make(), path)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("conv_root/kernel", (7, 7, 2, 8), r"which makes \(8, 2, 7, 7\); 'root.0.weight' of this network is \(8, 3,"),
        ("block1/unit1/conv1/kernel", (8, 8), "cannot become 'stages.0.0.conv1.weight' "),
        ("gn_root/scale", (9,), r"which makes \(9,\); 'root.1.weight' of this network is \(8,\)"),
        ("embedding/kernel", (2, 2, 96, 24), r"'transformer.embedding.weight' of this network is \(24, 96, 1, 1\)"),
        ("Transformer/posembed_input/pos_embedding", (1, 7, 24), "7 tokens fill no square"),
        ("Transformer/posembed_input/pos_embedding", (10, 24), r"a table of positions is \(1, tokens, hidden\)"),
        ("Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel", (24, 48), r"makes \(48, 24\)"),
        (f"{ATTENTION.format(0)}/query/kernel", (24, 6, 4), "cannot become .* the network has 4 heads"),
        (f"{ATTENTION.format(0)}/key/bias", (6, 4), "cannot become .* the network has 4 heads"),
    ],
)
def test_a_wrong_shape_is_named(tmp_path, key, shape, message):
    arrays = {**hybrid_arrays(), key: np.zeros(shape, np.float32)}
    with pytest.raises(ValueError, match=message) as caught:
        load_imagenet_vit(make(), save(tmp_path, arrays))
    assert f"'{key}' {shape}" in str(caught.value)


@pytest.mark.parametrize("settings", [{"num_layers": 1}, {"residual_blocks": (1, 1, 1)}])
def test_blocks_that_the_network_lacks_are_refused(tmp_path, settings):
    with pytest.raises(ValueError, match=r"also has '.*(encoderblock_1|block2/unit2)/.* and \d+ more, which this"):
        load_imagenet_vit(make(**settings), save(tmp_path, hybrid_arrays()))


def test_another_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is for a TransUNet, got BasicUNet, which has no 'transformer.positions'"):
        load_imagenet_vit(BasicUNet(2, 1, 2), save(tmp_path, hybrid_arrays()))


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights '.*ViT-B_16.npz' do not exist; download"):
        load_imagenet_vit(make(), tmp_path / HYBRID)
    whole = save(tmp_path, hybrid_arrays()).read_bytes()
    for content in (b"", b"no arrays at all", whole[:2000]):
        (tmp_path / HYBRID).write_bytes(content)
        with pytest.raises(ValueError, match=r"ViT-B_16.npz' is no readable .npz of arrays"):
            load_imagenet_vit(make(), tmp_path / HYBRID)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"one.npy' is no readable .npz"):
        load_imagenet_vit(make(), tmp_path / "one.npy")
    with pytest.raises(ValueError, match=r"is no readable .npz of arrays.*allow_pickle"):
        load_imagenet_vit(make(), save(tmp_path, {"cls": np.array([object()], dtype=object)}))


# ---- checkpoints of the authors' code -------------------------------------------------------------------------------


def published(grid: int = GRID, seed: int = 3) -> dict[str, Tensor]:
    """A state dict with the names and shapes of the authors' code, of random numbers."""
    torch.manual_seed(seed)
    found: dict[str, Tensor] = {}

    def put(name: str, *shape: int) -> None:
        found[name] = torch.randn(*shape) * 0.3

    def both(name: str, *shape: int) -> None:
        put(f"{name}.weight", *shape)
        put(f"{name}.bias", shape[0])

    def conv_norm(name: str, before: int, after: int) -> None:
        put(f"{name}.0.weight", after, before, 3, 3)
        both(f"{name}.1", after)
        put(f"{name}.1.running_mean", after)
        found[f"{name}.1.running_var"] = torch.rand(after) + 0.5
        found[f"{name}.1.num_batches_tracked"] = torch.tensor(11)

    embeddings, encoder = "transformer.embeddings", "transformer.encoder"
    put(f"{embeddings}.position_embeddings", 1, grid**2, HIDDEN)
    put(f"{embeddings}.hybrid_model.root.conv.weight", CHANNELS[0], 3, 7, 7)
    both(f"{embeddings}.hybrid_model.root.gn", CHANNELS[0])
    for stage, count in enumerate(BLOCKS):
        before, after = CHANNELS[stage : stage + 2]
        for number in range(count):
            unit = f"{embeddings}.hybrid_model.body.block{stage + 1}.unit{number + 1}"
            put(f"{unit}.conv1.weight", after // 4, after if number else before, 1, 1)
            put(f"{unit}.conv2.weight", after // 4, after // 4, 3, 3)
            put(f"{unit}.conv3.weight", after, after // 4, 1, 1)
            for norm, width in (("gn1", after // 4), ("gn2", after // 4), ("gn3", after)):
                both(f"{unit}.{norm}", width)
            if not number:
                put(f"{unit}.downsample.weight", after, before, 1, 1)
                both(f"{unit}.gn_proj", after)
    both(f"{embeddings}.patch_embeddings", HIDDEN, CHANNELS[-1], 1, 1)
    for number in range(LAYERS):
        block = f"{encoder}.layer.{number}"
        both(f"{block}.attention_norm", HIDDEN)
        both(f"{block}.ffn_norm", HIDDEN)
        both(f"{block}.ffn.fc1", MLP, HIDDEN)
        both(f"{block}.ffn.fc2", HIDDEN, MLP)
        for part in ("query", "key", "value", "out"):
            both(f"{block}.attn.{part}", HIDDEN, HIDDEN)
    both(f"{encoder}.encoder_norm", HIDDEN)
    conv_norm("decoder.conv_more", HIDDEN, DECODER[0])
    skips = (CHANNELS[2], CHANNELS[1], CHANNELS[0], 0)
    for level, skip in enumerate(skips):
        conv_norm(f"decoder.blocks.{level}.conv1", DECODER[level] + skip, DECODER[level + 1])
        conv_norm(f"decoder.blocks.{level}.conv2", DECODER[level + 1], DECODER[level + 1])
    both("segmentation_head.0", 3, DECODER[-1], 3, 3)
    return found


def checkpoint(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, folder / "epoch_149.pth")
    return folder / "epoch_149.pth"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_sets_every_tensor(tmp_path, prefix):
    state = {f"{prefix}{key}": value for key, value in published().items()}
    network = load_published_transunet(make(), checkpoint(tmp_path, state))
    report, own = load_report(network), network.state_dict()
    assert report.complete
    assert report.loaded == len(own)
    assert sum(value.numel() for value in own.values()) == sum(value.numel() for value in state.values())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    found = published()
    layer = "transformer.encoder.layer.1.attn"
    joined = torch.cat([found[f"{layer}.{part}.weight"] for part in ("query", "key", "value")])
    assert torch.equal(network.transformer.blocks[1].attention.qkv.weight, joined)
    positions = found["transformer.embeddings.position_embeddings"]
    assert torch.equal(network.transformer.positions.flatten(2).transpose(1, 2), positions)
    assert torch.equal(network.up[2].conv1[0].weight, found["decoder.blocks.2.conv1.0.weight"])
    assert torch.equal(network.up[3].conv2[1].running_var, found["decoder.blocks.3.conv2.1.running_var"])
    assert torch.equal(
        network.stages[1][0].norm2.bias, found["transformer.embeddings.hybrid_model.body.block2.unit1.gn2.bias"]
    )


def test_every_tensor_of_a_checkpoint_changes_the_forward(tmp_path):
    """But for the keys' biases, and the number of batches that a norm has seen."""
    state = published()

    def write(key: str | None) -> None:
        changed = {} if key is None else {key: torch.rand(state[key].shape).to(state[key].dtype)}
        checkpoint(tmp_path, {**state, **changed})

    keys = [key for key in state if not re.search(r"body.block[13]|layer.0", key)]
    assert len(keys) > 70
    moved = moves(load_published_transunet, tmp_path / "epoch_149.pth", write, keys)
    silent = [key for key in keys if key not in moved]
    assert len(silent) == 1 + 9
    assert all(key.endswith(("attn.key.bias", "num_batches_tracked")) for key in silent)


def test_a_checkpoint_may_be_trained_on_and_have_other_positions(tmp_path):
    path = checkpoint(tmp_path, published(grid=6))
    network = load_published_transunet(make(), path, freeze=False)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    places = published(grid=6)["transformer.embeddings.position_embeddings"].reshape(6, 6, HIDDEN)
    expected = ndimage.zoom(places.numpy(), (0.5, 0.5, 1), order=1).transpose(2, 0, 1)
    np.testing.assert_allclose(network.transformer.positions.detach()[0], expected, atol=1e-6)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    state = published()
    with pytest.raises(ValueError, match=r"also has 'transformer.encoder.layer.1.attention_norm.weight', .* 11 more"):
        load_published_transunet(make(num_layers=1), checkpoint(tmp_path, state))
    with pytest.raises(ValueError, match=r"'segmentation_head.0.weight' \(3, 4, 3, 3\), which makes"):
        load_published_transunet(make(out_channels=2), checkpoint(tmp_path, state))
    del state["decoder.conv_more.1.running_var"]
    with pytest.raises(ValueError, match=r"lacks 'decoder.conv_more.1.running_var' of this TransUNet"):
        load_published_transunet(make(), checkpoint(tmp_path, state))
    with pytest.raises(FileNotFoundError, match="do not exist"):
        load_published_transunet(make(), tmp_path / "other.pth")
