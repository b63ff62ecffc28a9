"""Does a teacher speak of the student's task: its channels, its classes, their order?"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["check_teacher"]


def check_teacher(
    network: nn.Module, bundle_root: str | Path, class_names: Sequence[str], in_channels: int, patch_size: Sequence[int]
) -> None:
    """Refuse a teacher whose inputs or classes are not the student's.

    Compares the metadata of the teacher's bundle, if it has any, and runs the teacher once on zeros.

    Args:
        network: the teacher, in evaluation mode.
        bundle_root: its bundle folder; ``configs/metadata.json`` is read if it is there.
        class_names: the student's classes, background first.
        in_channels: channels of the student's images.
        patch_size: spatial size of a training patch, voxels.

    Raises:
        ValueError: other input channels, another number of classes, the same classes in another order, or an output
            that is not one logits tensor of the patch's size. The message names both sides.
    """
    formats = _formats(Path(bundle_root).expanduser())
    _check_stated_channels(formats, str(bundle_root), in_channels)
    _check_output(network, str(bundle_root), class_names, in_channels, patch_size)
    _check_class_order(formats, str(bundle_root), class_names)


def _formats(root: Path) -> Mapping[str, Any]:
    path = root / "configs" / "metadata.json"
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8")).get("network_data_format", {})


def _first(tensors: Any) -> Mapping[str, Any]:
    """The description of the first tensor, or nothing."""
    return next(iter(tensors.values()), {}) if isinstance(tensors, Mapping) else {}


def _check_stated_channels(formats: Mapping[str, Any], root: str, in_channels: int) -> None:
    stated = _first(formats.get("inputs")).get("num_channels")
    if stated is not None and stated != in_channels:
        raise ValueError(
            f"teacher '{root}' takes images of {stated} channels, the student of {in_channels}; "
            "give a teacher for these images"
        )


def _check_output(
    network: nn.Module, root: str, class_names: Sequence[str], in_channels: int, patch_size: Sequence[int]
) -> None:
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    image = torch.zeros(1, in_channels, *patch_size, device=device)
    try:
        with torch.no_grad():
            logits = network(image)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"teacher '{root}' cannot take the student's patches {tuple(image.shape)}: {reason}"
        ) from error
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"teacher '{root}' returns {type(logits).__name__}; a teacher gives one tensor of logits")
    if logits.shape[1] != len(class_names):
        raise ValueError(
            f"teacher '{root}' gives {logits.shape[1]} channels, the student has {len(class_names)} classes "
            f"{list(class_names)}; both need the same classes"
        )
    if logits.shape[2:] != image.shape[2:]:
        raise ValueError(
            f"teacher '{root}' gives {tuple(logits.shape[2:])} voxels for a patch of {tuple(image.shape[2:])}; "
            "set patch_size to multiples of its total stride"
        )


def _check_class_order(formats: Mapping[str, Any], root: str, class_names: Sequence[str]) -> None:
    channel_def = _first(formats.get("outputs")).get("channel_def")
    if not isinstance(channel_def, Mapping):
        return
    stated = [str(name) for _, name in sorted(channel_def.items(), key=lambda item: int(item[0]))]
    names, own = ([name.casefold() for name in listed[1:]] for listed in (stated, class_names))
    if names == own:  # the background has many names
        return
    if sorted(names) == sorted(own):
        raise ValueError(
            f"teacher '{root}' has its classes in the order {stated}, the student {list(class_names)}; the same "
            "channel must mean the same class"
        )
    warnings.warn(
        f"teacher '{root}' calls its classes {stated}, the student {list(class_names)}: they are taken to be the same, "
        "channel by channel",
        stacklevel=4,
    )
