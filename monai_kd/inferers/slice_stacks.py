"""What the inferers in depth ask of a network that runs on the slices of a volume."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import BlendMode, convert_to_dst_type, ensure_tuple_rep
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["alike", "as_slice_stack", "check_exchanges", "check_norms", "check_windows", "plain_volume", "slice_stack"]

_FLAT = 100.0  # sigma of gaussian weights in window lengths, from which on they are flat
_NEEDED = ("depth_axis", "halo", "exchanges")


def slice_stack(network: Any, user: str) -> Any:
    """Return the slice stack itself: the network, or the one inside ``torch.compile`` or ``DistributedDataParallel``.

    Args:
        network: any network; a slice stack has ``depth_axis``, ``halo`` and ``exchanges``, the layers through which
            slices meet, as :class:`monai_kd.networks.nets.SliceStack` does.
        user: who asks, for the message.

    Raises:
        TypeError: it is none; names what it lacks.
    """
    inner = network
    while isinstance(inner, nn.Module):
        children = dict(inner.named_children())
        if "_orig_mod" in children:
            inner = children["_orig_mod"]
        elif "module" in children and _lacks(inner):
            inner = children["module"]
        else:
            break
    lacks = _lacks(inner)
    if lacks:
        raise TypeError(f"{user} takes a SliceStack such as DSMUNet; {type(inner).__name__} lacks {', '.join(lacks)}")
    return inner


def _lacks(network: Any) -> list[str]:
    return [name for name in _NEEDED if not hasattr(network, name)]


def as_slice_stack(module: nn.Module, network: nn.Module) -> nn.Module:
    """Let the export of a network be taken for a slice stack, if the network is one.

    The module gets the network's ``depth_axis``, ``halo`` and ``exchanges`` if that is a slice stack; else it stays as
    it is. Its chunks are exact then; it cannot be streamed, as nothing stops at its exchanges.
    """
    if not _lacks(network):
        for name in _NEEDED:
            object.__setattr__(module, name, getattr(network, name))  # the layers stay the network's own
    return module


def check_exchanges(stack: Any, user: str, *needs: str) -> None:
    """Refuse a stack that has an exchange without one of the attributes in ``needs``; names it."""
    for number, exchange in enumerate(stack.exchanges):
        lacks = [name for name in needs if not hasattr(exchange, name)]
        if lacks:
            raise TypeError(
                f"{user} needs {', '.join(needs)} of every exchange; exchange {number} of {type(stack).__name__}, "
                f"a {type(exchange).__name__}, lacks {', '.join(lacks)}"
            )


def check_norms(stack: nn.Module, user: str) -> None:
    """Refuse batch norms whose statistics depend on which slices come together."""
    for name, module in stack.named_modules():
        if not isinstance(module, _BatchNorm) or not (module.training or module.running_mean is None):
            continue
        cure = "call network.eval()" if module.training else "it needs running statistics, or be another norm"
        raise ValueError(
            f"{user} would not be exact: batch norm {name!r} of {type(stack).__name__} takes its statistics from the "
            f"slices that come together; {cure}"
        )


def check_windows(inferer: Inferer | None, stack: Any, user: str, constant: bool) -> None:
    """Refuse sliding windows that cut a volume along its depth; they would not be exact.

    Args:
        inferer: a ``SlidingWindowInferer``, or an inferer that has one as its ``inferer``; others pass.
        stack: the slice stack.
        user: who asks, for the message.
        constant: whether the windows' weights must not vary either: MONAI's gaussian ones depend on the place in a
            chunk.
    """
    while inferer is not None and not isinstance(inferer, SlidingWindowInferer):
        inferer = getattr(inferer, "inferer", None)
    if inferer is None:
        return
    sizes = ensure_tuple_rep(inferer.roi_size, 3)
    length = sizes[stack.depth_axis]
    if length is not None and length > 0:
        raise ValueError(
            f"{user} has windows of {list(sizes)}, and slices lie along axis {stack.depth_axis}: roi_size must be -1 "
            f"there, or windows of {length} slices would see no further"
        )
    scale = ensure_tuple_rep(inferer.sigma_scale, 3)[stack.depth_axis]
    if constant and inferer.mode != BlendMode.CONSTANT and scale < _FLAT:
        raise ValueError(
            f"{user} has windows with mode={str(inferer.mode)!r}, whose weights vary along the depth; give 'constant', "
            "or a sigma_scale of 100 along that axis"
        )


def plain_volume(inputs: Tensor, stack: Any, user: str) -> Tensor:
    """Return the volume as a plain tensor: metadata would be copied with every piece."""
    if inputs.ndim != 5 or 0 in inputs.shape:
        raise ValueError(
            f"{user} got {tuple(inputs.shape)}; it takes a volume (B, C, *spatial) with three spatial axes, slices "
            f"along spatial axis {stack.depth_axis}"
        )
    return inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs


def alike(output: Tensor, inputs: Tensor) -> Tensor:
    """Return the output with the metadata of the inputs, if they have any."""
    if not isinstance(inputs, MetaTensor):
        return output
    like = MetaTensor(torch.empty(0)).copy_meta_from(inputs, copy_attr=False)
    joined: Tensor = convert_to_dst_type(output, like, dtype=output.dtype, device=output.device)[0]
    return joined
