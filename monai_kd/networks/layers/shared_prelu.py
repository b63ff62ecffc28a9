"""``torch.nn.PReLU`` of one slope, with a backward pass that costs what it reads and writes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["SharedPReLU"]


class SharedPReLU(nn.PReLU):
    """``torch.nn.PReLU`` with one slope for all channels: ``max(0, x) + slope * min(0, x)``.

    Values, gradients, parameters and state are those of ``torch.nn.PReLU(1)``. On a CPU the backward pass of torch
    2.13.0 takes many times the forward pass; here it is three passes over the activations, and a training step of ENet
    a fifth shorter (``benchmarks/shared_prelu.py``). On other devices, where no gradient is taken, and where the
    network is traced, compiled or exported, torch's own is used. A second derivative raises, as from any such function.

    Args:
        init: of the slope.

    Shape:
        Any, to the same.
    """

    def __init__(self, init: float = 0.25) -> None:
        super().__init__(num_parameters=1, init=init)

    def forward(self, input: Tensor) -> Tensor:
        traced = torch.jit.is_tracing() or torch.jit.is_scripting() or torch.compiler.is_compiling()
        if traced or input.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(input)
        output: Tensor = _SharedPReLU.apply(input, self.weight)
        return output


class _SharedPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(values, slope)
        return F.prelu(values, slope.to(values.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        values, slope = ctx.saved_tensors
        to_values = to_slope = None
        if ctx.needs_input_grad[0]:
            to_values = torch.ops.aten.leaky_relu_backward(gradient, values, float(slope), False)
        if ctx.needs_input_grad[1]:
            negative = values.clamp(max=0).mul_(gradient)
            to_slope = negative.sum(dtype=slope.dtype).view_as(slope)
        return to_values, to_slope
