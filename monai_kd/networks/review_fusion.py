"""Attention-based fusion of student stages, from deep to shallow, for knowledge review (Chen et al. 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_kd.networks.shapes import (
    Features,
    LazyAdapter,
    Shape,
    check_maps,
    check_mode,
    check_voxels,
    grids_of,
    like,
    resample,
)

__all__ = ["ReviewFusion"]

# affine: without it the features could not take the teacher's scale
_NORMS: dict[str, Any] = {"batch": "batch", "instance": ("instance", {"affine": True})}


class ReviewFusion(LazyAdapter):
    """Bring the student's stages to the teacher's shapes, each reviewed with what deeper stages found.

    From the deepest stage to the shallowest: a 1x1 convolution brings the stage to ``mid_channels``; all but the
    deepest are mixed with the fused stage before, resized to their grid, by two attention maps; a 3x3 convolution
    on the teacher's grid gives the teacher's channels. A normalization follows both convolutions. The results are
    compared by :class:`monai_kd.losses.KnowledgeReview`. All parameters are the adapter's; the student's network
    stays as it is.

    Stages are sorted here: the one with the fewest voxels is the deepest; on equal grids the one with more channels;
    if they too are equal, the one listed later. So the order of the list changes neither values nor weights.

    Args:
        mid_channels: channels in which stages are mixed, >= 1; None takes those of the deepest student stage, at
            most 512. Every stage gets several maps of so many channels: with fine 3-D stages give a small number, or
            leave the finest out, to save memory.
        upsample: how a fused stage is brought to another grid, ``nearest`` or ``linear``.
        norm: ``batch`` as in the paper, or ``instance`` (with scale and shift), whose statistics do not depend on the
            batch: the better choice for 3-D patches at batch size 1.

    Shape:
        student, target: ``(B, C, *spatial)`` with 1 to 3 spatial axes, or equally long lists of such; grids of
        student and teacher may differ and may change from call to call. Returns the student's features in the shapes
        of the targets, in the order given.

    Raises:
        ValueError: on building, shapes that are not such pairs; or a grid of a single voxel, whose variance is not
            defined with ``instance``, nor with ``batch`` at batch size 1. The same in training with smaller inputs.
        RuntimeError: on use before it was built.

    Source: Chen et al. 2021, "Distilling Knowledge via Knowledge Review", section 3.2 and figure 4. The published
    code carries the sizes in its settings and depends on the order of the stages; here sizes are the tensors' own. As
    in its CIFAR version the resize to the teacher's grid comes before the 3x3 convolution, but the next stage gets
    the features from before that resize. Nearest means nearest voxel centers; the same where grids double.
    """

    def __init__(self, mid_channels: int | None = None, upsample: str = "nearest", norm: str = "batch") -> None:
        super().__init__()
        whole = isinstance(mid_channels, int) and not isinstance(mid_channels, bool) and mid_channels > 0
        if mid_channels is not None and not whole:
            raise ValueError(f"mid_channels is {mid_channels!r}; it must be a whole number of at least 1, or None")
        self.mid_channels = mid_channels
        self.upsample = check_mode("upsample", upsample, ("nearest", "linear"))
        self.norm = check_mode("norm", norm, tuple(_NORMS))
        self.order: list[int] = []  # positions in the given lists, deep first
        self.stages = nn.ModuleList()  # deep first

    def make(self, own: list[Shape], other: list[Shape]) -> None:
        check_maps(own, other, "ReviewFusion")
        if len({len(shape) for shape in own}) > 1:
            raise ValueError(f"ReviewFusion mixes its stages, but {own} differ in their spatial axes")
        for mine, theirs in zip(own, other, strict=True):
            self._check_grids(mine, theirs)
        self.order = sorted(range(len(own)), key=lambda i: (math.prod(own[i][2:]), -own[i][1], -i))
        mid = self.mid_channels or min(512, own[self.order[0]][1])
        norm = _NORMS[self.norm]
        self.stages.extend(
            [_Stage(len(own[i]) - 2, own[i][1], mid, other[i][1], n > 0, norm) for n, i in enumerate(self.order)]
        )

    def forward(self, student: Features, target: Features) -> Any:
        features = self.take(student)
        sizes = grids_of(target, features, "ReviewFusion")
        results, fused = list(features), None
        for position, stage in zip(self.order, self.stages, strict=True):
            feature, size = features[position], sizes[position]
            if self.training:
                self._check_grids(feature.shape, (*feature.shape[:2], *size))
            results[position], fused = stage(feature, fused, size, self.upsample)
        return like(student, results)

    def extra_repr(self) -> str:
        return f"mid_channels={self.mid_channels}, upsample={self.upsample!r}, norm={self.norm!r}"

    def _check_grids(self, own: Shape, other: Shape) -> None:
        for shape in (own, other):  # the 1x1 convolution is normalized on the student's grid, the 3x3 on the teacher's
            check_voxels(shape, self.norm, "ReviewFusion")


class _Stage(nn.Module):
    """One stage: to the mixing channels, attention with the deeper stage, to the teacher's grid and channels."""

    def __init__(self, dims: int, channels: int, mid: int, out: int, fuse: bool, norm: Any) -> None:
        super().__init__()
        self.reduce = Convolution(dims, channels, mid, kernel_size=1, norm=norm, act=None, bias=False)
        self.attention = Conv[Conv.CONV, dims](2 * mid, 2, kernel_size=1) if fuse else None
        self.restore = Convolution(dims, mid, out, kernel_size=3, norm=norm, act=None, bias=False)
        for block in (self.reduce, self.restore):
            nn.init.kaiming_uniform_(block.get_parameter("conv.weight"), a=1)

    def forward(self, feature: Tensor, deeper: Tensor | None, size: torch.Size, mode: str) -> tuple[Tensor, Tensor]:
        fused = self.reduce(feature)
        if self.attention is not None and deeper is not None:
            deeper = resample(deeper, fused.shape[2:], mode)
            gates = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = gates[:, :1] * fused + gates[:, 1:] * deeper
        return self.restore(resample(fused, size, mode)), fused
