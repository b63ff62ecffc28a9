"""What a frozen teacher says of a batch and of its photometric views, to be stored and read in place of the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_kd.distillers.aligned import check_encode_decode, check_views
from monai_kd.distillers.term import plain_tensor

__all__ = ["TeacherOutputs"]

_KINDS = ("latents", "logits")


class TeacherOutputs:
    """Compute the views of the teacher that :class:`GeneralizableDistiller` would, once for each patch of a bank.

    Give the names to the distiller's ``cached``: ``{"teacher_latents": "teacher/latents", "teacher_logits":
    "teacher/logits"}``. What then is left of the teacher in a step is ``teacher/cross_logits``, whose input changes
    with the student: one encoding and one decoding of the anchor.

    Args:
        teacher: with ``encode`` and ``decode``; evaluation mode, no gradient. It is moved to the batch's device.
        alignment: of the teacher; needed for latents alone.
        kinds: ``latents``, of anchor and views ``(B, 1 + N, D, L)``, and ``logits`` of the anchor ``(B, K, *S)``.

    Raises:
        TypeError: a teacher without the two halves.
        ValueError: an unknown kind, latents without alignment; on use, a batch without views where they are needed.
    """

    def __init__(
        self, teacher: nn.Module, alignment: nn.Module | None = None, kinds: Sequence[str] = ("latents", "logits")
    ) -> None:
        check_encode_decode("teacher", teacher)
        if unknown := sorted(set(kinds) - set(_KINDS)):
            raise ValueError(f"unknown kinds {unknown}; known: {', '.join(_KINDS)}")
        if not kinds:
            raise ValueError(f"kinds is empty; give some of {', '.join(_KINDS)}")
        if "latents" in kinds and alignment is None:
            raise ValueError("latents need the teacher's alignment network; give alignment, or other kinds")
        self.teacher, self.alignment, self.kinds = teacher, alignment, tuple(kinds)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        image = plain_tensor(batch["image"])
        halves: Any = self.teacher.to(image.device).eval()
        found = {}
        if "latents" in self.kinds:
            views = check_views(image, batch.get("views"), ["teacher_latents"]).unbind(1)
            alignment: Any = self.alignment
            latents = alignment.to(image.device).eval().encode(halves.encode(torch.cat([image, *views]))[0])
            found["teacher_latents"] = torch.stack(latents.split(len(image)), dim=1)
        if "logits" in self.kinds:
            found["teacher_logits"] = halves.decode(*halves.encode(image))
        return found
