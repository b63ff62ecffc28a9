"""Wrappers whose state dict is that of the network that they wrap."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__: list[str] = []


def use_bare_keys(wrapper: nn.Module) -> None:
    """Let a wrapper save and load its attribute ``network`` under the network's own keys."""
    wrapper.register_state_dict_post_hook(_without_prefix)
    wrapper.register_load_state_dict_pre_hook(_with_prefix)


def _without_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    inner = f"{prefix}network."
    for key in [key for key in state if key.startswith(inner)]:
        state[prefix + key.removeprefix(inner)] = state.pop(key)


def _with_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}network.{key.removeprefix(prefix)}"] = state.pop(key)
