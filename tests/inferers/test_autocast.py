"""AutocastInferer: bf16 where asked, float32 outside, other devices untouched."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

from monai_kd.inferers import AutocastInferer, cpu_has_bfloat16


class Probe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(1, 2, 3, padding=1)
        self.seen: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        self.seen.append(y.dtype)
        return y


@pytest.mark.parametrize("inner", [SimpleInferer(), SlidingWindowInferer((8, 8, 8), overlap=0.25)])
def test_network_runs_in_bfloat16_and_logits_come_back_in_float32(inner):
    network, image = Probe(), torch.randn(1, 1, 12, 12, 12)
    with torch.no_grad():
        output = AutocastInferer(inner)(image, network)
        expected = inner(image, network)
    assert set(network.seen) == {torch.bfloat16, torch.float32}
    assert output.dtype == torch.float32
    assert not torch.equal(output, expected)
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("arguments", [{"enabled": False}, {"device_type": "cuda"}])
def test_switched_off_or_on_another_device_it_changes_nothing(arguments):
    network, image = Probe(), torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(AutocastInferer(SimpleInferer(), **arguments)(image, network), network(image))


def test_arguments_reach_the_network_and_records_pass_through():
    def network(image, label):
        return {"label": label, "sum": image.sum()}

    output = AutocastInferer(SimpleInferer())(torch.ones(1, 1, 2, 2), network, label=3)
    assert output == {"label": 3, "sum": 4.0}


def test_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype is 'int8'; autocast takes bfloat16 or float16"):
        AutocastInferer(SimpleInferer(), dtype="int8")


def test_cpu_probe_answers_a_bool():
    assert cpu_has_bfloat16() in (True, False)
