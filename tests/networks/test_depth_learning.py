"""A task that single slices cannot solve: a tube that drifts through slices among blobs that look the same."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from monai_kd.networks.nets import DSMUNet

SIZE, DEPTH, BLOBS, STEPS = 24, 12, 4, 200


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


def dice_after_training(exchange: str) -> float:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = DSMUNet(1, 2, exchange=exchange, channels=(8, 16, 16))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    for _ in range(STEPS):
        image, label = volumes(generator, 2)
        optimizer.zero_grad()
        loss(network(image), label).backward()
        optimizer.step()
    image, label = volumes(torch.Generator().manual_seed(99), 8)
    with torch.no_grad():
        found = network.eval()(image).argmax(dim=1, keepdim=True)
    return float(2 * (found * label).sum() / (found.sum() + label.sum()))


@pytest.mark.slow
def test_slices_that_exchange_features_solve_what_single_slices_cannot():
    dice = {exchange: dice_after_training(exchange) for exchange in ("none", "plain", "distill")}
    assert dice["none"] < 0.3
    assert dice["distill"] > 0.8
    assert dice["none"] < dice["plain"] < dice["distill"]
