"""What the residual block keeps for its backward pass."""

from __future__ import annotations

import pytest
import torch

from monai_kd.networks.blocks import PreActivationResBlock


def run(block, features):
    given = features.clone().requires_grad_()
    kept = {}

    def note(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = block(given)
    result.square().sum().backward()
    gradients = [given.grad, *(parameter.grad.clone() for parameter in block.parameters())]
    block.zero_grad()
    return result.detach(), gradients, sum(kept.values()), given.detach()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_activations_in_place_change_no_bit_and_keep_less(layout):
    torch.manual_seed(0)
    block = PreActivationResBlock(3, 12, 8).to(memory_format=layout)
    features = torch.randn(2, 12, 8, 8, 8).contiguous(memory_format=layout)
    value, gradients, kept, given = run(block, features)
    assert torch.equal(given, features)  # the skip reads it too
    block.main[1].inplace = block.main[4].inplace = False
    expected, expected_gradients, more, _ = run(block, features)
    assert torch.equal(value, expected)
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected_gradients, strict=True))
    assert kept < more
