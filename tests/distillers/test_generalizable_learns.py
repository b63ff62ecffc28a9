"""All of GKD on a toy: alignment brings the latents together, and distillation costs nothing in the source domain."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ellipses import SIZE, dice, images
from monai.losses import DiceCELoss
from monai.utils import set_determinism
from torch import Tensor, nn

from monai_kd.distillers import AlignmentDistiller, Distiller, GeneralizableDistiller, Term
from monai_kd.losses import CompleteGraph, CosineDistance, RelativeSquaredError, SoftLogitKL, StarGraph
from monai_kd.networks.nets import AlignmentNetwork, PlainUNet, SemanticAutoencoder

pytestmark = pytest.mark.slow
SEG = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
BATCH, SEEDS = 16, (0, 1, 2)
LATENT = {"latent_channels": 32, "latent_length": 16, "grid": 4}
TEACHER, STUDENT = [12, 24, 48], [6, 12, 24]


def views_of(image: Tensor) -> Tensor:
    """Return brightness, noise, blur and a shading, ``(B, 4, 1, H, W)``."""
    gain = torch.empty(len(image), 1, 1, 1).uniform_(0.6, 1.4)
    shading = torch.linspace(-0.4, 0.4, SIZE).expand(SIZE, SIZE)
    blurred = F.avg_pool2d(F.pad(image, [1] * 4, mode="replicate"), 3, 1)
    return torch.stack([gain * image + 0.2, image + 0.3 * torch.randn_like(image), blurred, image + shading], dim=1)


def fit(distiller: Distiller, data: tuple[Tensor, Tensor], steps: int, rate: float, views: bool = False) -> Distiller:
    optimizer = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=rate, weight_decay=2e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    distiller.train()
    for _ in range(steps):
        chosen = torch.randint(len(data[0]), (BATCH,))
        given = {"image": data[0][chosen], "label": data[1][chosen]}
        if views:
            given["views"] = views_of(given["image"])
        optimizer.zero_grad()
        distiller(**given).loss.backward()
        optimizer.step()
        schedule.step()
    return distiller.eval()


@cache
def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return images(64, seed=0), images(64, seed=1)


@cache
def teacher_and_autoencoder() -> tuple[nn.Module, nn.Module]:
    set_determinism(0)
    teacher = PlainUNet(2, 1, 2, TEACHER)
    source = data()[0]
    fit(Distiller(teacher, terms={"seg": Term(SEG)}), source, 200, 3e-3)
    autoencoder = SemanticAutoencoder(2, 2, channels=(8, 16, 32), **LATENT)
    terms = {
        "seg": Term(SEG),
        "direct": Term(SEG, "student/direct"),
        "code": Term(RelativeSquaredError(), "student/decoded_code", "student/code", weight=0.1),
    }
    masks = (source[1], source[1])
    fit(Distiller(autoencoder, terms=terms), masks, 100, 3e-3)
    return teacher.requires_grad_(False), autoencoder.requires_grad_(False)


def align(scratch: nn.Module) -> tuple[nn.ModuleDict, float]:
    """Return both alignment networks, trained, and the cosine of their latents on test images, which has risen."""
    teacher, autoencoder = teacher_and_autoencoder()
    networks = {"teacher": teacher, "scratch": scratch}
    aligned = nn.ModuleDict(
        {
            "teacher": AlignmentNetwork(2, TEACHER[-1], act="relu", **LATENT),
            "scratch": AlignmentNetwork(2, STUDENT[-1], act="relu", **LATENT),
        }
    )
    terms = {}
    for name in networks:
        terms[f"{name}_features"] = Term(RelativeSquaredError(), f"{name}/aligned", f"{name}/features")
        terms[f"{name}_semantic"] = Term(CosineDistance(), f"{name}/latent", "semantic/latent")
        terms[f"{name}_prediction"] = Term(SoftLogitKL(1.0), f"{name}/aligned_logits", f"{name}/logits")

    @torch.no_grad()
    def cosine() -> float:
        image = data()[1][0]
        latents = [aligned[name].encode(networks[name].eval().encode(image)[0]).flatten(1) for name in networks]
        return float(F.cosine_similarity(*latents).mean())

    before = cosine()
    fit(AlignmentDistiller(aligned, networks, autoencoder, terms), data()[0], 100, 3e-3, views=True)
    after = cosine()
    assert after > before
    return aligned.requires_grad_(False), after


def distill(start: nn.Module, aligned: nn.ModuleDict) -> nn.Module:
    student = copy.deepcopy(start).requires_grad_(True)
    terms = {
        "seg": Term(SEG),
        "intra": Term(StarGraph(), "student/latents", "teacher/latents", weight=0.1),
        "inter": Term(CompleteGraph(), "student/latents", "teacher/latents", weight=0.1),
        "cross_encoder": Term(SoftLogitKL(1.0), "teacher/cross_logits", "teacher/logits"),
        "cross_decoder": Term(SoftLogitKL(1.0), "student/cross_logits", "teacher/logits"),
    }
    teacher = teacher_and_autoencoder()[0]
    alignments = {"student": aligned["scratch"], "teacher": aligned["teacher"]}
    fit(GeneralizableDistiller(student, teacher, terms, alignments), data()[0], 60, 1e-3, views=True)
    return student


def test_distilled_is_not_below_continued_training_in_its_own_domain():
    source, test = data()
    rows = []
    for seed in SEEDS:
        teacher_and_autoencoder()  # seeds itself
        set_determinism(seed)
        scratch = PlainUNet(2, 1, 2, STUDENT)
        fit(Distiller(scratch, terms={"seg": Term(SEG)}), source, 150, 3e-3)
        continued = copy.deepcopy(scratch)
        fit(Distiller(continued, terms={"seg": Term(SEG)}), source, 60, 1e-3)
        aligned, cosine = align(scratch.requires_grad_(False))
        rows.append((dice(scratch, test), dice(continued, test), dice(distill(scratch, aligned), test), cosine))
    start, continued, distilled, cosine = np.mean(rows, axis=0)
    assert dice(teacher_and_autoencoder()[0], test) > 0.6
    assert start > 0.5  # something was learned at all
    assert cosine > 0.7  # headers can be exchanged
    assert distilled > continued - 0.005
