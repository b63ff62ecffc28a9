"""All of MTMS-KD on a toy: with few labels the distilled student is not below the student alone, and images teach."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from ellipses import dice, images
from monai.losses import DiceCELoss
from monai.optimizers import WarmupCosineSchedule
from monai.utils import set_determinism
from torch import Tensor, nn

from monai_kd.distillers import Distiller, Term
from monai_kd.losses import MultiScaleContrastive, OnLabelled, SoftLogitKL
from monai_kd.networks import GridPool, ProjectionHead
from monai_kd.networks.nets import MultiTaskUNet, SlimUNet

pytestmark = pytest.mark.slow
SEG = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
SEEDS, LABELLED, BATCH, STEPS = (0, 1, 2), 6, 8, 150
SCALES = {"encoder": ("pooled_2", 0.1), "bottleneck": ("bottleneck", 0.2), "decoder": ("decoder_1", 0.1)}


@cache
def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return images(64, seed=0), images(64, seed=1)


def fit(distiller: Distiller, labelled: int, others: bool = False) -> nn.Module:
    """Train on so many labelled images, and as many of the others beside them in each step if asked for."""
    image, label = data()[0]
    optimizer = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=5e-3)
    schedule = WarmupCosineSchedule(optimizer, STEPS // 10, STEPS)
    distiller.train()
    for _ in range(STEPS):
        chosen = torch.randint(labelled, (BATCH,))
        known = torch.ones(BATCH)
        if others:
            chosen = torch.cat([chosen, torch.randint(labelled, len(image), (BATCH,))])
            known = torch.cat([known, torch.zeros(BATCH)])
        given = {"labelled": known, "original": image[chosen], "group": chosen}
        optimizer.zero_grad()
        distiller(image=image[chosen], label=label[chosen], **given).loss.backward()
        optimizer.step()
        schedule.step()
    return distiller.networks["student"].eval()


def distiller(student: nn.Module, teacher: nn.Module | None = None, rebuild: bool = False) -> Distiller:
    terms = {"seg": Term(OnLabelled(SEG), inputs={"labelled": "labelled"})}
    if rebuild:
        terms["reconstruction"] = Term(nn.MSELoss(), "student/reconstruction", "original", weight=0.2)
    if teacher is not None:
        for name, (stage, weight) in SCALES.items():
            terms[name] = Term(
                MultiScaleContrastive(tau=0.1, queue_size=32),
                f"student/{stage}",
                f"teacher/{stage}",
                weight,
                adapter=ProjectionHead(grid=4),
                target_adapter=GridPool(grid=4, width=64),
                inputs={"group": "group"},
            )
        terms["maps"] = Term(SoftLogitKL(4.0), "student/logits", "teacher/logits", 1.0)
    teachers = {} if teacher is None else {"teacher": teacher}
    cached = {name: name for name in ("labelled", "original", "group")}
    return Distiller(student, teachers, terms, cached=cached, input_shape=(1, 1, 32, 32))


@cache
def teacher() -> nn.Module:
    """A teacher with all labels that segments, and rebuilds the image."""
    set_determinism(0)
    network = MultiTaskUNet(2, 1, 2, channels=[8, 16, 32])
    fit(distiller(network, rebuild=True), len(data()[0][0]))
    return network.requires_grad_(False)


def student(seed: int) -> nn.Module:
    set_determinism(seed)
    return SlimUNet(2, 1, 2, channels=[6, 12, 24])


def test_distilled_is_not_below_alone_with_few_labels_and_images_without_labels_help_more():
    scores = {"alone": [], "distilled": [], "with images": []}
    for seed in SEEDS:
        scores["alone"].append(dice(fit(distiller(student(seed)), LABELLED), data()[1]))
        scores["distilled"].append(dice(fit(distiller(student(seed), teacher()), LABELLED), data()[1]))
        scores["with images"].append(dice(fit(distiller(student(seed), teacher()), LABELLED, True), data()[1]))
    best = dice(teacher(), data()[1])
    mean = {name: sum(values) / len(values) for name, values in scores.items()}
    print({name: [round(value, 3) for value in values] for name, values in scores.items()}, round(best, 3))
    assert mean["distilled"] >= mean["alone"], scores
    assert mean["with images"] > mean["alone"] + 0.02, scores
