"""The fixed task of noisy_labels.py: small images of three objects, and labels as a careless annotator draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

CLASS_NAMES = ("ellipse", "stripes", "dark ellipse")  # labels 1, 2, 3


@dataclass(frozen=True)
class Task:
    """The fixed task. Pixels for sizes, fractions of all objects for noise; images and noise follow from ``seed``."""

    size: int = 32
    teaching: int = 128  # images with clean labels, for the teacher
    training: int = 12  # images with noisy labels, for the students
    test: int = 64  # images with clean labels, for the scores
    image_noise: float = 0.35  # SD; objects stand out by 1
    missing: float = 0.15
    swapped: float = 0.15  # labelled as another class
    most_shift: int = 2  # along each axis
    most_growth: int = 1  # eroded or dilated so many times
    teacher_channels: tuple[int, ...] = (16, 32, 64)
    student_channels: tuple[int, ...] = (8, 16, 32)
    teacher_steps: int = 120  # batches of 16
    student_steps: int = 80  # batches of all training images
    learning_rate: float = 1.0e-2
    seed: int = 0


class Data(NamedTuple):
    """Images ``(N, 1, H, W)`` and labels of the same shape for each purpose."""

    teaching: tuple[Tensor, Tensor]
    training: tuple[Tensor, Tensor]
    training_clean: Tensor
    test: tuple[Tensor, Tensor]


def draw_case(task: Task, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its label: one object of each class on an uneven background."""
    y, x = np.mgrid[: task.size, : task.size].astype(float)
    slope_x, slope_y, phase = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2), rng.uniform(0, 2 * np.pi)
    image = 0.4 * np.sin(slope_x * x + slope_y * y + phase)
    label = np.zeros((task.size, task.size), dtype=np.int64)
    value = 1
    while value <= len(CLASS_NAMES):
        center_y, center_x = rng.uniform(6, task.size - 6, 2)
        half_u, half_v = rng.uniform(3.5, 6.0, 2)
        turn = rng.uniform(0, np.pi)
        u = (x - center_x) * np.cos(turn) + (y - center_y) * np.sin(turn)
        v = (y - center_y) * np.cos(turn) - (x - center_x) * np.sin(turn)
        inside = (u / half_u) ** 2 + (v / half_v) ** 2 <= 1
        if value == 2:
            inside = (abs(u) <= 0.85 * half_u) & (abs(v) <= 0.85 * half_v)
        if (ndimage.binary_dilation(inside, iterations=2) & (label > 0)).any():
            continue  # objects keep a distance
        texture = (np.ones_like(u), 1 + 0.8 * np.sign(np.sin(np.pi * u / 1.5)), -np.ones_like(u))[value - 1]
        image[inside] += texture[inside]
        label[inside] = value
        value += 1
    noise = task.image_noise * rng.standard_normal(image.shape)
    return ndimage.gaussian_filter(image, 0.4) + noise, label


def corrupted(label: np.ndarray, task: Task, rng: np.random.Generator) -> np.ndarray:
    """Return a label as a careless annotator draws it: each object missing, swapped, or at least of a wrong outline."""
    noisy = np.zeros_like(label)
    classes = len(CLASS_NAMES)
    for value in range(1, classes + 1):
        mask, luck = label == value, rng.random()
        other, growth = 1 + (value - 1 + rng.integers(1, classes)) % classes, rng.integers(-1, 2) * task.most_growth
        shift = rng.integers(-task.most_shift, task.most_shift + 1, 2)
        if luck < task.missing:
            continue
        if growth:
            change = ndimage.binary_dilation if growth > 0 else ndimage.binary_erosion
            mask = change(mask, iterations=abs(growth))
        moved = ndimage.shift(mask.astype(np.int64), shift, order=0) > 0  # what leaves the image is cut off
        noisy[moved] = other if luck < task.missing + task.swapped else value
    return noisy


def make_data(task: Task) -> Data:
    """Draw the task's images; each part has random numbers of its own, so that one may grow and the others stay."""

    def cases(part: int, count: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([task.seed, part])
        images, labels = zip(*(draw_case(task, rng) for _ in range(count)), strict=True)
        return stacked(images), stacked(labels)

    teaching, training, test = (cases(n, count) for n, count in enumerate((task.teaching, task.training, task.test)))
    rng = np.random.default_rng([task.seed, 3])
    noisy = stacked([corrupted(label[0].numpy().astype(np.int64), task, rng) for label in training[1]])
    return Data(teaching, (training[0], noisy), training[1], test)


def stacked(maps: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(maps)[:, None].astype(np.float32))
