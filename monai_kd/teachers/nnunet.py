"""The network of an nnU-Net v2 model, built from its plans."""

from __future__ import annotations

import pydoc
from typing import Any

from monai.utils import optional_import
from torch import nn

from monai_kd.teachers.nnunet_plans import Plans

__all__ = ["build_nnunet"]

_PACKAGE = "dynamic_network_architectures"


def build_nnunet(plans: Plans) -> nn.Module:
    """Build the network with one output, the logits at full resolution.

    nnU-Net's networks live in the package dynamic_network_architectures; nnunetv2 itself is not needed. The plans may
    name classes of that package and of torch.nn and nothing else, so reading them runs no other code.

    Raises:
        ImportError: the package is not installed.
        ValueError: the plans name other classes.
        RuntimeError: the class and its arguments do not fit.
    """
    _, installed = optional_import(_PACKAGE)
    if not installed:
        raise ImportError(
            f"nnU-Net model '{plans.folder}' needs {_PACKAGE}, which is not installed: pip install 'monai_kd[nnunet]'"
        )
    network_class = _locate(_current_path(plans.network_class), f"{_PACKAGE}.", plans)
    imported = {key: plans.arguments[key] for key in plans.imported if plans.arguments.get(key) is not None}
    arguments = {**plans.arguments, **{key: _locate(path, "torch.nn.", plans) for key, path in imported.items()}}
    try:
        return network_class(
            input_channels=len(plans.channel_names),
            num_classes=len(plans.class_names),
            deep_supervision=False,
            **arguments,
        )
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise RuntimeError(f"{plans.network_class} of '{plans.path}' cannot be built: {reason}") from error


def _current_path(path: str) -> str:
    """The class's path today: releases of the package have moved its U-Nets between files."""
    if path.startswith(f"{_PACKAGE}.") and pydoc.locate(path) is None:
        return f"{_PACKAGE}.architectures.unet.{path.rpartition('.')[2]}"
    return path


def _locate(path: str, prefix: str, plans: Plans) -> Any:
    if not path.startswith(prefix):
        raise ValueError(
            f"'{plans.path}' names '{path}'; only classes of {prefix.rstrip('.')} are built: save a model of another "
            "network as TorchScript"
        )
    found = pydoc.locate(path)
    if not isinstance(found, type):
        raise ValueError(f"'{plans.path}' names '{path}', which the installed {prefix.partition('.')[0]} does not have")
    return found
