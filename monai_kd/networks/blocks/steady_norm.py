"""Normalizations that stay exact in exported files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SteadyGroupNorm", "SteadyInstanceNorm", "steady_mean"]


class SteadyGroupNorm(nn.GroupNorm):
    """``torch.nn.GroupNorm`` whose export sums axis by axis, and takes the mean away before it squares.

    Runtimes add the millions of voxels of a window up one after the other, which loses digits where they are alike, as
    in background: ONNX Runtime was 3e-3 logits off, PyTorch 1e-5. In an exported graph this layer is its own formula;
    everywhere else it is PyTorch's.

    Args, Shape: see ``torch.nn.GroupNorm``.
    """

    def forward(self, features: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return super().forward(features)
        normal = _two_pass(features, self.num_groups, self.eps)
        if self.weight is None:
            return normal
        shape = (1, -1, *[1] * (features.ndim - 2))
        return normal * self.weight.view(shape) + self.bias.view(shape)


class SteadyInstanceNorm(nn.Module):
    """An instance normalization without weights, with the same care.

    Args:
        norm: PyTorch's layer, without affine weights and running statistics.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, features: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            normal: Tensor = self.norm(features)
            return normal
        return _two_pass(features, features.shape[1], float(self.norm.eps))  # type: ignore[arg-type]


def steady_mean(features: Tensor, first: int) -> Tensor:
    """Return the mean over all axes from ``first`` on, one axis after the other, which are kept with length 1.

    Sums with a division between them: OpenVINO would join means of neighboring axes to one.
    """
    for axis in range(features.ndim - 1, first - 1, -1):
        features = features.sum(dim=axis, keepdim=True) / features.shape[axis]
    return features


def _two_pass(features: Tensor, groups: int, eps: float) -> Tensor:
    grouped = features.unflatten(1, (groups, -1))  # (B, G, C / G, *spatial)
    centered = grouped - steady_mean(grouped, 2)
    variance = steady_mean(centered.square(), 2)
    return (centered * torch.rsqrt(variance + eps)).flatten(1, 2)
