"""A task that single slices cannot solve: a tube that drifts through slices among blobs that look the same."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss
from torch import Tensor

from monai_kd.networks.nets import DSMUNet

SIZE, DEPTH, BLOBS, STEPS = 24, 12, 4, 200
SPLIT_SEED = 99  # of the test volumes


def volumes(generator: torch.Generator, number: int) -> tuple[Tensor, Tensor]:
    """Images and labels ``(B, 1, H, W, D)``; only the tube is labeled, and only its neighbors tell it from a blob."""
    grid = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")).float()

    def disc(center: Tensor) -> Tensor:
        return ((grid - center.view(2, 1, 1)).square().sum(dim=0) < 7).float()

    image, label = (torch.zeros(number, 1, SIZE, SIZE, DEPTH) for _ in range(2))
    for one, truth in zip(image[:, 0], label[:, 0], strict=True):
        center = torch.rand(2, generator=generator) * (SIZE - 8) + 4
        for index in range(DEPTH):
            center = (center + torch.randn(2, generator=generator)).clamp(3, SIZE - 4)
            truth[..., index] = disc(center)
            blobs = [disc(torch.rand(2, generator=generator) * (SIZE - 6) + 3) for _ in range(BLOBS)]
            one[..., index] = torch.stack([truth[..., index], *blobs]).amax(dim=0)
    return image + 0.2 * torch.randn(image.shape, generator=generator), label


def held_out_volumes(number: int = 8) -> tuple[Tensor, Tensor]:
    """Volumes that no training sees."""
    return volumes(torch.Generator().manual_seed(SPLIT_SEED), number)


def trained(exchange: str, seed: int, steps: int = STEPS) -> DSMUNet:
    """Train a small ``DSMUNet`` on volumes made anew for each step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DSMUNet(1, 2, exchange=exchange, channels=(8, 16, 16))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    for _ in range(steps):
        image, label = volumes(generator, 2)
        optimizer.zero_grad()
        loss(network(image), label).backward()
        optimizer.step()
    return network.eval()


def predicted(network: DSMUNet, image: Tensor) -> Tensor:
    with torch.no_grad():
        return network(image).argmax(dim=1, keepdim=True)


def dice(found: Tensor, label: Tensor) -> float:
    return float(2 * (found * label).sum() / (found.sum() + label.sum()))
