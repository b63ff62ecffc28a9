"""A bottleneck in and out of a small latent space that several networks share (the MSAN of GKD)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_act_layer
from torch import Tensor, nn

from monai_kd.networks.shapes import resample

__all__ = ["AlignmentNetwork"]

_POOL = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class AlignmentNetwork(nn.Module):
    """An encoder from features to a latent of ``latent_channels x latent_length`` numbers, and a header back.

    Encoder: mean over the cells of a grid, 1x1 convolution to D channels, and for each channel alike
    ``Linear(cells, hidden), GELU, Linear(hidden, L)``. Header: the same backwards, linear interpolation to the
    features' grid, ``act``. As the latent's shape does not depend on the network, the latent of one network goes
    through the header of another: ``teacher.decode(student.encode(features), size)``.

    The grid is fixed here, the features may have any size. Along axes that are smaller than the grid the encoder
    repeats voxels and the header takes means again, so that nothing is lost where the grid is a multiple.

    Parameters: ``C D + D`` and ``G H + H + H L + L`` for the encoder of C channels, D, L, hidden H and G cells;
    ``L H + H + H G + G`` and ``D C + C`` for the header. The published one is ``AlignmentNetwork(2, 512, 512, 1, 16,
    mix_channels=False)``: 16,513 + 16,768 = 33,281.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C, of the features.
        latent_channels: D, shared by all networks that are to be aligned.
        latent_length: L, numbers per channel, shared likewise. 1, as published, loses most of the features: an error
            of 0.8 of their variance where 16 left 0.06 to 0.31.
        grid: cells along each axis, one number or one for each axis; 4 is usual in 3-D.
        hidden: H.
        act: the activation that made the features, in MONAI's terms: ``relu`` for :class:`SKUNet`, ``relu6`` for
            :class:`MobileNetV2UNet`; None for features of either sign.
        mix_channels: whether the 1x1 convolutions are there. Without, channels keep their meaning, and C must be D;
            two networks whose channels mean different things can then not be aligned.

    Shape:
        Features ``(B, C, *spatial)`` to features of the same shape; :meth:`encode` gives the latent ``(B, D, L)``.

    Raises:
        ValueError: a setting out of range, or on use other channels or axes.

    Source: Qi et al. 2024, doi:10.1109/jbhi.2024.3385098; layers from the published teacher's latent head, which is
    tied to 512 channels on a 16 x 16 grid in batches of 1 or 4 and has no counterpart for a student. Grid, resizing and
    1x1 convolutions are this project's. The convolutions run on the grid; they commute with means and interpolation.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        latent_channels: int = 128,
        latent_length: int = 16,
        grid: int | Sequence[int] = 8,
        hidden: int = 64,
        act: str | tuple | None = None,
        mix_channels: bool = True,
    ) -> None:
        super().__init__()
        self.grid = _checked_grid(spatial_dims, grid)
        self.in_channels, self.latent_channels, self.latent_length = in_channels, latent_channels, latent_length
        sizes = {"in_channels": in_channels, "latent_channels": latent_channels, "latent_length": latent_length}
        for name, value in {**sizes, "hidden": hidden}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number above 0")
        if not mix_channels and in_channels != latent_channels:
            raise ValueError(
                f"mix_channels=False needs as many channels as the latent has, got in_channels {in_channels} and "
                f"latent_channels {latent_channels}"
            )
        cells, conv = math.prod(self.grid), Conv[Conv.CONV, spatial_dims]
        self.pool = _POOL[spatial_dims](self.grid)
        self.to_latent = conv(in_channels, latent_channels, 1) if mix_channels else nn.Identity()
        self.encoder = nn.Sequential(nn.Linear(cells, hidden), nn.GELU(), nn.Linear(hidden, latent_length))
        self.header = nn.Sequential(nn.Linear(latent_length, hidden), nn.GELU(), nn.Linear(hidden, cells))
        self.from_latent = conv(latent_channels, in_channels, 1) if mix_channels else nn.Identity()
        self.act = nn.Identity() if act is None else get_act_layer(act)

    def forward(self, features: Tensor) -> Tensor:
        return self.decode(self.encode(features), features.shape[2:])

    def encode(self, features: Tensor) -> Tensor:
        """Return the latent ``(B, D, L)`` of features ``(B, C, *spatial)``."""
        if features.ndim != len(self.grid) + 2 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"AlignmentNetwork got features {tuple(features.shape)}; it takes (batch, {self.in_channels}, "
                f"*spatial) with {len(self.grid)} spatial axes"
            )
        cells = self.to_latent(self.pool(features)).flatten(2)  # (B, D, cells)
        latent: Tensor = self.encoder(cells)
        return latent

    def decode(self, latent: Tensor, size: Sequence[int]) -> Tensor:
        """Return features ``(B, C, *size)`` of a latent ``(B, D, L)``, which may come from another network."""
        if latent.shape[1:] != (self.latent_channels, self.latent_length) or len(size) != len(self.grid):
            raise ValueError(
                f"AlignmentNetwork got a latent {tuple(latent.shape)} for the grid {tuple(size)}; it takes (batch, "
                f"{self.latent_channels}, {self.latent_length}) and {len(self.grid)} sizes"
            )
        features = self.from_latent(self.header(latent).unflatten(2, self.grid))
        smaller = [min(pair) for pair in zip(self.grid, size, strict=True)]
        resized: Tensor = self.act(resample(resample(features, smaller, "area"), size, "linear"))
        return resized


def _checked_grid(spatial_dims: int, grid: int | Sequence[int]) -> tuple[int, ...]:
    if spatial_dims not in _POOL:
        raise ValueError(f"spatial_dims is {spatial_dims!r}; known: 2, 3")
    cells = (grid,) * spatial_dims if isinstance(grid, int) else tuple(grid)
    if len(cells) != spatial_dims or not all(isinstance(size, int) and size > 0 for size in cells):
        raise ValueError(f"grid is {grid!r}; give a whole number above 0, or one for each of {spatial_dims} axes")
    return cells
