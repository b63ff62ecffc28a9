"""Vision transformers trained on ImageNet-21k, from the files of their authors, as the start of a TransUNet."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from monai_kd.teachers.converted_keys import (
    Rule,
    attention_heads,
    convert,
    listed,
    position_map,
    same,
    stacked,
)
from monai_kd.teachers.report import LoadReport, finish
from monai_kd.teachers.weights import file_sha256

__all__ = ["load_imagenet_vit"]

_logger = logging.getLogger("monai_kd")

_KIND = {"weight": "scale", "bias": "bias"}
_LAYER = {"weight": "kernel", "bias": "bias"}
_CLASSIFIER = re.compile(r"cls|head/.*|pre_logits/.*")
_ATTENTION = "MultiHeadDotProductAttention_1"


def load_imagenet_vit(network: nn.Module, path: str | Path) -> nn.Module:
    """Start a :class:`monai_kd.networks.nets.transunet.TransUNet` from ``R50+ViT-B_16.npz`` or ``ViT-B_16.npz``.

    The first file has the whole encoder. The second has a transformer alone: its embedding of 16 x 16 patches has no
    place here and is ignored, and the residual stages and the 1x1 embedding keep their values. The decoder does so
    always. Ignored are also the class token, with its row of the positions, and the classifier. Positions are
    interpolated to the network's table. What was used, ignored and kept is logged;
    :func:`~monai_kd.teachers.load_report` has it too: ``loaded`` counts the network's tensors that were set,
    ``missing`` are those that keep their values, ``unexpected`` the ignored keys of the file.

    Args:
        network: a TransUNet of the file's widths and depths; other ones than the default must match a file of theirs.
        path: the file; arrays alone are read.

    Returns:
        The network, to be trained.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ``.npz``; a key that the network needs is missing, has another shape or another number of
            heads; or the file has keys that nothing here stands for, such as blocks that the network lacks. All are
            named, and the network is left as it was.

    Source: names and layouts of the arrays from github.com/google-research/vision_transformer and their use in
    github.com/Beckschen/TransUNet. There a network with fewer blocks than the file takes the first ones silently.
    """
    file = Path(path)
    arrays = _read(file)
    rules = _transformer_rules(attention_heads(network))
    hybrid = _has_residual_stages(arrays)
    if hybrid:
        rules = [*rules, *_encoder_rules()]
    converted = convert(network, arrays, rules, file)
    unknown = [key for key in converted.left if not _is_ignored(key, hybrid)]
    if unknown:
        raise ValueError(
            f"'{file}' also has {listed(unknown)}, which this {type(network).__name__} has no place for: build it "
            "with as many blocks as the file has"
        )
    kept = tuple(key for key in network.state_dict() if key not in converted.state)
    network.load_state_dict(converted.state, strict=False)
    _logger.info(
        "'%s' for %s: %d of %d arrays used; ignored: %s; %d tensors of the network set, %d keep their values: %s",
        file,
        type(network).__name__,
        len(converted.used),
        len(arrays),
        ", ".join(converted.left) or "none",
        len(converted.state),
        len(kept),
        ", ".join(dict.fromkeys(key.partition(".")[0] for key in kept)) or "none",
    )
    report = LoadReport(
        config_file=None,
        network_id=None,
        weights=file,
        sha256=file_sha256(file),
        loaded=len(converted.state),
        missing=kept,
        unexpected=converted.left,
    )
    return finish(network, report, freeze=False)


def _read(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise FileNotFoundError(f"weights '{file}' do not exist; download the .npz of the model's authors")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).partition(". ")[0]
        raise ValueError(f"'{file}' is no readable .npz of arrays, damaged or cut short: {reason}") from None


def _has_residual_stages(arrays: Mapping[str, np.ndarray]) -> bool:
    stages = any(key.startswith(("conv_root/", "gn_root/", "block")) for key in arrays)
    embedding = arrays.get("embedding/kernel")
    return stages or (embedding is not None and embedding.shape[:2] == (1, 1))


def _is_ignored(key: str, hybrid: bool) -> bool:
    return _CLASSIFIER.fullmatch(key) is not None or (not hybrid and key.startswith("embedding/"))


# ---- names ----------------------------------------------------------------------------------------------------------


def _encoder_rules() -> list[Rule]:
    """The root, the residual stages, and the embedding of their map."""

    def block(stage: str, number: str, name: str) -> list[str]:
        return [f"block{int(stage) + 1}/unit{int(number) + 1}/{name}"]

    inside = r"stages\.(\d+)\.(\d+)\."
    return [
        Rule(r"root\.0\.weight", lambda: ["conv_root/kernel"], _convolution),
        Rule(r"root\.1\.(weight|bias)", lambda kind: [f"gn_root/{_KIND[kind]}"], _vector),
        Rule(inside + r"conv(\d)\.weight", lambda s, b, n: block(s, b, f"conv{n}/kernel"), _convolution),
        Rule(inside + r"norm(\d)\.(weight|bias)", lambda s, b, n, k: block(s, b, f"gn{n}/{_KIND[k]}"), _vector),
        Rule(inside + r"shortcut\.0\.weight", lambda s, b: block(s, b, "conv_proj/kernel"), _convolution),
        Rule(inside + r"shortcut\.1\.(weight|bias)", lambda s, b, k: block(s, b, f"gn_proj/{_KIND[k]}"), _vector),
        Rule(r"transformer\.embedding\.weight", lambda: ["embedding/kernel"], _convolution),
        Rule(r"transformer\.embedding\.bias", lambda: ["embedding/bias"], _vector),
    ]


def _transformer_rules(heads: int | None) -> list[Rule]:
    """The positions, the blocks, and the norm behind them."""

    def block(number: str, name: str) -> str:
        return f"Transformer/encoderblock_{number}/{name}"

    def projections(number: str, kind: str) -> list[str]:
        return [block(number, f"{_ATTENTION}/{part}/{kind}") for part in ("query", "key", "value")]

    def to_heads(tensors: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        for tensor in tensors:  # (hidden, heads, channels), or without the first
            if tensor.ndim < 2 or tensor.shape[-2] != heads:
                raise ValueError(f"the network has {heads} heads")
        return stacked([tensor.flatten(-2).t() for tensor in tensors], shape)

    inside = r"transformer\.blocks\.(\d+)\."
    return [
        Rule(r"transformer\.positions", lambda: ["Transformer/posembed_input/pos_embedding"], position_map),
        Rule(r"transformer\.norm\.(weight|bias)", lambda k: [f"Transformer/encoder_norm/{_KIND[k]}"], _vector),
        Rule(inside + r"norm_attention\.(weight|bias)", lambda b, k: [block(b, f"LayerNorm_0/{_KIND[k]}")], _vector),
        Rule(inside + r"norm_mlp\.(weight|bias)", lambda b, k: [block(b, f"LayerNorm_2/{_KIND[k]}")], _vector),
        Rule(inside + r"attention\.qkv\.(weight|bias)", lambda b, k: projections(b, _LAYER[k]), to_heads),
        Rule(inside + r"attention\.out_proj\.weight", lambda b: [block(b, f"{_ATTENTION}/out/kernel")], _from_heads),
        Rule(inside + r"attention\.out_proj\.bias", lambda b: [block(b, f"{_ATTENTION}/out/bias")], _vector),
        Rule(
            inside + r"mlp\.linear([12])\.weight",
            lambda b, n: [block(b, f"MlpBlock_3/Dense_{int(n) - 1}/kernel")],
            _dense,
        ),
        Rule(inside + r"mlp\.linear([12])\.bias", lambda b, n: [block(b, f"MlpBlock_3/Dense_{int(n) - 1}/bias")], same),
    ]


# ---- layouts --------------------------------------------------------------------------------------------------------


def _convolution(tensors: Sequence[Tensor], _: Sequence[int]) -> Tensor:
    return tensors[0].permute(3, 2, 0, 1)  # HWIO -> OIHW


def _vector(tensors: Sequence[Tensor], _: Sequence[int]) -> Tensor:
    return tensors[0].flatten()  # some files have (1, 1, 1, C)


def _dense(tensors: Sequence[Tensor], _: Sequence[int]) -> Tensor:
    return tensors[0].t()


def _from_heads(tensors: Sequence[Tensor], _: Sequence[int]) -> Tensor:
    return tensors[0].flatten(0, 1).t()  # (heads, channels, hidden) -> (hidden, heads * channels)
