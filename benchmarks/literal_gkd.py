"""One training step of GKD as its formulas read, view by view, in plain torch.

It is what ``benchmarks/gkd_step.py`` holds our step against: the same loss and gradients, no care for time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = {"seg": 1.0, "intra": 0.1, "inter": 0.1, "cross_encoder": 1.0, "cross_decoder": 1.0}


class LiteralStep:
    """Sections 3.4 to 3.6 of the dossier, each pass on its own.

    Args:
        student, teacher: with ``encode`` and ``decode``.
        own, other: alignment networks of student and teacher.
    """

    def __init__(self, student: Any, teacher: Any, own: Any, other: Any) -> None:
        self.student, self.teacher, self.own, self.other = student, teacher, own, other

    def loss(self, image: Tensor, label: Tensor, views: Tensor) -> Tensor:
        """Return the loss: image and label of class indices ``(B, 1, H, W)``, views ``(B, N, 1, H, W)``."""
        images = [image, *views.unbind(1)]
        with torch.no_grad():  # E_T of every view, D_T of the anchor
            encoded = [self.teacher.encode(view) for view in images]
            latents_t = [self.other.encode(features) for features, _ in encoded]
            target = self.teacher.decode(*encoded[0])
        features, skips = self.student.encode(image)
        logits = self.student.decode(features, skips)
        latents_s = [self.own.encode(features)]
        for view in images[1:]:
            latents_s.append(self.own.encode(self._aside(lambda view=view: self.student.encode(view)[0])))
        cross_t = self.teacher.decode(self.other.decode(latents_s[0], encoded[0][0].shape[2:]), encoded[0][1])
        shaped = self.own.decode(latents_t[0], features.shape[2:])
        cross_s = self._aside(lambda: self.student.decode(shaped, skips))
        values = {
            "seg": F.cross_entropy(logits, label[:, 0].long()),
            "intra": self._intra(latents_s, latents_t),
            "inter": self._inter(latents_s, latents_t),
            "cross_encoder": _divergence(cross_t, target),
            "cross_decoder": _divergence(cross_s, target),
        }
        return sum((WEIGHTS[name] * value for name, value in values.items()), start=torch.zeros(()))

    def _aside(self, run: Any) -> Tensor:
        """Run a pass of the student that leaves its running statistics alone: they are put back."""
        norms = [module for module in self.student.modules() if isinstance(module, nn.BatchNorm2d)]
        names = ("running_mean", "running_var", "num_batches_tracked")
        kept = [[getattr(norm, name) for name in names] for norm in norms]
        for norm in norms:  # the pass writes into copies: backward still needs what these hold
            for name in names:
                setattr(norm, name, getattr(norm, name).clone())
        result: Tensor = run()
        for norm, values in zip(norms, kept, strict=True):
            for name, value in zip(names, values, strict=True):
                setattr(norm, name, value)
        return result

    def _intra(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Cosines of the anchor with every view."""
        terms = []
        for view in range(1, len(student)):
            for row in range(len(student[0])):
                terms.append((_cosine(student, 0, view, row) - _cosine(teacher, 0, view, row)) ** 2)
        return torch.stack(terms).mean()

    def _inter(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Cosines of every two views."""
        terms = []
        for one in range(1, len(student)):
            for other in range(one + 1, len(student)):
                for row in range(len(student[0])):
                    terms.append((_cosine(student, one, other, row) - _cosine(teacher, one, other, row)) ** 2)
        return torch.stack(terms).mean()


def _cosine(latents: list[Tensor], one: int, other: int, row: int) -> Tensor:
    return F.cosine_similarity(latents[one][row].flatten(), latents[other][row].flatten(), dim=0)


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over pixels of the sum over classes."""
    found, wanted = logits.log_softmax(1), target.log_softmax(1)
    return (wanted.exp() * (wanted - found)).sum(1).mean()
