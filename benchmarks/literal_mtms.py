"""One training step of MTMS-KD as its formulas and its published code go, in plain torch.

It is what ``benchmarks/mtms_step.py`` holds our step against. Supervision and prediction maps are ours in other words:
the same values. The contrast is not: maps are flattened whole, after a projection that nobody trains.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kd.distillers import FeatureTaps

WEIGHTS = {"seg": 0.4, "encoder": 0.1, "bottleneck": 0.2, "decoder": 0.1, "maps": 0.2}
TAU = 0.4  # of the contrast
TEMPERATURE = 4.0  # of the prediction maps
STAGES = {"encoder": "pooled_2", "bottleneck": "bottleneck", "decoder": "decoder_1"}  # of both networks


class LiteralStep:
    """Sections 2.2 to 2.4 of the dossier: each side at the size of the larger map, each image one vector.

    The teacher runs both of its decoders, though nothing reads what one of them rebuilds. The 1x1 convolutions that
    bring the channels together are drawn anew in each step, those of the teacher's side without a gradient.

    Args:
        student, teacher: with ``encode`` and ``decode``, the teacher with ``reconstruct`` besides.
    """

    def __init__(self, student: Any, teacher: Any) -> None:
        self.student, self.teacher = student, teacher
        self.student_taps, self.teacher_taps = (FeatureTaps(net, STAGES) for net in (student, teacher))

    def loss(self, image: Tensor, label: Tensor) -> Tensor:
        """Return the loss of images and labels of class indices, ``(B, 1, H, W)``."""
        values = self.terms(image, label)
        return sum((WEIGHTS[name] * value for name, value in values.items()), start=torch.zeros(()))

    def terms(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Return the terms by name."""
        with torch.no_grad(), self.teacher_taps as theirs:
            features, skips = self.teacher.encode(image)
            wanted = self.teacher.decode(features, skips)
            self.teacher.reconstruct(features, skips)
        with self.student_taps as ours:
            logits = self.student(image)
        return {
            "seg": dice(logits, label),
            "encoder": info_nce(ours["encoder"], projected(theirs["encoder"], ours["encoder"])),
            "bottleneck": info_nce(ours["bottleneck"], projected(theirs["bottleneck"], ours["bottleneck"])),
            "decoder": info_nce(widened(ours["decoder"], theirs["decoder"]), theirs["decoder"]),
            "maps": divergence(logits, wanted),
        }


@torch.no_grad()
def projected(teacher: Tensor, student: Tensor) -> Tensor:
    """Bring a teacher's map to the student's size and channels."""
    if teacher.shape[2:] != student.shape[2:]:
        teacher = F.interpolate(teacher, size=student.shape[2:], mode="bilinear")
    return widened(teacher, student)


def widened(features: Tensor, other: Tensor) -> Tensor:
    """Project a map to the channels of another one, by a convolution that is thrown away."""
    result: Tensor = nn.Conv2d(features.shape[1], other.shape[1], 1)(features)
    return result


def info_nce(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy over the cosines of all student's with all teacher's images; the same image is right."""
    queries, keys = (F.normalize(value.flatten(1), dim=1) for value in (student, teacher))
    return F.cross_entropy(queries @ keys.T / TAU, torch.arange(len(queries)))


def dice(logits: Tensor, label: Tensor) -> Tensor:
    """Soft Dice loss of the foreground, all pixels of the batch together."""
    found, wanted = logits.softmax(1)[:, 1].flatten(), label.flatten()
    return 1 - (2 * (found * wanted).sum() + 1) / (found.sum() + wanted.sum() + 1)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL divergence from the teacher's softened prediction, mean over pixels of the sum over classes."""
    found, wanted = (value.div(TEMPERATURE).log_softmax(1) for value in (logits, target))
    return TEMPERATURE**2 * (wanted.exp() * (wanted - found)).sum(1).mean()
