"""Cooperative deep supervision: the features of several teachers joined into one segmentation (CDSFL of MTCM-KD)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Act, Conv
from torch import Tensor, nn

from monai_kd.networks.blocks import ChannelGate

__all__ = ["CooperativeFusion"]

_INTERPOLATION = {3: "linear", 4: "bilinear", 5: "trilinear"}


class CooperativeFusion(nn.Module):
    """Fuse decoder features of several teachers into logits, which then train all of them and teach the student.

    Each teacher's features pass a :class:`~monai_kd.networks.blocks.ChannelGate` and a 1x1x1 convolution to the
    classes; the sum over teachers passes one more: ``V (sum_i W_i gate_i(x_i))``. For M teachers of C channels, K
    classes and ``h = C // reduction`` it has ``M ((Ch + h) + (hC + C) + (CK + K)) + K^2 + K`` parameters: 2,540 at
    C = 64, K = 4, M = 3.

    Teachers on other grids are brought to the coarsest one by linear interpolation.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of each teacher's features, one number per teacher.
        out_channels: classes.
        reduction: of the channel gates.
        act: activation between the sum and the last convolution, in MONAI's terms. None as in the reference code;
            ``("leakyrelu", {"negative_slope": 0.01})`` for the figure of the paper.

    Shape:
        List of features ``(B, C_i, *spatial_i)``, in the order of ``in_channels``, to logits
        ``(B, out_channels, *coarsest)``. Optional ``available``, ``(B, M)`` of 0 and 1, tells whether a sample has the
        teacher's modality: the sum then runs over the teachers at hand and is scaled by ``M / their number``. What
        comes out for a sample without any says nothing of it, and must be left out of losses.

    Raises:
        ValueError: no teacher, or on use another number of teachers, other channels, or another shape of
            ``available``.

    Source: Ahmad et al. 2024, figure 2 and equations 3, 4. What is missing was not foreseen there.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: Sequence[int],
        out_channels: int,
        reduction: int = 16,
        act: str | tuple | None = None,
    ) -> None:
        super().__init__()
        if not in_channels:
            raise ValueError(
                "in_channels of a CooperativeFusion is empty; give the channels of each teacher's features"
            )
        conv = Conv[Conv.CONV, spatial_dims]
        self.in_channels = list(in_channels)
        self.gates = nn.ModuleList(ChannelGate(size, reduction) for size in in_channels)
        self.projections = nn.ModuleList(conv(size, out_channels, 1) for size in in_channels)
        self.act = nn.Identity() if act is None else _activation(act)
        self.classify = conv(out_channels, out_channels, 1)

    def forward(self, features: Sequence[Tensor], available: Tensor | None = None) -> Tensor:
        self._check(features)
        size = min((value.shape[2:] for value in features), key=lambda shape: shape.numel())
        shares = None if available is None else self._shares(available)
        total: Tensor | None = None
        for index, (value, gate, project) in enumerate(zip(features, self.gates, self.projections, strict=True)):
            part = _to_grid(project(gate(value)), size)  # linear in the voxels, as the interpolation: either order
            if shares is not None:
                share = shares[:, index].reshape(-1, *[1] * (part.ndim - 1))
                # a teacher that is not there may hold anything
                part = torch.where(share > 0, part * share.to(part.dtype), torch.zeros_like(part))
            total = part if total is None else total + part
        logits: Tensor = self.classify(self.act(total))
        return logits

    def _shares(self, available: Tensor) -> Tensor:
        if available.ndim != 2 or available.shape[1] != len(self.in_channels):
            raise ValueError(
                f"available has the shape {tuple(available.shape)}; give (batch, {len(self.in_channels)}), one per "
                "teacher"
            )
        count = available.sum(dim=1, keepdim=True)
        return available * (len(self.in_channels) / count.clamp_min(1))

    def _check(self, features: Sequence[Tensor]) -> None:
        got = [value.shape[1] for value in features]
        if got != self.in_channels:
            raise ValueError(f"CooperativeFusion got features of {got} channels, it takes {self.in_channels}")


def _to_grid(value: Tensor, size: torch.Size) -> Tensor:
    if value.shape[2:] == size:
        return value
    return F.interpolate(value, size=tuple(size), mode=_INTERPOLATION[value.ndim], align_corners=False)


def _activation(act: str | tuple) -> nn.Module:
    name, settings = (act, {}) if isinstance(act, str) else (act[0], act[1])
    return Act[name](**settings)
