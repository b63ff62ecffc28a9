"""The authors' weights of MedNeXt: every name has its place, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_kd.networks.nets.official_mednext import OfficialMedNeXt
from monai_kd.teachers import load_report
from monai_kd.teachers.published_mednext import convert_published_mednext, load_published_mednext

WIDTH, CLASSES = 2, 3
BLOCKS = (2,) * 9
# enc_block_0 to 3, bottleneck, dec_block_3 to 0 in the variant B; down_i and up_i have the ratio of where they lead
RATIOS = (2, 3, 4, 4, 4, 4, 4, 3, 2)


def published_state(heads: bool = False) -> dict[str, Tensor]:
    """The file of a 2-D B of two channels, written from the names and shapes of the authors' network."""
    generator = torch.Generator().manual_seed(3)
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(*shape, generator=generator)
        transposed = name.endswith("conv_out") or (name.startswith("up") and name.endswith("res_conv"))
        state[f"{name}.bias"] = torch.randn(shape[1 if transposed else 0], generator=generator)

    def block(name: str, before: int, after: int, ratio: int) -> None:
        layer(f"{name}.conv1", before, 1, 3, 3)
        layer(f"{name}.norm", before)
        layer(f"{name}.conv2", ratio * before, before, 1, 1)
        layer(f"{name}.conv3", after, ratio * before, 1, 1)

    widths = [WIDTH * 2**level for level in range(5)]
    layer("stem", WIDTH, 1, 1, 1)
    for stage, ratio in enumerate(RATIOS):
        level = min(stage, 8 - stage)
        name = "bottleneck" if stage == 4 else f"{'enc' if stage < 4 else 'dec'}_block_{level}"
        for number in range(BLOCKS[stage]):
            block(f"{name}.{number}", widths[level], widths[level], ratio)
    for level in range(4):
        here, below = widths[level], widths[level + 1]
        block(f"down_{level}", here, below, RATIOS[level + 1])
        layer(f"down_{level}.res_conv", below, here, 1, 1)
        block(f"up_{level}", below, here, RATIOS[8 - level])
        layer(f"up_{level}.res_conv", below, here, 1, 1)
    for level in range(5 if heads else 1):
        layer(f"out_{level}.conv_out", widths[level], CLASSES, 1, 1)
    state["dummy_tensor"] = torch.ones(1)
    return state


def make_network(**settings: object) -> OfficialMedNeXt:
    torch.manual_seed(0)
    return OfficialMedNeXt(2, 1, CLASSES, **{"variant": "B", "init_filters": WIDTH, **settings})  # type: ignore[arg-type]


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("heads", [False, True])
def test_every_weight_has_its_place_and_counts(tmp_path, heads):
    state, image = published_state(heads), torch.rand(1, 1, 32, 32)
    network = make_network(deep_supervision=heads)
    before = network.eval()(image)
    assert load_published_mednext(network, save(tmp_path / "model.pt", state)) is network
    assert not torch.equal(network(image), before)
    own = network.state_dict()
    assert len(own) == len(state) - 1
    for theirs, ours in {
        "enc_block_1.0.conv2": "enc_stages.1.0.conv2",
        "down_2.conv3": "down_blocks.2.conv3",
        "bottleneck.1.norm": "bottleneck.1.norm",
        "up_3.res_conv": "up_blocks.0.res_conv",
        "dec_block_0.1.conv1": "dec_stages.3.1.conv1",
        "out_0.conv_out": "out_0.conv_out",
        **({"out_4.conv_out": "out_blocks.0.conv_out", "out_1.conv_out": "out_blocks.3.conv_out"} if heads else {}),
    }.items():
        for kind in ("weight", "bias"):
            assert torch.equal(own[f"{ours}.{kind}"], state[f"{theirs}.{kind}"]), theirs
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert load_report(network).loaded == len(own)


def test_heads_of_the_file_that_the_network_lacks_are_left_out_and_no_others(tmp_path):
    with_heads, without = (save(tmp_path / f"{heads}.pt", published_state(heads)) for heads in (True, False))
    load_published_mednext(make_network(), with_heads)
    with pytest.raises(ValueError, match=r"another OfficialMedNeXt: it lacks out_blocks.0.conv_out.weight, .* 3 more$"):
        load_published_mednext(make_network(deep_supervision=True), without)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_checkpoint_of_nnunet_is_read_with_its_log(tmp_path, freeze):
    state = {f"module.{key}": value for key, value in published_state().items()}
    log = [[np.float32(0.5)], [np.float64(0.25)]]
    path = save(tmp_path / "model_best.model", {"epoch": 3, "state_dict": state, "plot_stuff": log})
    network = load_published_mednext(make_network(), str(path), freeze=freeze)
    assert torch.equal(network.stem.weight, state["module.stem.weight"])  # type: ignore[union-attr, arg-type]
    assert all(parameter.requires_grad != freeze for parameter in network.parameters())


def test_a_name_that_their_network_lacks_is_named():
    state = {**published_state(), "enc_block_0.0.grn_beta": torch.zeros(1), "enc_block_4.0.conv1.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"MedNeXt: it has no enc_block_0.0.grn_beta, enc_block_4.0.conv1.weight$"):
        convert_published_mednext(state)
    with pytest.raises(ValueError, match="MedNeXt: there are none"):
        convert_published_mednext({})
    with pytest.raises(ValueError, match=r"no tensors are stem\.weight"):
        convert_published_mednext({"stem.weight": "text"})  # type: ignore[dict-item]


def test_another_variant_kernel_or_number_of_classes_is_named(tmp_path):
    path = save(tmp_path / "model.pt", published_state())
    kept = make_network(kernel_size=5)
    before = kept.stem.weight.clone()
    with pytest.raises(
        ValueError, match=r"model.pt' .* other shapes have enc_stages.0.0.conv1.weight \(file \(2, 1, 3, 3"
    ):
        load_published_mednext(kept, path)
    assert torch.equal(kept.stem.weight, before)
    with pytest.raises(ValueError, match=r"it lacks enc_stages.0.2.conv1.weight"):
        load_published_mednext(make_network(variant="M"), path)
    with pytest.raises(ValueError, match=r"out_0.conv_out.weight \(file \(2, 3, 1, 1\), network \(2, 5, 1, 1\)\)"):
        load_published_mednext(OfficialMedNeXt(2, 1, 5, "B", init_filters=WIDTH), path)
    less = published_state()
    del less["up_0.norm.bias"]
    with pytest.raises(ValueError, match=r"it lacks up_blocks.3.norm.bias$"):
        load_published_mednext(make_network(), save(tmp_path / "less.pt", less))


def test_a_missing_file_and_one_of_something_else_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights '.*none.pt' do not exist"):
        load_published_mednext(make_network(), tmp_path / "none.pt")
    with pytest.raises(ValueError, match="has no state_dict; its keys: epoch"):
        load_published_mednext(make_network(), save(tmp_path / "x.model", {"epoch": 3}))
