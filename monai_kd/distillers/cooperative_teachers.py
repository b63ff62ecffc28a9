"""Several teachers and the fusion of their features, as one network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monai_kd.distillers.heads import named_heads
from monai_kd.distillers.taps import FeatureTaps

__all__ = ["CooperativeTeachers"]


class CooperativeTeachers(nn.Module):
    """Teachers side by side, one per modality, with modules that fuse their decoder features.

    In evaluation the output is their ensemble: logits whose softmax is the mean of the teachers' probabilities. In
    training it is a mapping of :attr:`head_names` to logits, and ``logits``, the ensemble without a graph: terms train
    each teacher (``student: student/flair``) and all of them by the fused logits (``student: student/fused``).

    Args:
        networks: the teachers by name; each takes the image with all modalities, see
            :class:`monai_kd.networks.RouteModalities`.
        fusions: by name, e.g. ``{"fused": CooperativeFusion(...)}``; called ``fusion(features, available)`` with one
            feature map per teacher, in the order of ``networks``. None for teachers that do not cooperate.
        stages: for each fusion the stage whose features it gets: one name for all teachers, or teacher to name.

    Attributes:
        head_names: the teachers, then the fusions.

    Raises:
        ValueError: no teacher, a name used twice or reserved, no stage for a fusion, or a stage that a teacher lacks.

    Source: Ahmad et al. 2024 (MTCM-KD), figure 2, for any number of teachers, architectures and levels.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        fusions: Mapping[str, nn.Module] | None = None,
        stages: Mapping[str, str | Mapping[str, str]] | None = None,
    ) -> None:
        super().__init__()
        fusions, stages = dict(fusions or {}), dict(stages or {})
        _check_names(networks, fusions, stages)
        self.networks = nn.ModuleDict(networks)
        self.fusions = nn.ModuleDict(fusions)
        self.stages = {fusion: _per_teacher(fusion, stages[fusion], networks) for fusion in fusions}
        # one tap per stage, whoever reads it
        self.taps = {
            name: FeatureTaps(network, sorted({stage[name] for stage in self.stages.values()}))
            for name, network in networks.items()
        }

    @property
    def names(self) -> list[str]:
        return list(self.networks)

    @property
    def head_names(self) -> tuple[str, ...]:
        return (*self.networks, *self.fusions)

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        if not self.training:
            return self.ensemble([self._run(name, image)[0] for name in self.names])
        heads = self.heads(image)
        return {"logits": self.ensemble([heads[name].detach() for name in self.names]), **heads}

    def heads(self, image: Tensor, available: Tensor | None = None) -> dict[str, Tensor]:
        """Return the logits of every teacher and every fusion by name.

        Args:
            image: ``(B, C, *spatial)``, all modalities.
            available: optional ``(B, M)`` of 0 and 1, which teachers a sample has the modality of.
        """
        runs = {name: self._run(name, image) for name in self.names}
        fused = {name: self.fuse(name, {key: run[1] for key, run in runs.items()}, available) for name in self.fusions}
        return {**{name: run[0] for name, run in runs.items()}, **fused}

    def fuse(self, fusion: str, features: Mapping[str, Mapping[str, Tensor]], available: Tensor | None) -> Tensor:
        """Return a fusion's logits from each teacher's features by stage."""
        stages = self.stages[fusion]
        fused: Tensor = self.fusions[fusion]([features[name][stages[name]] for name in self.names], available)
        return fused

    @staticmethod
    def ensemble(logits: list[Tensor]) -> Tensor:
        """Return logits whose softmax is the mean of the teachers' probabilities, ``(B, K, *spatial)``."""
        stacked = torch.stack([torch.log_softmax(value.float(), dim=1) for value in logits])
        return torch.logsumexp(stacked, dim=0)  # a constant per voxel changes no softmax

    def _run(self, name: str, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with self.taps[name] as features:
            output: Any = self.networks[name](image)
        return named_heads(output, image.ndim, name)["logits"], features


def _check_names(networks: Mapping[str, Any], fusions: Mapping[str, Any], stages: Mapping[str, Any]) -> None:
    if not networks:
        raise ValueError("networks is empty; give at least one teacher, e.g. {'flair': network}")
    shared = sorted(set(networks) & set(fusions))
    reserved = [name for name in (*networks, *fusions) if name == "logits" or "/" in name or "." in name]
    if shared or reserved:
        raise ValueError(f"{shared or reserved} cannot name a teacher or fusion: used twice, or 'logits', '/', '.'")
    if set(stages) != set(fusions):
        raise ValueError(f"stages are given for {sorted(stages)}, the fusions are {sorted(fusions)}; give one for each")


def _per_teacher(fusion: str, stage: str | Mapping[str, str], networks: Mapping[str, Any]) -> dict[str, str]:
    chosen = dict.fromkeys(networks, stage) if isinstance(stage, str) else dict(stage)
    if set(chosen) != set(networks):
        raise ValueError(
            f"stages of fusion '{fusion}' name {sorted(chosen)}, the teachers are {sorted(networks)}; give one stage "
            "for all, or one for each"
        )
    return chosen
