"""Context from coarse grids and from whole rows and columns of the image (Hou et al. 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kd.networks.blocks.units import Norm, relu, unit

__all__ = ["StripPooling"]


class StripPooling(nn.Module):
    """Add to every voxel what two coarse grids and its own row and column show.

    One half sees the image at full size and on two square grids; the other the mean of each row and of each column. A
    1x1 convolution joins the halves, and the result is added to the input.

    Args:
        channels: of input and output, even where ``gated``.
        grids: cells per axis of the two coarse grids.
        gated: the form of the finest level of SK-U-Net: the coarse maps have half the channels and stand beside the
            map of full size where they are added otherwise, and the strip map is multiplied with the input.
        norm: in MONAI's terms.

    Shape:
        ``(B, channels, H, W)`` to the same, any size.

    Source: Hou et al. 2020, "Strip Pooling", section 3.2 (the mixed pooling module), at full width; ``gated`` from GKD
    (Qi et al. 2024), whose number of parameters both forms have. Where a size is no multiple of a grid, each voxel
    takes the cell that its center lies in; theirs is the cell of its upper left corner.
    """

    def __init__(
        self,
        channels: int,
        grids: tuple[int, int],
        gated: bool = False,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.grids, self.gated = tuple(grids), gated
        coarse = channels // 2 if gated else channels
        self.to_grids = unit(channels, channels, 1, norm, relu())
        self.full = unit(channels, channels, 3, norm)
        self.coarse = nn.ModuleList(unit(channels, coarse, 3, norm) for _ in self.grids)
        self.from_grids = unit(channels + 2 * coarse if gated else channels, channels, 3, norm, relu())
        self.to_strips = unit(channels, channels, 1, norm, relu())
        self.rows = unit(channels, channels, (3, 1), norm)
        self.columns = unit(channels, channels, (1, 3), norm)
        self.from_strips = unit(channels, channels, 3, norm, relu())
        self.join = unit(2 * channels, channels, 1, norm)

    def forward(self, features: Tensor) -> Tensor:
        grids, strips = self._grids(features), self._strips(features)
        if self.gated:
            strips = strips * features
        return (features + self.join(torch.cat([grids, strips], dim=1))).relu_()

    def _grids(self, features: Tensor) -> Tensor:
        reduced = self.to_grids(features)
        maps = [self.full(reduced)]
        for cells, convolution in zip(self.grids, self.coarse, strict=True):
            maps.append(spread(convolution(pooled(reduced, cells)), reduced.shape[2:]))
        joined = torch.cat(maps, dim=1) if self.gated else sum(maps[1:], start=maps[0])
        result: Tensor = self.from_grids(joined.relu_())
        return result

    def _strips(self, features: Tensor) -> Tensor:
        reduced = self.to_strips(features)
        rows = self.rows(reduced.mean(dim=3, keepdim=True))  # (B, C, H, 1)
        columns = self.columns(reduced.mean(dim=2, keepdim=True))  # (B, C, 1, W)
        result: Tensor = self.from_strips((rows + columns).relu_())
        return result


def pooled(features: Tensor, cells: int) -> Tensor:
    """Return the mean of each cell of a square grid, cells overlapping where the size is no multiple of their number.

    PyTorch's adaptive pooling; in an exported graph two matrix products, since runtimes know it for fixed sizes only.

    Args:
        features: ``(B, C, H, W)``.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(features, cells)
    down, right = (_means(size, cells, features) for size in features.shape[2:])
    return down @ features @ right.mT


def spread(cells: Tensor, size: tuple[int, ...]) -> Tensor:
    """Give each voxel of a grid the cell that its center lies in, in an exported graph by numbers of cells.

    Args:
        cells: ``(B, C, h, w)``.
        size: of the grid.
    """
    if not torch.compiler.is_exporting():
        return F.interpolate(cells, size=size, mode="nearest-exact")
    for axis, (length, count) in enumerate(zip(size, cells.shape[2:], strict=True), start=2):
        centers = 2 * torch.arange(length, device=cells.device) + 1
        cells = cells.index_select(axis, centers * count // (2 * length))
    return cells


def _means(size: int, cells: int, like: Tensor) -> Tensor:
    """Return the matrix ``(cells, size)`` that takes the mean of the voxels that a cell touches."""
    voxel = torch.arange(size, device=like.device)
    cell = torch.arange(cells, device=like.device).unsqueeze(1)
    inside = (voxel >= cell * size // cells) & (voxel < ((cell + 1) * size + cells - 1) // cells)
    weights = inside.to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)
