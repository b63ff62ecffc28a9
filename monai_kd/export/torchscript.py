"""How a network becomes TorchScript: by its code, or where that is no script by a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai.bundle.scripts import _get_fake_spatial_shape
from torch import nn

from monai_kd.networks.halves import EncoderDecoder
from monai_kd.networks.nets import ChannelAttentionResUNet, SliceStack

__all__ = ["axis_length", "tracing"]


def axis_length(expression: int | str, n: int) -> int:
    """Return the length of an axis that metadata give as ``"8*n"``, for one ``n``."""
    (length,) = _get_fake_spatial_shape([expression], p=1, n=n)
    return int(length)


def tracing(network: nn.Module, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what MONAI's ``ckpt_export`` needs besides: nothing for a script.

    A stack of slices counts them in Python, the channel-attention U-Net answers by a list in training, and networks in
    two halves check the sizes that they get, which a script cannot; their traces hold for any number and size.
    """
    if not isinstance(network, (SliceStack, ChannelAttentionResUNet, EncoderDecoder)):
        return {}
    image = metadata["network_data_format"]["inputs"]["image"]
    size = [axis_length(length, 3) for length in image["spatial_shape"]]
    return {"use_trace": True, "input_shape": [1, int(image["num_channels"]), *size]}
