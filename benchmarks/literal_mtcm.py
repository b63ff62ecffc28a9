"""The joint step of MTCM-KD as its formulas read and as its reference runs it, left to autograd.

It is what ``benchmarks/mtcm_step.py`` holds our step against: the same gradients, no care for time and memory.

- Student and teachers run with their graphs, which all live until the teachers' backward pass; the student's step
  follows the teachers', each with an Adam of its own.
- Dice, Jaccard and cross-entropy take a softmax each, and one-hot labels in floating point.
- One divergence per teacher, with the logarithm of a softmax.
- The Dice that weigh the teachers come from Python loops over 2-D slices of five quantities, in which an empty slice
  counts 1. They cost their time here and weigh nothing: the weights of a step are given.

The networks are ours: the reference's have the same operations. Two things are corrected, or nothing could be compared:
distillation is the mean over voxels, not the sum, and multiplied by the square of the temperature, not by the
temperature. Source: Ahmad et al. 2024 (MTCM-KD), for a student and teachers that see one modality each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_kd.distillers import CooperativeDistiller, CooperativeTeachers

EPSILON = 1e-7  # in denominators
SUPERVISED, RESPONSE, SIDE, SIDE_SHARES, COOPERATION = 0.75, 0.15, 0.10, (0.7, 0.3), 0.08
# what is scored slice by slice: three classes and two unions of them
QUANTITIES = ((1,), (2,), (3,), (1, 3), (1, 2, 3))


def one_hot(label: Tensor, classes: int, like: Tensor) -> Tensor:
    """Return ``(B, 1, *spatial)`` class indices as ``(B, K, *spatial)`` of floating point, by way of the CPU."""
    spread = F.one_hot(label.squeeze(1).long().cpu(), classes)
    return spread.movedim(-1, 1).to(like.dtype).to(like.device)


def dice_loss(logits: Tensor, label: Tensor) -> Tensor:
    p, y = torch.softmax(logits, dim=1), one_hot(label, logits.shape[1], logits)
    over = [0, *range(2, logits.ndim)]
    both, total = (p * y).sum(dim=over), (p + y).sum(dim=over)
    return 1 - (2 * both / (total + EPSILON)).mean()


def jaccard_loss(logits: Tensor, label: Tensor) -> Tensor:
    p, y = torch.softmax(logits, dim=1), one_hot(label, logits.shape[1], logits)
    over = [0, *range(2, logits.ndim)]
    both, total = (p * y).sum(dim=over), (p + y).sum(dim=over)
    return 1 - (both / (total - both + EPSILON)).mean()


def supervised_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return a third each of Dice loss, Jaccard loss and cross-entropy, the background among the classes."""
    entropy = F.cross_entropy(logits, label.squeeze(1).long())
    return (dice_loss(logits, label) + jaccard_loss(logits, label) + entropy) / 3


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher, student): sum over classes, mean over batch and voxels, times ``temperature**2``."""
    q = torch.softmax(teacher.detach() / temperature, dim=1)
    p = torch.softmax(student / temperature, dim=1)
    return temperature**2 * (q * (torch.log(q) - torch.log(p))).sum(dim=1).mean()


def response_loss(student: Tensor, teachers: Sequence[Tensor], weights: Sequence[float], temperature: float) -> Tensor:
    """Return the weighted sum of one divergence per teacher."""
    terms = [
        weight * divergence(student, teacher, temperature) for weight, teacher in zip(weights, teachers, strict=True)
    ]
    return torch.stack(terms).sum()


def even_voxels(label: Tensor) -> Tensor:
    """Return the label at half resolution."""
    return label[(slice(None), slice(None), *[slice(None, None, 2)] * (label.ndim - 2))]


def slice_dice(logits: Tensor, label: Tensor) -> list[float]:
    """Return the Dice of each quantity, averaged over all slices along the first spatial axis."""
    found = []
    for members in QUANTITIES:
        predicted = torch.isin(logits.argmax(dim=1), torch.tensor(members, device=logits.device))
        labeled = torch.isin(label.squeeze(1).long(), torch.tensor(members, device=logits.device))
        found.append(_mean_dice(predicted, labeled))
    return found


def _mean_dice(predicted: Tensor, labeled: Tensor) -> float:
    if predicted.ndim > 2:
        return sum(_mean_dice(p, y) for p, y in zip(predicted, labeled, strict=True)) / len(predicted)
    total = float(predicted.float().sum() + labeled.float().sum())
    both = float((predicted.float() * labeled.float()).sum())
    return 1.0 if total == 0 else 2 * both / total


class LiteralStep:
    """One iteration: the teachers' step, then the student's, on logits from before either.

    Args:
        distiller: ours, whose student, side head, teachers and fusion are taken over; its terms are not.
        weights: of the teachers' divergences in this step, of sum 0.15.
        temperature: of the distillation.
        learning_rate: of both optimizers.
    """

    def __init__(
        self, distiller: CooperativeDistiller, weights: Sequence[float], temperature: float, learning_rate: float
    ) -> None:
        self.student, self.side = distiller.student, distiller.parts["side_1"]
        self.teachers: CooperativeTeachers = distiller.group
        self.weights, self.temperature = list(weights), temperature
        self.dice: dict[str, list[float]] = {}
        own = [*self.student.parameters(), *self.side.parameters()]
        self.teacher_optimizer = torch.optim.Adam(self.teachers.parameters(), lr=learning_rate)
        self.student_optimizer = torch.optim.Adam(own, lr=learning_rate)

    def __call__(self, image: Tensor, label: Tensor) -> None:
        logits, half = _run(self.student, image)
        runs = {name: _run(network, image) for name, network in self.teachers.networks.items()}
        features = {name: {"decoder_2": run[1]} for name, run in runs.items()}
        fused = self.teachers.fuse("fused", features, None)
        self._teacher_step({name: run[0] for name, run in runs.items()}, fused, label)
        self._student_step(logits, self.side(half), [run[0] for run in runs.values()], fused, label)

    def _teacher_step(self, logits: dict[str, Tensor], fused: Tensor, label: Tensor) -> None:
        supervised = torch.stack([supervised_loss(value, label) for value in logits.values()]).sum()
        loss = supervised + COOPERATION * supervised_loss(fused, even_voxels(label))
        self.dice = {name: slice_dice(value.detach(), label) for name, value in logits.items()}
        self.teacher_optimizer.zero_grad()
        loss.backward()
        self.teacher_optimizer.step()

    def _student_step(self, logits: Tensor, side: Tensor, teachers: list[Tensor], fused: Tensor, label: Tensor) -> None:
        response = response_loss(logits, teachers, self.weights, self.temperature)
        at_side = SIDE_SHARES[0] * supervised_loss(side, even_voxels(label))
        at_side = at_side + SIDE_SHARES[1] * divergence(side, fused, self.temperature)
        loss = SUPERVISED * supervised_loss(logits, label) + response + SIDE * at_side
        self.student_optimizer.zero_grad()
        loss.backward()
        self.student_optimizer.step()


def _run(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and the decoder's features at half resolution."""
    half, skip = network.lower(image)  # type: ignore[operator]
    logits: Tensor = network.top(half, skip)  # type: ignore[operator]
    return logits, half
