"""The authors' weights of MISSFormer for ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from monai_kd.teachers.published import check_tensors, fill_published, read_published, refuse, without_wrapper

__all__ = ["convert_published_missformer", "dead_missformer_keys", "load_published_missformer"]

_LEVELS = _BRIDGE_LAYERS = 4
_BLOCKS = 2
_KEYS_AND_VALUES = ".attn.kv."
_ATTENTION = {"attn.q": "attention.attend.to_q", "attn.proj": "attention.attend.out_proj"}
_PERCEPTRON = {"fc1": "expand", "dwconv.dwconv": "depthwise", "norm1": "norm", "fc2": "project"}
_SPARE_NORMS = ("norm2", "norm3")
_Names = Iterator[tuple[str, str]]


def load_published_missformer(network: nn.Module, path: str | Path, freeze: bool = True) -> nn.Module:
    """Give a network the weights of a file that the authors' code saved, freeze it, and return it.

    Args:
        network: :class:`monai_kd.networks.nets.missformer.MISSFormer` of the published channels, with 1 or 3 channels
            of the image and the file's classes.
        path: a state dict as in :func:`~monai_kd.teachers.load_weights`.
        freeze: ``False`` leaves it as it is, to be trained from these weights on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its weights are another network's; names those that do not fit.
    """
    return fill_published(network, convert_published_missformer(read_published(path)), path, freeze)


def convert_published_missformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' weights under our names.

    Args:
        state: under their names, such as ``backbone.block1.0.attn.q.weight``, with or without the ``module.`` of
            data-parallel training. Those of :func:`dead_missformer_keys` may lack and are left out. The map to keys and
            values is cut in two.

    Raises:
        ValueError: weights that their network does not have, or lacking ones; names them.

    Source: names from the repository ZhifangDeng/MISSFormer, networks/MISSFormer.py and networks/segformer.py.
    """
    bare = without_wrapper(state)
    what = "these are not the weights of the authors' MISSFormer"
    check_tensors(bare, what)
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _modules() for kind in _kinds(theirs)}
    joined = [f"{prefix}{_KEYS_AND_VALUES}{kind}" for prefix in _attentions() for kind in ("weight", "bias")]
    refuse(
        what,
        {
            "they lack": [key for key in (*names, *joined) if key not in bare],
            "it has no": [key for key in bare if key not in {*names, *joined, *dead_missformer_keys()}],
        },
    )
    converted = {ours: bare[theirs] for theirs, ours in names.items()}
    for key in joined:
        prefix, kind = key.split(_KEYS_AND_VALUES)
        keys, values = bare[key].chunk(2)
        converted[f"{_attentions()[prefix]}.attention.attend.to_k.{kind}"] = keys
        converted[f"{_attentions()[prefix]}.attention.attend.to_v.{kind}"] = values
    return converted


def dead_missformer_keys() -> frozenset[str]:
    """Return their names of the weights that no output of their network depends on.

    These are two layer norms in each perceptron, and the lowest level of the decoder but for its expansion.
    """
    spare = [f"{theirs}.{norm}" for theirs, _ in _perceptrons() for norm in _SPARE_NORMS]
    lowest = ["decoder_3.concat_linear"]
    for block in (f"decoder_3.layer_former_{number}" for number in (1, 2)):
        lowest += [f"{block}.{part}" for part in ("norm1", "norm2", *_ATTENTION, "attn.kv")]
        lowest += [f"{block}.mlp.{part}" for part in (*_PERCEPTRON, *_SPARE_NORMS)]
    return frozenset(f"{path}.{kind}" for path in (*spare, *lowest) for kind in ("weight", "bias"))


def _modules() -> _Names:
    """Yield their path and ours of every layer that runs, but for those that make keys and values."""
    for level in range(_LEVELS):
        yield f"backbone.patch_embed{level + 1}.proj", f"stages.{level}.embed"
        yield f"backbone.patch_embed{level + 1}.norm", f"stages.{level}.embed_norm"
        yield f"backbone.norm{level + 1}", f"stages.{level}.norm"
    for theirs, ours in _attentions().items():
        yield f"{theirs}.norm1", f"{ours}.norm_attention"
        yield f"{theirs}.norm2", f"{ours}.norm_mlp"
        yield from ((f"{theirs}.{own}", f"{ours}.{other}") for own, other in _ATTENTION.items())
    for theirs, ours, level in _blocks():
        if level < _LEVELS - 1:  # the lowest attends to its own grid
            yield f"{theirs}.attn.sr", f"{ours}.attention.reduce"
            yield f"{theirs}.attn.norm", f"{ours}.attention.norm"
    for theirs, ours in _bridge_layers():
        for level in range(_LEVELS - 1):
            yield f"{theirs}.attn.scale_reduce.sr{level}", f"{ours}.attention.reduce.{level}"
        yield f"{theirs}.attn.scale_reduce.norm", f"{ours}.attention.norm"
    for theirs, ours in _perceptrons():
        yield from ((f"{theirs}.{own}", f"{ours}.{other}") for own, other in _PERCEPTRON.items())
    for level in range(_LEVELS - 1):
        yield f"decoder_{level}.concat_linear", f"up.{_LEVELS - 2 - level}.join"
        yield from _expansion(f"decoder_{level + 1}", f"up.{_LEVELS - 2 - level}.expand")
    yield from _expansion("decoder_0", "raise_")
    yield "decoder_0.last_layer", "head"


def _expansion(theirs: str, ours: str) -> _Names:
    yield f"{theirs}.layer_up.expand", f"{ours}.linear"
    yield f"{theirs}.layer_up.norm", f"{ours}.norm"


def _kinds(theirs: str) -> tuple[str, ...]:
    return ("weight",) if theirs.endswith(".layer_up.expand") else ("weight", "bias")


def _blocks() -> Iterator[tuple[str, str, int]]:
    """Yield their path, ours and the level of the transformer blocks outside the bridge."""
    for level in range(_LEVELS):
        for block in range(_BLOCKS):
            yield f"backbone.block{level + 1}.{block}", f"stages.{level}.blocks.{block}", level
    for level in range(_LEVELS - 1):
        for block in range(_BLOCKS):
            yield f"decoder_{level}.layer_former_{block + 1}", f"up.{_LEVELS - 2 - level}.blocks.{block}", level


def _bridge_layers() -> _Names:
    for layer in range(_BRIDGE_LAYERS):
        yield f"bridge.bridge_layer{layer + 1}", f"bridge.layers.{layer}"


def _attentions() -> dict[str, str]:
    """Return our path of everything that attends, by theirs."""
    return {**{theirs: ours for theirs, ours, _ in _blocks()}, **dict(_bridge_layers())}


def _perceptrons() -> _Names:
    for theirs, ours, _ in _blocks():
        yield f"{theirs}.mlp", f"{ours}.mlp"
    for theirs, ours in _bridge_layers():
        for level in range(_LEVELS):
            yield f"{theirs}.mixffn{level + 1}", f"{ours}.mlps.{level}"
