"""The ResNet of dense prediction: a stem of three small convolutions, and dilation for its last strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from monai_kd.networks.blocks.steady_norm import SteadyInstanceNorm
from monai_kd.networks.blocks.units import Norm
from monai_kd.networks.halves import check_widths

__all__ = ["BasicBlock", "Bottleneck", "ResNetV1c"]

RELU: tuple[str, dict[str, Any]] = ("relu", {"inplace": True})


class BasicBlock(nn.Module):
    """Two 3x3 convolutions round which the input is added; the first has the stride and the dilation.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        width: channels of the convolutions; the block's output has ``expansion`` times as many.
        stride, dilation: of the first 3x3 convolution, in voxels.
        norm: in MONAI's terms. The weight of the branch's last one, where it has any, starts at 0: at first the block
            is its shortcut.

    Shape:
        ``(B, in_channels, *spatial)`` to ``(B, expansion * width, *spatial / stride)``, rounded up.

    Source: He et al. 2016, arXiv 1512.03385, figure 5. MONAI's ``ResNetBlock`` has no dilation.
    """

    expansion = 1

    def __init__(
        self, spatial_dims: int, in_channels: int, width: int, stride: int = 1, dilation: int = 1, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        channels = self.expansion * width
        self.branch = self.make_branch(spatial_dims, in_channels, width, stride, dilation, norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = convolution(spatial_dims, in_channels, channels, 1, norm, None, strides=stride)
        self.act = nn.ReLU(inplace=True)  # of a fresh sum

    def make_branch(
        self, spatial_dims: int, in_channels: int, width: int, stride: int, dilation: int, norm: Norm
    ) -> nn.Sequential:
        return nn.Sequential(
            convolution(spatial_dims, in_channels, width, 3, norm, strides=stride, dilation=dilation),
            convolution(spatial_dims, width, width, 3, norm, None),
        )

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = self.act(self.branch(features) + self.shortcut(features))
        return added

    def start_as_shortcut(self) -> None:
        """Set the weight of the branch's last norm to 0."""
        weight = getattr(self.branch[-1].get_submodule("adn.N"), "weight", None)  # instance norm has none
        if weight is not None:
            nn.init.zeros_(weight)


class Bottleneck(BasicBlock):
    """1x1, 3x3 with the stride and the dilation, and 1x1 to four times the width.

    Args, Shape: see :class:`BasicBlock`.

    Source: He et al. 2016, figure 5, whose first convolution has the stride. MONAI's ``ResNetBottleneck`` has no
    dilation.
    """

    expansion = 4

    def make_branch(
        self, spatial_dims: int, in_channels: int, width: int, stride: int, dilation: int, norm: Norm
    ) -> nn.Sequential:
        return nn.Sequential(
            convolution(spatial_dims, in_channels, width, 1, norm),
            convolution(spatial_dims, width, width, 3, norm, strides=stride, dilation=dilation),
            convolution(spatial_dims, width, self.expansion * width, 1, norm, None),
        )


_DEPTHS: dict[int, tuple[type[BasicBlock], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNetV1c(nn.Module):
    """A ResNet "V1c, d8": three 3x3 convolutions as stem, and the last two stages dilated at stride 8.

    A stage of dilation d > 1 begins with a block of d / 2, so that the field of view grows step by step.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        depth: 18, of :class:`BasicBlock`, or 50, of :class:`Bottleneck`.
        channels: widths of the four stages' convolutions, multiples of 4; the stem ends with the first.
        norm: in MONAI's terms.
        plain: the classic network in place of it: one 7x7 convolution as stem, strides to 32 and no dilation.

    Attributes:
        out_channels: of the four stages, ``channels`` times 1 (18) or 4 (50).
        strides: of the four stages in voxels of the image: 4, 8, 8, 8, or 4, 8, 16, 32 where plain.

    Shape:
        ``(B, in_channels, *spatial)`` to the list of the four stages' maps ``(B, out_channels[i], *spatial /
        strides[i])``, sizes rounded up.

    Raises:
        ValueError: other axes, another depth, or widths that are no four multiples of 4.

    Convolutions start from Kaiming's normal distribution by fan-out.

    Source: He et al. 2016, with the stem of Szegedy et al. 2016 and the dilations of Yu et al. 2017, "Dilated Residual
    Networks", as MMSegmentation combines them. MONAI's ``ResNet`` has neither.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        depth: int = 18,
        channels: Sequence[int] = (64, 128, 256, 512),
        norm: Norm = "batch",
        plain: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {spatial_dims!r}; known: 2, 3")
        check_depth(depth)
        check_widths("channels", channels, levels=4, multiple=4)
        block, counts = _DEPTHS[depth]
        steps, dilations = ((1, 2, 2, 2), (1, 1, 1, 1)) if plain else ((1, 2, 1, 1), (1, 1, 2, 4))
        self.out_channels = [block.expansion * width for width in channels]
        self.strides = (4, 8, 16, 32) if plain else (4, 8, 8, 8)
        self.stem = _stem(spatial_dims, in_channels, channels[0], norm, plain)
        self.pool = Pool[Pool.MAX, spatial_dims](3, stride=2, padding=1)
        before = [channels[0], *self.out_channels]
        self.stages = nn.ModuleList(
            _stage(block, count, spatial_dims, own, width, step, dilation, norm)
            for count, own, width, step, dilation in zip(counts, before[:4], channels, steps, dilations, strict=True)
        )
        self.apply(start_convolutions)
        for module in self.modules():
            if isinstance(module, BasicBlock):
                module.start_as_shortcut()

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.pool(self.stem(image))
        maps = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps


def check_depth(depth: int) -> None:
    if depth not in _DEPTHS:
        raise ValueError(f"depth is {depth!r}; known: {', '.join(map(str, _DEPTHS))}")


def _stem(spatial_dims: int, in_channels: int, channels: int, norm: Norm, plain: bool) -> nn.Sequential:
    """Return convolutions that halve the resolution."""
    if plain:
        return nn.Sequential(convolution(spatial_dims, in_channels, channels, 7, norm, strides=2))
    half = channels // 2
    return nn.Sequential(
        convolution(spatial_dims, in_channels, half, 3, norm, strides=2),
        convolution(spatial_dims, half, half, 3, norm),
        convolution(spatial_dims, half, channels, 3, norm),
    )


def _stage(
    block: type[BasicBlock],
    count: int,
    spatial_dims: int,
    in_channels: int,
    width: int,
    stride: int,
    dilation: int,
    norm: Norm,
) -> nn.Sequential:
    first = block(spatial_dims, in_channels, width, stride, max(1, dilation // 2), norm)
    others = (block(spatial_dims, block.expansion * width, width, 1, dilation, norm) for _ in range(count - 1))
    return nn.Sequential(first, *others)


def convolution(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    norm: Norm,
    act: tuple[str, dict[str, Any]] | None = RELU,
    *,
    strides: int = 1,
    dilation: int = 1,
    bias: bool = False,
) -> Convolution:
    """Return a convolution that keeps the size (but for its stride), a norm and, where given, an activation."""
    block = Convolution(
        spatial_dims,
        in_channels,
        out_channels,
        strides=strides,
        kernel_size=kernel_size,
        adn_ordering="N" if act is None else "NA",
        act=act,
        norm=norm,
        dilation=dilation,
        bias=bias,
    )
    own = block.get_submodule("adn.N")
    if isinstance(own, nn.InstanceNorm2d | nn.InstanceNorm3d) and not (own.affine or own.track_running_stats):
        # 512 x 512 of background: an exported depth 50 is 7e-6 logits off, without this 3e-4
        block.get_submodule("adn").register_module("N", SteadyInstanceNorm(own))
    return block


def start_convolutions(module: nn.Module) -> None:
    """Give a convolution its first weights, for ``nn.Module.apply``: Kaiming's by fan-out, and biases of zero."""
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
