"""TransUNets that were trained with their authors' code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from monai_kd.teachers.converted_keys import Rule, convert, listed, position_map, same, stacked
from monai_kd.teachers.report import LoadReport, finish
from monai_kd.teachers.weights import file_sha256, read_state_dict

__all__ = ["load_published_transunet"]


def load_published_transunet(network: nn.Module, path: str | Path, freeze: bool = True) -> nn.Module:
    """Give a TransUNet the weights of a checkpoint of the authors' code, all of them, freeze it, and return it.

    Nothing but names changes: query, key and value are one layer here, and the positions are a map, which is
    interpolated if the network's table is another one than the file's.

    Args:
        network: a :class:`monai_kd.networks.nets.transunet.TransUNet` of the file's widths, depths and classes. Its
            ``num_heads`` must be the file's, which shapes do not tell.
        path: a state dict, plain or under ``model``, ``state_dict`` or ``network``, of one or of several GPUs
            (``module.``); tensors alone are read.
        freeze: ``False`` leaves it as it is, to be trained from these weights on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, lacks keys, has other ones besides or other shapes; the first are named, and the
            network is left as it was.

    Source: names from github.com/Beckschen/TransUNet.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"weights '{file}' do not exist")
    state: dict[str, Any] = dict(read_state_dict(file, None, "cpu"))
    consume_prefix_in_state_dict_if_present(state, "module.")
    converted = convert(network, state, _RULES, file)
    if converted.left:
        raise ValueError(f"'{file}' also has {listed(converted.left)}, which this {type(network).__name__} lacks")
    network.load_state_dict(converted.state)
    report = LoadReport(
        config_file=None, network_id=None, weights=file, sha256=file_sha256(file), loaded=len(converted.state)
    )
    return finish(network, report, freeze)


# ---- names ----------------------------------------------------------------------------------------------------------

_EMBEDDINGS, _ENCODER = "transformer.embeddings", "transformer.encoder"
_STAGE, _BLOCK = r"stages\.(\d+)\.(\d+)\.", r"transformer\.blocks\.(\d+)\."
_ANY = r"(weight|bias)"


def _unit(stage: str, number: str, name: str) -> list[str]:
    return [f"{_EMBEDDINGS}.hybrid_model.body.block{int(stage) + 1}.unit{int(number) + 1}.{name}"]


def _layer(number: str, *names: str) -> list[str]:
    return [f"{_ENCODER}.layer.{number}.{name}" for name in names]


_RULES = [
    Rule(r"root\.0\.weight", lambda: [f"{_EMBEDDINGS}.hybrid_model.root.conv.weight"], same),
    Rule(r"root\.1\." + _ANY, lambda k: [f"{_EMBEDDINGS}.hybrid_model.root.gn.{k}"], same),
    Rule(_STAGE + r"conv(\d)\.weight", lambda s, b, n: _unit(s, b, f"conv{n}.weight"), same),
    Rule(_STAGE + r"norm(\d)\." + _ANY, lambda s, b, n, k: _unit(s, b, f"gn{n}.{k}"), same),
    Rule(_STAGE + r"shortcut\.0\.weight", lambda s, b: _unit(s, b, "downsample.weight"), same),
    Rule(_STAGE + r"shortcut\.1\." + _ANY, lambda s, b, k: _unit(s, b, f"gn_proj.{k}"), same),
    Rule(r"transformer\.embedding\." + _ANY, lambda k: [f"{_EMBEDDINGS}.patch_embeddings.{k}"], same),
    Rule(r"transformer\.positions", lambda: [f"{_EMBEDDINGS}.position_embeddings"], position_map),
    Rule(r"transformer\.norm\." + _ANY, lambda k: [f"{_ENCODER}.encoder_norm.{k}"], same),
    Rule(_BLOCK + r"norm_attention\." + _ANY, lambda b, k: _layer(b, f"attention_norm.{k}"), same),
    Rule(_BLOCK + r"norm_mlp\." + _ANY, lambda b, k: _layer(b, f"ffn_norm.{k}"), same),
    Rule(
        _BLOCK + r"attention\.qkv\." + _ANY,
        lambda b, k: _layer(b, f"attn.query.{k}", f"attn.key.{k}", f"attn.value.{k}"),
        stacked,
    ),
    Rule(_BLOCK + r"attention\.out_proj\." + _ANY, lambda b, k: _layer(b, f"attn.out.{k}"), same),
    Rule(_BLOCK + r"mlp\.linear([12])\." + _ANY, lambda b, n, k: _layer(b, f"ffn.fc{n}.{k}"), same),
    Rule(r"enter\.(.*)", lambda rest: [f"decoder.conv_more.{rest}"], same),
    Rule(r"up\.(.*)", lambda rest: [f"decoder.blocks.{rest}"], same),
    Rule(r"head\.(.*)", lambda rest: [f"segmentation_head.0.{rest}"], same),
]
