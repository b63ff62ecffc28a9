"""load_weights: a file's weights, all of them, or a message that names the file and what differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from monai_kd.networks import RouteModalities
from monai_kd.teachers import load_report, load_weights


def make_network(width: int = 4, fill: float | None = None) -> nn.Sequential:
    network = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))
    if fill is not None:
        for parameter in network.parameters():
            nn.init.constant_(parameter, fill)
    return network


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("under", [None, "model", "state_dict", "network"])
@pytest.mark.parametrize("as_text", [True, False])
def test_every_weight_is_read_and_the_network_returned(tmp_path, under, as_text):
    state = make_network(fill=7.0).state_dict()
    path = save(tmp_path / "model.pt", state if under is None else {under: state})
    network = make_network()
    assert load_weights(network, str(path) if as_text else path) is network
    assert all((parameter == 7.0).all() for parameter in network.parameters())


def test_a_routed_network_reads_the_bare_file_of_the_network(tmp_path):
    path = save(tmp_path / "model.pt", make_network(fill=7.0).state_dict())
    routed = load_weights(RouteModalities(make_network(), [2]), path)
    assert (routed.network[0].weight == 7.0).all()


@pytest.mark.parametrize("freeze", [True, False])
def test_networks_that_were_loaded_together_know_their_file_each(tmp_path, freeze):
    path = save(tmp_path / "model.pt", nn.ModuleDict({"a": make_network(), "b": make_network(5)}).state_dict())
    both = load_weights(nn.ModuleDict({"a": make_network(), "b": make_network(5)}), path, freeze=freeze)
    for network in (both, both["a"], both["b"]):
        assert load_report(network).weights == path
        assert all(parameter.requires_grad != freeze for parameter in network.parameters())
    with pytest.raises(ValueError, match="Conv2d has no load report"):
        load_report(both["a"][0])


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"weights '.*model.pt' do not exist; train them first, or give the path"
    ):
        load_weights(make_network(), tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="do not exist"):
        load_weights(make_network(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"no weights at all", None])
def test_a_damaged_file_is_named(tmp_path, content):
    path = save(tmp_path / "model.pt", make_network().state_dict())
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(ValueError, match=r"model.pt' is no readable PyTorch checkpoint, damaged or cut short"):
        load_weights(make_network(), path)


@pytest.mark.parametrize("kept", [1_000, 20_000, 100_000, 399_000])
def test_a_file_that_was_cut_short_is_named_wherever_the_cut_is(tmp_path, kept):
    path = save(tmp_path / "model.pt", {"weight": torch.zeros(100_000)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model.pt' is no readable PyTorch checkpoint, damaged or cut short"):
        load_weights(make_network(), path)


def test_a_pointer_to_large_files_is_told_apart(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="is a Git LFS pointer, not the weights"):
        load_weights(make_network(), path)


def test_a_file_of_something_else_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds a list, not a state dict"):
        load_weights(make_network(), save(tmp_path / "list.pt", [1, 2]))


def test_other_shapes_are_named_with_the_first(tmp_path):
    path = save(tmp_path / "model.pt", make_network(8).state_dict())
    with pytest.raises(
        ValueError, match=r"model.pt' holds the weights of another Sequential: .*size mismatch for 0.weight"
    ):
        load_weights(make_network(), path)


def test_keys_that_lack_and_keys_that_are_besides_are_counted(tmp_path):
    state = make_network().state_dict()
    del state["0.bias"], state["2.bias"]
    with pytest.raises(ValueError, match=r"another network than this Sequential: it lacks 2, such as 0.bias$"):
        load_weights(make_network(), save(tmp_path / "less.pt", state))
    state["head.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"it lacks 2, such as 0.bias; it has besides 1, such as head.weight"):
        load_weights(make_network(), save(tmp_path / "other.pt", state))


def test_code_in_a_file_does_not_run(tmp_path):
    with pytest.raises(ValueError, match="needs code to unpickle"):
        load_weights(make_network(), save(tmp_path / "model.pt", make_network()))
