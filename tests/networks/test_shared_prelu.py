"""SharedPReLU is torch's PReLU of one slope: values, gradients, state, exports."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from monai_kd.networks.layers import SharedPReLU


def pair(slope: float) -> tuple[nn.PReLU, SharedPReLU]:
    ours, torchs = SharedPReLU(slope), nn.PReLU(init=slope)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    return torchs, ours


def results(layer: nn.Module, values: torch.Tensor, autocast: bool = False) -> list[torch.Tensor]:
    given = values.clone().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer(given)
    (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return [output.detach(), given.grad, layer.weight.grad]


@pytest.mark.parametrize("slope", [0.25, 0.0, -0.5, 1.5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_torchs(slope, layout):
    values = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    values[0, 0, 0] = 0.0
    for expected, found in zip(*(results(layer, values) for layer in pair(slope)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_under_autocast_too():
    values = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    torchs, ours = (results(layer, values, autocast=True) for layer in pair(0.25))
    assert ours[0].dtype == torchs[0].dtype
    assert ours[2].dtype == torch.float32
    for expected, found in zip(torchs, ours, strict=True):
        torch.testing.assert_close(found.float(), expected.float(), rtol=2e-2, atol=2e-2)


def test_gradients_by_differences():
    values = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    layer = SharedPReLU().double()
    assert gradcheck(lambda given: layer(given), (values,))
    slope = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda own: torch.func.functional_call(layer, {"weight": own}, values.detach()), (slope,))


def test_only_what_is_asked_for_gets_a_gradient():
    frozen = SharedPReLU()
    frozen.weight.requires_grad_(False)
    values = torch.randn(2, 3, requires_grad=True)
    frozen(values).sum().backward()
    assert values.grad is not None
    assert frozen.weight.grad is None
    layer = SharedPReLU()
    layer(torch.randn(2, 3)).sum().backward()
    assert layer.weight.grad is not None


def test_traced_compiled_and_exported_it_is_torchs_own_operation():
    values, layer = torch.randn(2, 3, 4, 4), SharedPReLU()
    expected = layer(values)
    traced = torch.jit.trace(layer, values)
    assert "prelu" in str(traced.graph)
    assert "PythonOp" not in str(traced.graph)
    torch.testing.assert_close(traced(values), expected)
    exported = torch.export.export(layer, (values,))
    torch.testing.assert_close(exported.module()(values), expected)
