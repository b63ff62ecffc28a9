"""Tiny networks in two halves, with alignment networks and made-up images, for the tests of GKD's distillers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_kd.networks.nets import AlignmentNetwork


class TwoHalves(nn.Module):
    """A U-Net of two levels with batch normalization."""

    def __init__(self, channels: int, in_channels: int = 1, out_channels: int = 2, dims: int = 2) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.top = nn.Sequential(conv(in_channels, channels, 3, padding=1), norm(channels), nn.ReLU())
        self.low = nn.Sequential(conv(channels, 2 * channels, 3, 2, 1), norm(2 * channels), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2)
        self.join = nn.Sequential(conv(3 * channels, channels, 3, padding=1), norm(channels), nn.ReLU())
        self.head = conv(channels, out_channels, 1)

    def encode(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        skip = self.top(image)
        return self.low(skip), (skip,)

    def decode(self, features: Tensor, skips: tuple[Tensor, ...]) -> Tensor:
        return self.head(self.join(torch.cat([self.up(features), skips[0]], dim=1)))

    def forward(self, image: Tensor) -> Tensor:
        return self.decode(*self.encode(image))


class MaskLatent(nn.Module):
    """Stands for a semantic autoencoder."""

    def __init__(self, latent_channels: int = 8, latent_length: int = 4) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.code = nn.Linear(16, latent_channels * latent_length)
        self.shape = (latent_channels, latent_length)

    def latent(self, label: Tensor) -> Tensor:
        return self.code(self.pool(label.float()).flatten(1)).unflatten(1, self.shape)


def alignment(channels: int, dims: int = 2) -> AlignmentNetwork:
    return AlignmentNetwork(dims, channels, latent_channels=8, latent_length=4, grid=4, hidden=8, act="relu")


def batch(samples: int = 2, views: int = 3, size: int = 16, dims: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Return image, label and photometric views."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(samples, 1, *[size] * dims, generator=generator)
    label = (image > 0.5).float()
    noise = torch.randn(samples, views, 1, *[size] * dims, generator=generator)
    return {"image": image, "label": label, "views": image.unsqueeze(1) + 0.3 * noise}
