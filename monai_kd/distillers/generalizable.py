"""Distillation by the relations among views of an image, and by exchanged decoders (GKD, Qi et al. 2024)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from monai.networks.blocks.activation_checkpointing import ActivationCheckpointWrapper
from torch import Tensor, nn

from monai_kd.distillers.aligned import check_alignments, check_encode_decode, check_views, realign
from monai_kd.distillers.batch_statistics import keep_running_statistics, without_dropout
from monai_kd.distillers.distiller import Distiller
from monai_kd.distillers.term import Term, plain_tensor

__all__ = ["GeneralizableDistiller"]

_OF_VIEWS = ("/latents", "/all_logits", "all_labels")  # what cannot be had without photometric views


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
    dossier 5.1). They go without dropout, whose noise would put a floor under the graph losses. The anchor's own pass
    is training data and keeps it, also for its latent. Where a term reads ``student/all_logits`` the views are training
    data too: they move the statistics and are dropped from.

    Args:
        student, teacher: networks with ``encode(image) -> (features, skips)`` and ``decode(features, skips) ->
            logits``; wrap others in :class:`monai_kd.networks.EncodeDecode`. The teacher is frozen; None where no term
            reads it.
        alignments: ``{"student": ..., "teacher": ...}``, as :class:`AlignmentDistiller` trains them, with
            ``encode(features) -> latent`` and ``decode(latent, size) -> features``. None where no term reads latents or
            cross logits.
        terms: see :class:`Distiller`.
        cached: batch keys that replace the teacher's views, e.g. ``{"teacher_latents": "teacher/latents"}``.
        freeze_alignment: ``False`` lets the student's alignment network learn on, also one that was loaded frozen;
            ``state_dict()`` then holds it as ``parts.student_alignment.*``.
        detach_skips: stop the gradient of ``student/cross_logits`` at the skips: it trains the decoder alone. Without
            effect for ENet and ERFNet, whose skips are places of maxima or an empty tensor and carry no gradient.
        guard: ``False`` lets the auxiliary passes move the running statistics.

    Raises:
        TypeError: a network or an alignment without ``encode`` and ``decode``.
        ValueError: not one alignment for each of the two, or none where one is to learn; a student with activation
            checkpoints in auxiliary passes, which run again in the backward pass, outside of what guards them; on use,
            a batch without the views that a term reads; otherwise as for :class:`Distiller`.

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
        elif not freeze_alignment:
            raise ValueError("freeze_alignment is False, and no alignments are given: there is none that could learn")
        self._aligned = bool(own)
        parts = {} if freeze_alignment else {"student_alignment": own.pop("student").requires_grad_(True)}
        frozen = {**teachers, **{f"{name}_alignment": module for name, module in own.items()}}
        super().__init__(student, frozen, terms, cached=cached, parts=parts)
        self.detach_skips, self.guard = detach_skips, guard
        self._refuse_checkpoints()

    def known_views(self) -> list[str]:
        replaced = list(self.cached.values())
        live = ["student/logits", "student/all_logits", *(["student/latents"] if self._aligned else [])]
        if "teacher" in self.networks:
            kinds = ("logits", "all_logits", *(("latents", "cross_logits") if self._aligned else ()))
            live += [view for view in (f"teacher/{kind}" for kind in kinds) if view not in replaced]
        if self._aligned and ("teacher" in self.networks or "teacher/latents" in replaced):
            live.append("student/cross_logits")
        return ["label", "all_labels", *live, *replaced]

    def helpers(self) -> dict[str, nn.Module]:
        needed = self._needed(self.cached.values())
        crossed = {view.partition("/")[0] for view in needed if view.endswith("/cross_logits")}
        encoded = {view.partition("/")[0] for view in needed if view.endswith(("/latents", "/latent"))}
        return {f"{name}_alignment": self._alignment(name) for name in sorted(crossed | encoded)}

    def views(
        self, image: Tensor, label: Tensor | None, views: Tensor | None = None, **cached: Tensor
    ) -> dict[str, Tensor]:
        found = {} if label is None else {"label": plain_tensor(label)}
        found.update({self.cached[key]: plain_tensor(value) for key, value in cached.items()})
        wide = sorted(address for address in set(self._addresses()) if address.endswith(_OF_VIEWS))
        others = list(check_views(image, views, wide).unbind(1)) if wide else []
        if label is not None and "all_labels" in wide:
            found["all_labels"] = found["label"].repeat(1 + len(others), *[1] * (label.ndim - 1))
        needed = self._needed(found)
        sides = {"student": self._side("student", image, others, needed)}
        if _kinds("teacher", needed):
            with torch.no_grad():
                sides["teacher"] = self._side("teacher", image, others, needed)
        for side in sides.values():
            found.update(side.views)
        if "teacher/cross_logits" in needed:
            found.update(self._crossed("teacher", sides["teacher"], sides["student"].latents[0]))
        if "student/cross_logits" in needed:
            latent = found["teacher/latents"][:, 0] if "teacher/latents" in found else sides["teacher"].latents[0]
            with self._auxiliary("student"):
                found.update(self._crossed("student", sides["student"], latent))
        return found

    # ---- inner work --------------------------------------------------------------------------------------------

    def _needed(self, given: Collection[str]) -> set[str]:
        """Return the views to compute, ``<network>/latent`` being that of an anchor that the other network decodes."""
        needed = {"student/logits", *self._addresses()} - set(given)
        if "teacher/cross_logits" in needed:
            needed.add("student/latent")
        if "student/cross_logits" in needed and "teacher/latents" not in given:
            needed.add("teacher/latent")
        return needed

    def _side(self, name: str, image: Tensor, others: list[Tensor], needed: set[str]) -> _Side:
        """Run one of the two networks as far as its views are needed."""
        asked, network = _kinds(name, needed), self._halves(name)
        features, skips = network.encode(image)
        views = {"logits": network.decode(features, skips)} if asked & {"logits", "all_logits"} else {}
        latents = [self._alignment(name).encode(features)] if asked & {"latents", "latent"} else []
        if asked & {"latents", "all_logits"} and others:
            maps, logits = self._others(name, others, "all_logits" in asked)
            if "latents" in asked:
                latents += self._alignment(name).encode(torch.cat(maps)).split(len(image))
            if "all_logits" in asked:
                views["all_logits"] = torch.cat([views["logits"], *logits])
        if "latents" in asked:
            views["latents"] = torch.stack(latents, dim=1)
        return _Side({f"{name}/{view}": value for view, value in views.items()}, features, skips, latents)

    def _others(self, name: str, others: list[Tensor], decoded: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Return the features of the photometric views, and their logits if they are asked for.

        The frozen teacher takes them all at once, which changes nothing in evaluation mode; the student view by view,
        since its batch normalization must not mix them.
        """
        network = self._halves(name)
        batches = [torch.cat(others)] if name == "teacher" else others
        maps, logits = [], []
        with nullcontext() if decoded else self._auxiliary(name):
            for batch in batches:
                features, skips = network.encode(batch)
                maps.append(features)
                if decoded:
                    logits.append(network.decode(features, skips))
        return maps, logits

    def _crossed(self, name: str, side: _Side, latent: Tensor) -> dict[str, Tensor]:
        """Decode the other network's latent by this network's decoder, with its own skips."""
        features = realign(self._alignment(name), latent, side.features)
        skips = _detached(side.skips) if name == "student" and self.detach_skips else side.skips
        return {f"{name}/cross_logits": self._halves(name).decode(features, skips)}

    def _halves(self, name: str) -> Any:
        return self.networks[name]

    def _alignment(self, name: str) -> Any:
        key = f"{name}_alignment"
        return self.parts[key] if key in self.parts else self.frozen_teachers[key]

    def _auxiliary(self, name: str) -> AbstractContextManager[None]:
        """Return the context of passes that are no training data."""
        return self._as_bystander() if name == "student" else nullcontext()

    @contextmanager
    def _as_bystander(self) -> Iterator[None]:
        with without_dropout(self.student), keep_running_statistics(self.student) if self.guard else nullcontext():
            yield

    def _refuse_checkpoints(self) -> None:
        asked = _kinds("student", set(self._addresses()))
        if "cross_logits" not in asked and ("latents" not in asked or "all_logits" in asked):
            return  # all passes are training data
        for path, module in self.student.named_modules():
            if isinstance(module, ActivationCheckpointWrapper):
                raise ValueError(
                    f"the student's '{path}' is an activation checkpoint: it runs again in the backward pass, where "
                    "nothing keeps statistics and dropout of the auxiliary passes still; build the student without, or "
                    "leave out the terms on student/latents and student/cross_logits"
                )

    def _find_read_teachers(self) -> list[str]:
        return ["teacher"] if _kinds("teacher", self._needed(self.cached.values())) else []

    def _trained_heads(self, views: Mapping[str, Tensor]) -> list[Tensor]:
        # the alignment's own weights: terms may be off, or read neither of its halves
        return [*super()._trained_heads(views), *self.parts.parameters()]


class _Side(NamedTuple):
    """What one of the two networks said of a batch: its views, of the anchor features and skips, and latents."""

    views: dict[str, Tensor]
    features: Tensor
    skips: Any
    latents: list[Tensor]  # the anchor's first; none where none is needed


def _kinds(name: str, views: set[str]) -> set[str]:
    """Return what is asked of a network."""
    return {kind for network, _, kind in (view.partition("/") for view in views) if network == name and kind}


def _detached(skips: Any) -> Any:
    if isinstance(skips, Tensor):
        return skips.detach()
    return type(skips)(_detached(skip) for skip in skips) if isinstance(skips, (list, tuple)) else skips
