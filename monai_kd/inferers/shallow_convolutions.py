"""3-D convolutions of few slices whose bfloat16 weight gradient is wrong on CPUs, computed in float32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ShallowConvolutionsInFloat32"]

_CONVOLUTIONS = (torch.conv3d, torch.conv_transpose3d)


class ShallowConvolutionsInFloat32(TorchFunctionMode):
    """Inside this context, 3-D convolutions of few slices leave CPU autocast while weights are trained.

    With torch 2.13.0 (oneDNN 3.12.0) on a CPU with AVX512-BF16, the weight gradient of a bfloat16 3-D convolution with
    stride 1 holds numbers up to 1e33, infinite ones, or breaks the heap, where the first spatial axis of its input has
    2 or more voxels and fewer than the kernel: 2 for a kernel of 3, as at the deepest level of a network of five on
    patches of 32. One voxel, other axes, 2-D, strides above 1, dilation and depthwise kernels were right; those that
    the rule below covers nevertheless are small enough not to matter.

    A convolution is computed in float32 if its input has at least 2 voxels along the first spatial axis and fewer than
    its kernel, on the CPU, under autocast, with a weight that gets a gradient. All else is left alone, and so is what
    activation checkpointing runs again in the backward pass.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _CONVOLUTIONS and _is_shallow(args, given):
            with torch.autocast("cpu", enabled=False):
                return func(*map(_as_float32, args), **{key: _as_float32(value) for key, value in given.items()})
        return func(*args, **given)


def _is_shallow(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    image, weight = (
        args[place] if place < len(args) else kwargs[name] for place, name in enumerate(("input", "weight"))
    )
    return bool(
        image.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.is_grad_enabled()
        and weight.requires_grad
        and 1 < image.shape[-3] < weight.shape[-3]
    )


def _as_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
