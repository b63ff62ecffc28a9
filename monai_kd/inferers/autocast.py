"""Mixed precision for any inferer, also on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from monai_kd.inferers.shallow_convolutions import ShallowConvolutionsInFloat32

__all__ = ["AutocastInferer", "cpu_has_bfloat16"]


def cpu_has_bfloat16() -> bool:
    """Tell whether this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX); elsewhere it is slow."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class AutocastInferer(Inferer):
    """Run another inferer under ``torch.autocast`` on one device type and hand its logits back in float32.

    MONAI's ``amp`` is CUDA only; this brings bfloat16 to the CPU, about twice as fast where the CPU has it. Batches
    on another device type pass through untouched, so one configuration serves both. On the CPU, 3-D convolutions of few
    slices are trained in float32, see :class:`ShallowConvolutionsInFloat32`.

    Args:
        inferer: the inferer to wrap, e.g. ``SlidingWindowInferer``.
        dtype: ``"bfloat16"`` or ``"float16"``.
        device_type: the device type that is cast, ``"cpu"`` or ``"cuda"``.
        enabled: ``False`` passes everything through, e.g. ``$monai_kd.inferers.cpu_has_bfloat16()``.

    Raises:
        ValueError: ``dtype`` is neither of the two.
    """

    def __init__(
        self, inferer: Inferer, dtype: str = "bfloat16", device_type: str = "cpu", enabled: bool = True
    ) -> None:
        super().__init__()
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        if dtype not in dtypes:
            raise ValueError(f"dtype is {dtype!r}; autocast takes {' or '.join(dtypes)}")
        self.inferer = inferer
        self.dtype = dtypes[dtype]
        self.device_type = device_type
        self.enabled = enabled

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped inferer; a tensor result comes back in float32, any other result as it is."""
        enabled = self.enabled and inputs.device.type == self.device_type
        guard = ShallowConvolutionsInFloat32() if enabled and self.device_type == "cpu" else nullcontext()
        with guard, torch.autocast(self.device_type, dtype=self.dtype, enabled=enabled):
            output = self.inferer(inputs, network, *args, **kwargs)
        return output.float() if isinstance(output, Tensor) and output.is_floating_point() else output
