"""Made-up images for distillers to learn from: bright ellipses among others that are less bright."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["SIZE", "dice", "images"]

SIZE = 32


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return bright ellipses among distractors of other brightness, and the ellipses' masks."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    drawn, masks = [], []
    for _ in range(count):
        image, mask = random.normal(0, 0.35, (SIZE, SIZE)), np.zeros((SIZE, SIZE), bool)
        for number in range(3):
            center, axes = random.uniform(7, SIZE - 7, 2), random.uniform(3, 7, 2)
            inside = ((rows - center[0]) / axes[0]) ** 2 + ((columns - center[1]) / axes[1]) ** 2 < 1
            image[inside] = (1.0 if number == 0 else 0.55) + random.normal(0, 0.3, int(inside.sum()))
            mask = inside if number == 0 else mask & ~inside
        drawn.append(image), masks.append(mask)
    image, mask = (torch.tensor(np.stack(part)[:, None]).float() for part in (drawn, masks))
    return image, mask


@torch.no_grad()
def dice(network: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Return the mean Dice over images of a network of two classes."""
    found = network.eval()(data[0]).argmax(1, keepdim=True)
    overlap = 2 * (found * data[1]).sum((1, 2, 3)) / (found.sum((1, 2, 3)) + data[1].sum((1, 2, 3))).clamp_min(1)
    return float(overlap.mean())
