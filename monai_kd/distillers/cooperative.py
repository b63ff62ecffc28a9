"""Distillation from teachers that cooperate, each on a modality of its own (MTCM-KD, Ahmad et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_kd.distillers.cooperative_teachers import CooperativeTeachers
from monai_kd.distillers.distiller import Distiller, DistillOutput
from monai_kd.distillers.staged_backward import check_staged, staged_heads
from monai_kd.distillers.stages import feature_shapes
from monai_kd.distillers.taps import FeatureTaps
from monai_kd.distillers.term import Term, plain_tensor

__all__ = ["CooperativeDistiller"]


class CooperativeDistiller(Distiller):
    """A Distiller whose teachers are one :class:`CooperativeTeachers`, and whose student has side heads.

    Views beside those of :class:`Distiller`:

    - ``teachers/<name>``: logits of a teacher or a fusion;
    - ``student/side_<k>``: logits of a 1x1x1 convolution on the k-th stage of ``side_stages``, from 1. It belongs to
      the training and not to the student: its weights are in no student's file;
    - ``available`` ``(B, M)`` and ``available/<teacher>`` ``(B,)``: 1 where a sample has all channels of the teacher.
      All 1 unless the batch says otherwise, by ``(B, C)``, one per channel of the image, under the key ``available``;
    - ``available/some`` ``(B,)`` and ``available/some_map`` ``(B, 1, *ones)``: 1 where a sample has any teacher's.

    ``freeze=False`` trains teachers and fusions with the student, by terms of their own (``student:
    teachers/flair``). No gradient passes between student and teachers, in either direction, since terms stop it at
    their target. ``freeze=True`` takes trained ones.

    Args:
        student: the network to train.
        teachers: all of them and what fuses them.
        terms: see :class:`Distiller`.
        side_stages: stages of the student that get a head.
        side_classes: logits of each side head.
        freeze: see above.
        staged: run teacher by teacher and give each one's last decoder stage free before the next one's runs: equal
            gradients, lower peak memory. The teachers need the methods ``lower`` and ``top`` of
            :class:`monai_kd.networks.nets.ChannelAttentionResUNet`, and fusions read the stage between the two.
        input_shape: of one image with all modalities, ``[1, C, *spatial]``; needed by side heads.

    Attributes:
        loss_scale: what AMP is going to multiply the loss by; :class:`~monai_kd.engines.DistillationTrainer` sets it.
            Gradients that ``staged`` takes early would vanish in half precision without it.
        seen: what the teachers said of the last batch, for :class:`monai_kd.handlers.PerformanceWeights`.

    Raises:
        ValueError: ``staged`` with frozen teachers or with ones that it cannot run, no ``input_shape`` for side heads,
            and as for :class:`Distiller`.
        TypeError: ``teachers`` is no :class:`CooperativeTeachers`.
    """

    optional_keys = ("available",)

    def __init__(
        self,
        student: nn.Module,
        teachers: CooperativeTeachers,
        terms: Mapping[str, Term],
        side_stages: Sequence[str] = ("decoder_2",),
        side_classes: int = 4,
        freeze: bool = False,
        staged: bool = False,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        if not isinstance(teachers, CooperativeTeachers):
            raise TypeError(f"teachers must be a CooperativeTeachers, got {type(teachers).__name__}")
        stages = list(side_stages)
        super().__init__(
            student,
            {"teachers": teachers},
            terms,
            taps={"student": sorted(set(stages))},
            freeze=freeze,
            input_shape=input_shape,
            parts=_side_heads(student, stages, side_classes, input_shape),
        )
        self.side = {f"side_{number}": stage for number, stage in enumerate(stages, start=1)}
        self.staged = staged
        self.loss_scale = 1.0
        self.seen: Seen | None = None
        if not self._read_heads:  # they are not run: processes must not wait for their gradients
            teachers.requires_grad_(False)
        self._gradients: Tensor | None = None
        if staged:
            check_staged(teachers, freeze)

    @property
    def group(self) -> CooperativeTeachers:
        """The teachers."""
        group = self.networks["teachers"]
        assert isinstance(group, CooperativeTeachers)
        return group

    def known_views(self) -> list[str]:
        group = self.group
        return [
            *super().known_views(),
            *(f"student/{name}" for name in self.parts),
            *(f"teachers/{name}" for name in group.head_names),
            "available",
            *(f"available/{name}" for name in (*group.names, "some", "some_map")),
        ]

    def views(
        self, image: Tensor, label: Tensor | None, available: Tensor | None = None, **cached: Tensor
    ) -> dict[str, Tensor]:
        return self._views(image, label, available, cached, staged=False)

    def forward(self, image: Tensor, label: Tensor | None = None, **cached: Tensor) -> DistillOutput:
        self._gradients = None
        output = super().forward(image, label, **cached)
        gradients, self._gradients = self._gradients, None
        return output if gradients is None else output._replace(loss=output.loss + gradients)

    # ---- inner work --------------------------------------------------------------------------------------------

    def _forward_views(self, image: Tensor, label: Tensor | None, cached: dict[str, Tensor]) -> dict[str, Tensor]:
        given = dict(cached)
        available = given.pop("available", None)
        return self._views(image, label, available, given, staged=self.staged and torch.is_grad_enabled())

    def _views(
        self,
        image: Tensor,
        label: Tensor | None,
        available: Tensor | None,
        cached: Mapping[str, Tensor],
        staged: bool,
    ) -> dict[str, Tensor]:
        views = {} if label is None else {"label": label}
        views.update({self.cached[key]: value for key, value in cached.items()})
        views.update(self._availability(image, available))
        views.update(self._teacher_views(image, views, staged))
        views.update(self._run("student", self.student, image))
        for name, stage in self.side.items():
            views[f"student/{name}"] = self.parts[name](views[f"student/{stage}"])
        self.seen = self._seen(views)
        return views

    def _availability(self, image: Tensor, available: Tensor | None) -> dict[str, Tensor]:
        given = torch.ones(image.shape[:2]) if available is None else plain_tensor(available)
        if given.shape != image.shape[:2]:
            raise ValueError(
                f"available has the shape {tuple(given.shape)}; give one number per sample and channel of the image, "
                f"{tuple(image.shape[:2])}"
            )
        given = given.to(image.device, torch.float32)
        own = {name: _own_channels(network) for name, network in self.group.networks.items()}
        found = {f"available/{name}": given[:, channels].amin(dim=1) for name, channels in own.items()}
        teachers = torch.stack(list(found.values()), dim=1)
        some = teachers.amax(dim=1)
        some_map = some.reshape(-1, *[1] * (image.ndim - 1))
        return {"available": teachers, **found, "available/some": some, "available/some_map": some_map}

    def _teacher_views(self, image: Tensor, views: Mapping[str, Tensor], staged: bool) -> dict[str, Tensor]:
        if not self._read_heads:
            return {}
        available = views["available"] if bool((views["available"] == 0).any()) else None
        if staged:
            heads, self._gradients = staged_heads(
                self.group,
                image,
                available,
                lambda name, logits: self._teacher_loss(name, logits, views),
                self.loss_scale,
            )
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
                heads = self.group.heads(image, available)
        found = {f"teachers/{name}": logits for name, logits in heads.items()}
        if "teachers/logits" in self._read_heads:
            found["teachers/logits"] = self.group.ensemble([heads[name].detach() for name in self.group.names])
        return found

    @property
    def _read_heads(self) -> set[str]:
        """The teachers' views that a term reads; without any they are not run."""
        return {address for address in self._addresses() if address.startswith("teachers/")}

    def _teacher_loss(self, name: str, logits: Tensor, views: Mapping[str, Tensor]) -> Tensor | None:
        """Return the weighted sum of the terms that train a head; None if there is none."""
        own = [term for term in self.terms.values() if term.student == f"teachers/{name}" and term.scale]
        if not own:
            return None
        seen = {**views, f"teachers/{name}": logits}
        return torch.stack([term.scale * term(seen) for term in own]).sum()

    def _trained_heads(self, views: Mapping[str, Tensor]) -> list[Tensor]:
        return [*super()._trained_heads(views), *(views[f"student/{name}"] for name in self.parts)]

    def _seen(self, views: Mapping[str, Tensor]) -> Seen | None:
        names = [f"teachers/{name}" for name in self.group.names]
        if "label" not in views or names[0] not in views:
            return None
        with torch.no_grad():
            classes = torch.stack([views[name].argmax(dim=1).to(torch.uint8) for name in names])
        return Seen(classes, plain_tensor(views["label"]), views["available"])


def _own_channels(network: nn.Module) -> Any:
    """Return the image's channels that a teacher gets: of a wrapper that selects them its own, of any other all."""
    # a network's own `channels`, as of MONAI's UNet, are its widths
    return getattr(network, "channels", slice(None)) if hasattr(network, "network") else slice(None)


class Seen(NamedTuple):
    """What the teachers said of the last batch.

    Attributes:
        classes: of each voxel by each teacher, uint8 ``(M, B, *spatial)``.
        label: of the batch, as it came.
        available: ``(B, M)``.
    """

    classes: Tensor
    label: Tensor
    available: Tensor


def _side_heads(
    student: nn.Module, stages: Sequence[str], classes: int, input_shape: Sequence[int] | None
) -> dict[str, nn.Module]:
    """Return a 1x1x1 convolution per stage, for the channels that the stage has."""
    if not stages:
        return {}
    if input_shape is None:
        raise ValueError(
            f"side heads on {list(stages)} need the channels of the stage: give input_shape [1, C, *spatial]"
        )
    shapes = feature_shapes(student, FeatureTaps(student, sorted(set(stages))), input_shape)
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(input_shape) - 2]
    return {f"side_{n}": convolution(shapes[stage][1], classes, 1) for n, stage in enumerate(stages, start=1)}
