"""A convolutional encoder, a transformer on its deepest map, and two decoders (teacher T2 of MTMS-KD)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import MLPBlock, SABlock
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn

from monai_kd.networks.blocks.units import Norm
from monai_kd.networks.halves import Skips, check_widths
from monai_kd.networks.multi_task import MultiTask, check_reconstruction_skips
from monai_kd.networks.nets.plain_unet import level_block
from monai_kd.networks.shapes import resample

__all__ = ["MultiTaskTransUNet"]

_DECODER_WIDTHS = (4, 8, 16)  # of the encoder's deepest level, by which the decoder's are divided
_DILATION = 3


class MultiTaskTransUNet(MultiTask):
    """A residual encoder to 1/16, a transformer on that map, and decoders for the segmentation and for the image.

    Each voxel of the deepest map is a token: 256 of a 256 x 256 image. In evaluation the output is the logits; in
    training a mapping of ``logits`` and ``reconstruction``, as :class:`MultiTaskUNet`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image, and of what is rebuilt.
        out_channels: logits, one per class, the background among them.
        channels: of the four levels of the encoder, at 1/2 to 1/16; multiples of 16.
        hidden_size: of a token, a multiple of ``num_heads``.
        mlp_dim: hidden units of each block's perceptron.
        num_layers: blocks of the transformer.
        num_heads: of its attention.
        position_grid: cells of the learned positions along each axis; they are interpolated to other maps.
        norm: of the convolutions, in MONAI's terms.
        reconstruction_skips: how many skips, from the deepest up, the second decoder takes, 0 to 3.

    Attributes:
        feature_channels: of the map that the decoders start from, half of the deepest level's.
        feature_stride: 16.
        head_names: what a Distiller must have a term for.

    Shape:
        ``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial)`` and ``(B, in_channels, *spatial)``; every
        size a multiple of 16.

    Raises:
        ValueError: a setting out of range; on use an image, features or skips that do not fit.

    Source: Biswas 2024, arXiv 2406.03173, after Chen et al. 2021, "TransUNet". There the transformer sees a single
    token, the whole map in 262,144 numbers, whose two linear maps hold 134.5 of 172.6 million parameters, and ties the
    network to one size. Here attention and perceptrons are MONAI's, normalized before and not behind, there is no class
    token, heads divide the token evenly, and interpolation does not align corners.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (128, 256, 512, 1024),
        hidden_size: int = 256,
        mlp_dim: int = 2048,
        num_layers: int = 8,
        num_heads: int = 8,
        position_grid: int = 16,
        norm: Norm = "batch",
        reconstruction_skips: int = 0,
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {spatial_dims!r}; known: 2, 3")
        check_widths("channels", channels, levels=4, multiple=16)
        sizes = {"hidden_size": hidden_size, "mlp_dim": mlp_dim, "num_layers": num_layers, "num_heads": num_heads}
        for name, value in {**sizes, "position_grid": position_grid}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number above 0")
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size is {hidden_size}; it must be a multiple of num_heads, {num_heads}")
        deepest = channels[-1]
        super().__init__(in_channels, deepest // 2, 16, skip_count=3, spatial_dims=spatial_dims)
        check_reconstruction_skips(reconstruction_skips, self.skip_count)
        conv = Conv[Conv.CONV, spatial_dims]
        self.stem = nn.Sequential(
            conv(in_channels, channels[0], 7, stride=2, padding=3, bias=False),
            get_norm_layer(norm, spatial_dims=spatial_dims, channels=channels[0]),
            nn.ReLU(inplace=True),
        )
        self.down = nn.ModuleList(_Halve(spatial_dims, *pair, norm) for pair in pairwise(channels))
        self.to_tokens = conv(deepest, hidden_size, 1)
        self.positions = nn.Parameter(torch.zeros(1, hidden_size, *[position_grid] * spatial_dims))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(_Attend(hidden_size, mlp_dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.from_tokens = conv(hidden_size, deepest, 1)
        self.bottleneck = level_block(spatial_dims, deepest, deepest // 2, norm, convolutions=1)
        widths = [deepest // part for part in _DECODER_WIDTHS]
        skips = list(channels[2::-1])
        self.decoder = _Raise(spatial_dims, deepest // 2, skips, widths, out_channels, norm)
        self.reconstruction = _Raise(
            spatial_dims, deepest // 2, skips[:reconstruction_skips], widths, in_channels, norm
        )

    @property
    def tap_stages(self) -> dict[str, str]:
        encoders = {"encoder_1": "stem", "encoder_2": "down.0", "encoder_3": "down.1", "encoder_4": "down.2"}
        decoders = {f"decoder_{4 - index}": f"decoder.up.{index}" for index in range(4)}
        return {**encoders, "bottleneck": "bottleneck", **decoders}

    def run_encoder(self, image: Tensor) -> tuple[Tensor, Skips]:
        features = self.stem(image)
        skips: list[Tensor] = []
        for block in self.down:
            skips.append(features)
            features = block(features)
        return self.bottleneck(self._attend(features)), tuple(skips)

    def run_decoder(self, features: Tensor, skips: Skips) -> Tensor:
        logits: Tensor = self.decoder(features, skips)
        return logits

    def reconstruct(self, features: Tensor, skips: Skips) -> Tensor:
        image: Tensor = self.reconstruction(features, skips)
        return image

    def _attend(self, features: Tensor) -> Tensor:
        """Let the voxels of the deepest map see each other."""
        tokens = self.to_tokens(features)
        grid = tokens.shape[2:]
        tokens = (tokens + resample(self.positions, grid, "linear")).flatten(2).transpose(1, 2)  # (B, L, hidden)
        for block in self.blocks:
            tokens = block(tokens)
        seen = self.norm(tokens).transpose(1, 2).unflatten(2, grid)
        attended: Tensor = self.from_tokens(seen)
        return attended


class _Attend(nn.Module):
    """A block of a vision transformer, normalized before; MONAI's own has weights for cross-attention as well."""

    def __init__(self, hidden_size: int, mlp_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.attention = SABlock(hidden_size, num_heads)
        self.mlp = MLPBlock(hidden_size, mlp_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm_attention(tokens))
        seen: Tensor = tokens + self.mlp(self.norm_mlp(tokens))
        return seen


class _Halve(nn.Module):
    """A residual block that halves the map: 1x1, 3x3 with dilation and stride 2, 1x1."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]

        def unit(width: int, kernel: int, **settings: int) -> list[nn.Module]:
            layer = conv(width, out_channels, kernel, bias=False, **settings)
            return [layer, get_norm_layer(norm, spatial_dims=spatial_dims, channels=out_channels)]

        self.body = nn.Sequential(
            *unit(in_channels, 1),
            nn.ReLU(inplace=True),
            *unit(out_channels, 3, stride=2, padding=_DILATION, dilation=_DILATION),
            nn.ReLU(inplace=True),
            *unit(out_channels, 1),
        )
        self.shortcut = nn.Sequential(*unit(in_channels, 1, stride=2))
        self.act = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        halved: Tensor = self.act(self.body(features) + self.shortcut(features))
        return halved


class _Raise(nn.Module):
    """A decoder by interpolation: three levels that may take a skip each, and one to full resolution without."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        skips: Sequence[int],
        widths: Sequence[int],
        out_channels: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.skips = len(skips)
        full = widths[-1] // 4
        before = [in_channels, *widths]
        beside = [*skips, *[0] * (len(before) - len(skips))]
        self.up = nn.ModuleList(
            level_block(spatial_dims, own + skip, after, norm)
            for own, skip, after in zip(before, beside, [*widths, full], strict=True)
        )
        self.head = Conv[Conv.CONV, spatial_dims](full, out_channels, 1)

    def forward(self, features: Tensor, skips: Skips) -> Tensor:
        for index, block in enumerate(self.up):
            features = resample(features, [2 * size for size in features.shape[2:]], "linear")
            if index < self.skips:
                features = torch.cat([skips[-1 - index], features], dim=1)
            features = block(features)
        result: Tensor = self.head(features)
        return result
