"""Distillation by the relations among views of an image, and by exchanged decoders (GKD, Qi et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_kd.distillers.aligned import check_alignments, check_encode_decode, check_views, realign
from monai_kd.distillers.batch_statistics import keep_running_statistics
from monai_kd.distillers.distiller import Distiller
from monai_kd.distillers.term import Term, plain_tensor

__all__ = ["GeneralizableDistiller"]

_OF_BOTH = ("logits", "latents", "cross_logits", "all_logits")


class GeneralizableDistiller(Distiller):
    """A Distiller that compares how student and teacher relate several views of an image, and exchanges decoders.

    ``student/logits`` and ``teacher/logits`` are of the image itself, the *anchor*. Other views, each computed only if
    a term reads it:

    - ``student/latents``, ``teacher/latents`` ``(B, 1 + N, D, L)``: of the anchor and of its N photometric views, each
      by its own network's encoder and alignment network. For :class:`monai_kd.losses.StarGraph` and
      :class:`monai_kd.losses.CompleteGraph`: dual contrastive graph distillation (DCGD).
    - ``teacher/cross_logits``: the student's latent, made features of the teacher and decoded by the teacher; it trains
      the student's encoder. ``student/cross_logits``: the teacher's latent, made features of the student and decoded by
      the student; it trains the student's decoder. Each decoder keeps the skips of its own encoder on the anchor. For
      :class:`monai_kd.losses.SoftLogitKL` with ``teacher/logits``: domain-invariant cross distillation (DICD).
    - ``student/all_logits``, ``teacher/all_logits``, ``all_labels``: of anchor and views, ``((1 + N) * B, ...)``, all
      anchors first, then all first views, and so on: supervision and distillation on every view.

    The photometric views come with the batch under ``views``, ``(B, N, C, *spatial)``, and lie on the anchor's grid.

    The student's passes over views and its cross decoding normalize by the batch at hand, view by view, and leave the
    running statistics alone, which would drift away from what inference sees (3 Dice points in the source domain,
    dossier 5.1). Where a term reads ``student/all_logits`` the views are training data and move them.

    Args:
        student, teacher: networks with ``encode(image) -> (features, skips)`` and ``decode(features, skips) ->
            logits``; wrap others in :class:`monai_kd.networks.EncodeDecode`. The teacher is frozen; None where no term
            reads it.
        alignments: ``{"student": ..., "teacher": ...}``, as :class:`AlignmentDistiller` trains them, with
            ``encode(features) -> latent`` and ``decode(latent, size) -> features``. None where no term reads latents or
            cross logits.
        terms: see :class:`Distiller`.
        cached: batch keys that replace the teacher's views, e.g. ``{"teacher_latents": "teacher/latents"}``.
        freeze_alignment: ``False`` lets the student's alignment network learn on; ``state_dict()`` then holds it as
            ``parts.student_alignment.*``.
        detach_skips: stop the gradient of ``student/cross_logits`` at the skips: it trains the decoder alone.
        guard: ``False`` lets the auxiliary passes move the running statistics.

    Raises:
        TypeError: a network or an alignment without ``encode`` and ``decode``.
        ValueError: not one alignment for each of the two; on use, a batch without the views that a term reads;
            otherwise as for :class:`Distiller`.

    Source: Qi et al. 2024, doi:10.1109/jbhi.2024.3385098. Its training code was never released: the formulas are this
    project's reading of the abstract, the figures and the network definitions.
    """

    optional_keys = ("views",)

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        terms: Mapping[str, Term] | None = None,
        alignments: Mapping[str, nn.Module] | None = None,
        cached: Mapping[str, str] | None = None,
        freeze_alignment: bool = True,
        detach_skips: bool = False,
        guard: bool = True,
    ) -> None:
        teachers = {} if teacher is None else {"teacher": teacher}
        for name, network in {"student": student, **teachers}.items():
            check_encode_decode(name, network)
        own = dict(alignments or {})
        if own:
            check_alignments(own, ("student", "teacher"))
        self._aligned = bool(own)
        parts = {"student_alignment": own.pop("student")} if own and not freeze_alignment else {}
        frozen = {**teachers, **{f"{name}_alignment": module for name, module in own.items()}}
        super().__init__(student, frozen, terms, cached=cached, parts=parts)
        self.detach_skips, self.guard = detach_skips, guard

    def known_views(self) -> list[str]:
        kinds = _OF_BOTH if self._aligned else ("logits", "all_logits")
        replaced = list(self.cached.values())
        names = [name for name in ("student", "teacher") if name in self.networks]
        live = [f"{name}/{kind}" for name in names for kind in kinds]
        return ["label", "all_labels", *(view for view in live if view not in replaced), *replaced]

    def views(
        self, image: Tensor, label: Tensor | None, views: Tensor | None = None, **cached: Tensor
    ) -> dict[str, Tensor]:
        read = set(self._addresses())
        found = {} if label is None else {"label": plain_tensor(label)}
        found.update({self.cached[key]: plain_tensor(value) for key, value in cached.items()})
        wide = sorted(address for address in read if address.endswith(("/latents", "/all_logits")))
        others = list(check_views(image, views, wide).unbind(1)) if wide else []
        if label is not None and "all_labels" in read:
            found["all_labels"] = found["label"].repeat(1 + len(others), *[1] * (label.ndim - 1))
        student = self._side("student", image, others, read | {"student/logits"})
        with torch.no_grad():
            teacher = self._side("teacher", image, others, read - set(found))
        found.update({**student.views, **teacher.views})
        found.update(self._crossed("teacher", teacher, student.latent) if "teacher/cross_logits" in read else {})
        if "student/cross_logits" in read:
            latent = found["teacher/latents"][:, 0] if "teacher/latents" in found else teacher.latent
            with self._auxiliary("student"):
                found.update(self._crossed("student", student, latent))
        return found

    # ---- inner work --------------------------------------------------------------------------------------------

    def _side(self, name: str, image: Tensor, others: list[Tensor], read: set[str]) -> _Side:
        """Run one of the two networks as far as its views are read."""
        asked = {view.partition("/")[2] for view in read if view.startswith(f"{name}/")}
        crossed = self._aligned and any(view.endswith("/cross_logits") for view in read)
        if not asked and not crossed:
            return _Side({}, None, (), None)
        network: Any = self.networks[name]
        features, skips = network.encode(image)
        views = {"logits": network.decode(features, skips)} if asked & {"logits", "all_logits"} else {}
        latents = [self._alignment(name).encode(features)] if crossed or "latents" in asked else []
        if asked & {"latents", "all_logits"} and others:
            maps, logits = self._others(name, others, "all_logits" in asked)
            if "latents" in asked:
                latents += self._alignment(name).encode(torch.cat(maps)).split(len(image))
            if "all_logits" in asked:
                views["all_logits"] = torch.cat([views["logits"], *logits])
        if "latents" in asked:
            views["latents"] = torch.stack(latents, dim=1)
        return _Side({f"{name}/{view}": value for view, value in views.items()}, features, skips, *latents[:1])

    def _others(self, name: str, others: list[Tensor], decoded: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Return the features of the photometric views, and their logits if they are asked for.

        The frozen teacher takes them all at once, which changes nothing in evaluation mode; the student view by view,
        since its batch normalization must not mix them.
        """
        network: Any = self.networks[name]
        batches = [torch.cat(others)] if name == "teacher" else others
        maps, logits = [], []
        with nullcontext() if decoded else self._auxiliary(name):
            for batch in batches:
                features, skips = network.encode(batch)
                maps.append(features)
                if decoded:
                    logits.append(network.decode(features, skips))
        return maps, logits

    def _crossed(self, name: str, side: _Side, latent: Tensor | None) -> dict[str, Tensor]:
        """Decode the other network's latent by this network's decoder, with its own skips."""
        assert side.features is not None  # a term reads cross_logits, so both were run
        assert latent is not None
        features = realign(self._alignment(name), latent, side.features)
        skips = _detached(side.skips) if name == "student" and self.detach_skips else side.skips
        network: Any = self.networks[name]
        return {f"{name}/cross_logits": network.decode(features, skips)}

    def _alignment(self, name: str) -> Any:
        key = f"{name}_alignment"
        return self.parts[key] if key in self.parts else self.frozen_teachers[key]

    def _auxiliary(self, name: str) -> AbstractContextManager[Any]:
        """Return the context of passes that are no training data."""
        guarded = name == "student" and self.guard
        return keep_running_statistics(self.student) if guarded else nullcontext()

    def _find_read_teachers(self) -> list[str]:
        return list(self.frozen_teachers)


class _Side(NamedTuple):
    """What one of the two networks said of a batch: its views, and of the anchor features, skips and latent."""

    views: dict[str, Tensor]
    features: Tensor | None
    skips: Any
    latent: Tensor | None = None


def _detached(skips: Any) -> Any:
    if isinstance(skips, Tensor):
        return skips.detach()
    return type(skips)(_detached(skip) for skip in skips) if isinstance(skips, (list, tuple)) else skips
