"""Distillation losses as their papers' formulas are usually written down in PyTorch, left to autograd.

They are what ``benchmarks/losses.py`` holds monai_kd's losses against: the same values, no care for memory or extreme
logits. All take ``(student, teacher, label)``; logits and features are ``(B, C, *spatial)``, labels class indices
``(B, 1, *spatial)``, on the grid of the image.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


def kd(student: Tensor, teacher: Tensor, label: Tensor, temperature: float = 2.0) -> Tensor:
    """Hinton 2015: KL of softened probabilities, mean over voxels."""
    log_student = F.log_softmax(student / temperature, dim=1)
    probabilities = F.softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, probabilities, reduction="none").sum(1).mean() * temperature**2


def lskd(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Sun 2024: KD of the z-scores over the classes."""
    own, other = ((z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7) for z in (student, teacher))
    return kd(own, other, label)


def dkd(student: Tensor, teacher: Tensor, label: Tensor, temperature: float = 4.0) -> Tensor:
    """Zhao 2022 with alpha 1 and beta 2: target against the rest, and the rest alone, by one-hot masks."""
    classes = student.shape[1]
    mask = F.one_hot(label.squeeze(1).long(), classes).movedim(-1, 1).float()
    scaled = student / temperature, teacher / temperature
    binary = []
    for logits in scaled:
        probability = F.softmax(logits, dim=1)
        binary.append(torch.stack([(probability * mask).sum(1), (probability * (1 - mask)).sum(1)], dim=1))
    target = F.kl_div(binary[0].log(), binary[1], reduction="none").sum(1).mean()
    log_student = F.log_softmax(scaled[0] - 1000 * mask, dim=1)
    others = F.softmax(scaled[1] - 1000 * mask, dim=1)
    rest = F.kl_div(log_student, others, reduction="none").sum(1).mean()
    return (target + 2 * rest) * temperature**2


def dist(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Huang 2022: one minus the correlation of the probabilities, over the classes and over the voxels."""
    rows = [F.softmax(z, dim=1).movedim(1, -1).flatten(0, -2) for z in (student, teacher)]
    return _no_correlation(*rows) + _no_correlation(*(value.T for value in rows))


def _no_correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = (value - value.mean(1, keepdim=True) for value in (a, b))
    return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-8).mean()


def cwd(student: Tensor, teacher: Tensor, label: Tensor, temperature: float = 4.0) -> Tensor:
    """Shu 2021: KL of each channel's softmax over the positions, mean over channels and samples."""
    student, teacher = (value.flatten(2).flatten(0, 1) / temperature for value in (student, teacher))
    log_student, probabilities = F.log_softmax(student, dim=1), F.softmax(teacher, dim=1)
    return F.kl_div(log_student, probabilities, reduction="batchmean") * temperature**2


def at(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Zagoruyko 2017: squared distance of normalized maps of the mean square over channels, mean over samples."""
    maps = [F.normalize(value.pow(2).mean(1).flatten(1), dim=1) for value in (student, teacher)]
    return (maps[0] - maps[1]).pow(2).sum(1).mean()


def hcl(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Chen 2021: mean squared error of the features and of both pooled to 4, 2 and 1 bins per axis."""
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[student.ndim - 3]
    loss, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for bins in (4, 2, 1):
        weight /= 2
        loss = loss + weight * F.mse_loss(pool(student, bins), pool(teacher, bins))
        weights += weight
    return loss / weights


def fitnets(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Romero 2015: mean squared error."""
    return F.mse_loss(student, teacher)


def pkd(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Cao 2022: half the mean squared error of channels with mean 0 and deviation 1 over batch and space."""
    rows = [value.transpose(0, 1).flatten(1) for value in (student, teacher)]
    own, other = ((value - value.mean(1, keepdim=True)) / (value.std(1, keepdim=True) + 1e-6) for value in rows)
    return F.mse_loss(own, other) / 2


def ifvd(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Wang 2020: squared difference of the cosines of each voxel's features with the mean of its class."""
    label = F.interpolate(label.float(), size=student.shape[2:], mode="nearest-exact")
    return F.mse_loss(_similarity(student, label), _similarity(teacher, label))


def _similarity(features: Tensor, label: Tensor) -> Tensor:
    space = list(range(2, features.ndim))
    center = features.clone()
    for index in range(int(label.max()) + 1):
        mask = (label == index).float()
        mean = (features * mask).sum(space, keepdim=True) / (mask.sum(space, keepdim=True) + 1e-6)
        center = (1 - mask) * center + mask * mean
    return F.cosine_similarity(features, center, dim=1)


def rad(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Qin 2021: squared difference of the cosines of mean features of two classes, mean over pairs and samples."""
    label = F.interpolate(label.float(), size=student.shape[2:], mode="nearest-exact")
    samples = []
    for own, other, index in zip(student, teacher, label, strict=True):
        present = [number for number in range(int(label.max()) + 1) if (index == number).any()]
        means = [[_masked_mean(value, index == number) for number in present] for value in (own, other)]
        pairs = [
            F.cosine_similarity(means[0][i], means[0][j], dim=0) - F.cosine_similarity(means[1][i], means[1][j], dim=0)
            for i, j in itertools.combinations(range(len(present)), 2)
        ]
        samples.append(torch.stack(pairs).pow(2).mean())
    return torch.stack(samples).mean()


def _masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    return (features * mask).flatten(1).sum(1) / mask.sum()
