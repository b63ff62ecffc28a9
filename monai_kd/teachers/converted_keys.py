"""Weights under another code's names and in its layouts, brought to a network of ours by a table of rules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import SABlock
from torch import Tensor, nn

__all__: list[str] = []

POSITIONS = "transformer.positions"  # by which a TransUNet is told from other networks: teachers do not import them


@dataclass(frozen=True)
class Rule:
    """Where some of a network's tensors come from.

    Attributes:
        pattern: of the network's keys, as a regular expression for all of a key.
        sources: gives the keys of the file from the pattern's groups.
        bring: makes the network's tensor of theirs, for a shape.
    """

    pattern: str
    sources: Callable[..., Sequence[str]]
    bring: Callable[[Sequence[Tensor], Sequence[int]], Tensor]


@dataclass(frozen=True)
class Converted:
    """Tensors under the network's keys; the keys of the file that they are made of, and those left over."""

    state: dict[str, Tensor]
    used: tuple[str, ...]
    left: tuple[str, ...]


def convert(network: nn.Module, found: Mapping[str, Any], rules: Sequence[Rule], file: Path) -> Converted:
    """Make every tensor of the network that a rule speaks of.

    Raises:
        ValueError: the network is no TransUNet; the file lacks a key, or a shape does not fit: each is named.
    """
    own = network.state_dict()
    if POSITIONS not in own:
        raise ValueError(f"'{file}' is for a TransUNet, got {type(network).__name__}, which has no '{POSITIONS}'")
    plan = {key: match for key in own if (match := _rule_of(key, rules)) is not None}
    used = list(dict.fromkeys(source for _, sources in plan.values() for source in sources))
    missing = [source for source in used if source not in found]
    if missing:
        raise ValueError(f"'{file}' lacks {listed(missing)} of this {type(network).__name__}")
    state = {
        key: _brought(rule, {name: torch.as_tensor(found[name]) for name in sources}, key, own[key], file)
        for key, (rule, sources) in plan.items()
    }
    return Converted(state, tuple(used), tuple(key for key in found if key not in set(used)))


def _rule_of(key: str, rules: Sequence[Rule]) -> tuple[Rule, Sequence[str]] | None:
    for rule in rules:
        if match := re.fullmatch(rule.pattern, key):
            return rule, rule.sources(*match.groups())
    return None


def _brought(rule: Rule, tensors: Mapping[str, Tensor], key: str, own: Tensor, file: Path) -> Tensor:
    shapes = ", ".join(f"'{name}' {tuple(tensor.shape)}" for name, tensor in tensors.items())
    try:
        value = rule.bring(list(tensors.values()), own.shape)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"'{file}' has {shapes}, which cannot become '{key}' {tuple(own.shape)}: {reason}") from None
    if value.shape != own.shape:
        raise ValueError(
            f"'{file}' has {shapes}, which makes {tuple(value.shape)}; '{key}' of this network is {tuple(own.shape)}"
        )
    return value


def listed(keys: Sequence[str], most: int = 5) -> str:
    """Name the first keys, and say how many there are."""
    names = ", ".join(f"'{key}'" for key in keys[:most])
    return names if len(keys) <= most else f"{names} and {len(keys) - most} more"


def attention_heads(network: nn.Module) -> int | None:
    """Return the number of heads of a network's attention, which its shapes do not tell; None without any."""
    return next((module.num_heads for module in network.modules() if isinstance(module, SABlock)), None)


# ---- layouts --------------------------------------------------------------------------------------------------------


def same(tensors: Sequence[Tensor], _: Sequence[int]) -> Tensor:
    return tensors[0]


def stacked(tensors: Sequence[Tensor], _: Sequence[int]) -> Tensor:
    """Join query, key and value to the one layer that MONAI has for them."""
    return torch.cat(list(tensors))


def position_map(tensors: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Make a table ``(1, tokens, hidden)`` a map ``(1, hidden, *grid)``, without its class token if it has one.

    Another grid is reached linearly with aligned corners, as ``scipy.ndimage.zoom`` of order 1 does it.
    """
    table = tensors[0]
    if table.ndim != 3:
        raise ValueError("a table of positions is (1, tokens, hidden)")
    for tokens in (table, table[:, 1:]):
        side = math.isqrt(tokens.shape[1])
        if side and side * side == tokens.shape[1]:
            grid = tokens.transpose(1, 2).unflatten(2, (side, side))
            return F.interpolate(grid, size=tuple(shape[2:]), mode="bilinear", align_corners=True)
    raise ValueError(f"{table.shape[1]} tokens fill no square, without or with one class token")
