"""3-D convolutions of few slices are trained in float32, where bfloat16 gives a wrong gradient; all else stays."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from monai_kd.inferers import AutocastInferer, ShallowConvolutionsInFloat32


def dtype_of(layer: nn.Module, *size: int, dims: int = 3) -> torch.dtype:
    """Return the type of what a layer gives under autocast."""
    with ShallowConvolutionsInFloat32(), torch.autocast("cpu", torch.bfloat16):
        return layer(torch.randn(1, 4, *size[:dims])).dtype


@pytest.mark.parametrize(
    ("size", "kernel", "expected"),
    [
        ((2, 6, 6), 3, torch.float32),
        ((2, 2, 2), 3, torch.float32),
        ((4, 6, 6), 5, torch.float32),
        ((1, 6, 6), 3, torch.bfloat16),
        ((3, 6, 6), 3, torch.bfloat16),
        ((5, 6, 6), 5, torch.bfloat16),
        ((6, 2, 2), 3, torch.bfloat16),
        ((2, 6, 6), 1, torch.bfloat16),
        ((2, 6, 6), 2, torch.bfloat16),
    ],
)
def test_it_takes_two_voxels_or_more_and_fewer_than_the_kernel(size, kernel, expected):
    assert dtype_of(nn.Conv3d(4, 4, kernel, padding=kernel // 2), *size) == expected


def test_transposed_ones_too_and_flat_ones_never():
    assert dtype_of(nn.ConvTranspose3d(4, 4, 3, padding=1), 2, 6, 6) == torch.float32
    assert dtype_of(nn.ConvTranspose3d(4, 4, 2, stride=2), 2, 6, 6) == torch.bfloat16
    assert dtype_of(nn.Conv2d(4, 4, 3, padding=1), 2, 6, dims=2) == torch.bfloat16


def test_only_where_weights_are_trained_under_autocast():
    layer, image = nn.Conv3d(4, 4, 3, padding=1), torch.randn(1, 4, 2, 6, 6)
    with torch.no_grad():
        assert dtype_of(layer, 2, 6, 6) == torch.bfloat16
    assert dtype_of(nn.Conv3d(4, 4, 3, padding=1).requires_grad_(False), 2, 6, 6) == torch.bfloat16
    with ShallowConvolutionsInFloat32():
        assert torch.equal(layer(image), layer(image.clone()))
        assert layer(image).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(image).dtype == torch.bfloat16, "autocast alone: the check can fail"


@pytest.mark.parametrize("depth", [2, 3])
def test_gradients_under_the_inferer_are_those_of_float32_but_for_rounding(depth):
    """On a CPU with AVX512-BF16, depth 2 had garbage without it; memory is soiled so that it shows."""
    torch.manual_seed(0)
    layer, image = nn.Conv3d(16, 16, 3, padding=1), torch.randn(1, 16, depth, 4, 4)
    for _ in range(5):
        found = []
        for enabled in (False, True):
            layer.zero_grad()
            soiled = [torch.full((200_000,), 1e30) for _ in range(4)]
            del soiled
            AutocastInferer(SimpleInferer(), enabled=enabled)(image, layer).square().sum().backward()
            found.append(layer.weight.grad.clone())
        assert (found[1] - found[0]).norm() < 0.02 * found[0].norm()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_inferer_guards_where_it_casts(enabled):
    seen = []

    class Probe(nn.Conv3d):
        def forward(self, image):
            seen.append(super().forward(image).dtype)
            return super().forward(image)

    layer = Probe(4, 4, 3, padding=1)
    AutocastInferer(SimpleInferer(), enabled=enabled)(torch.randn(1, 4, 2, 6, 6), layer)
    AutocastInferer(SimpleInferer(), enabled=enabled)(torch.randn(1, 4, 4, 6, 6), layer)
    assert seen == [torch.float32, torch.bfloat16 if enabled else torch.float32]
