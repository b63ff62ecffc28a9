"""Training of alignment networks, which bring the bottlenecks of several networks into one latent space (GKD's ACT)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_kd.distillers.aligned import check_alignments, check_encode_decode, check_views, realign
from monai_kd.distillers.distiller import Distiller
from monai_kd.distillers.term import Term, plain_tensor

__all__ = ["AlignmentDistiller"]


class AlignmentDistiller(Distiller):
    """Train one alignment network for each of several frozen networks: alignment consistency training (ACT).

    Views, of the image and, if the batch has ``views``, of one of its photometric views behind it (``(2 * B, ...)``).
    Which one is drawn for each batch from torch's generator (``torch.manual_seed``); in evaluation it is the first.

    - ``<network>/features``, ``<network>/aligned``: the bottleneck, and what its alignment network makes of it;
    - ``<network>/latent`` ``(B, D, L)``; ``<network>/view_latent``: that of the view alone; ``<network>/image_latent``:
      that of the image alone;
    - ``<network>/logits``, ``<network>/aligned_logits``: the network's, and those decoded from the aligned features
      with the network's own skips;
    - ``semantic/latent``: of the label, by the semantic autoencoder.

    What learns, the distiller's student, is an ``nn.ModuleDict`` of the alignment networks: its weights are saved as
    ``<network>.*``. ``pred`` is the mean of all ``aligned_logits`` on the image.

    A term stops the gradient at its target. The consistency term, ``student: <network>/view_latent`` and ``target:
    <network>/image_latent``, so brings the view's latent to the image's, and leaves the image's alone.

    Args:
        alignments: by network, with the methods ``encode(features) -> latent`` and ``decode(latent, size)``.
        networks: frozen, by the same names, with ``encode(image) -> (features, skips)`` and ``decode(features,
            skips)``.
        autoencoder: frozen, with a method ``latent(label) -> (B, D, L)``.
        terms: see :class:`Distiller`.

    Raises:
        TypeError: a network without ``encode`` and ``decode``, or an autoencoder without ``latent``.
        ValueError: alignments and networks have other names; otherwise as for :class:`Distiller`.

    Source: Qi et al. 2024, doi:10.1109/jbhi.2024.3385098: figure and abstract; the terms are this project's reading.
    """

    optional_keys = ("views",)

    def __init__(
        self,
        alignments: Mapping[str, nn.Module],
        networks: Mapping[str, nn.Module],
        autoencoder: nn.Module,
        terms: Mapping[str, Term],
    ) -> None:
        check_alignments(alignments, tuple(networks))
        for name, network in networks.items():
            check_encode_decode(name, network)
        if not callable(getattr(autoencoder, "latent", None)):
            raise TypeError(f"autoencoder is a {type(autoencoder).__name__} without a method latent(label)")
        self._names = list(networks)  # known_views reads it while the base class checks the terms
        super().__init__(nn.ModuleDict(dict(alignments)), {**networks, "semantic": autoencoder}, terms)

    def known_views(self) -> list[str]:
        own = ("features", "aligned", "latent", "image_latent", "view_latent", "logits", "aligned_logits")
        return [
            "label",
            "student/logits",
            "semantic/latent",
            *(f"{name}/{view}" for name in self._names for view in own),
        ]

    def views(
        self, image: Tensor, label: Tensor | None, views: Tensor | None = None, **cached: Tensor
    ) -> dict[str, Tensor]:
        if label is None:
            raise ValueError("alignment networks are trained towards the label's latent, and the batch has no label")
        batch, copies = image.shape[0], 1
        if views is not None:
            image, copies = torch.cat([image, self._one_view(image, views)]), 2
        label = plain_tensor(label)
        with torch.no_grad():
            semantic = self.frozen_teachers["semantic"].latent(label)  # type: ignore[operator]
        found = {"label": label.repeat(copies, *[1] * (label.ndim - 1))}
        found["semantic/latent"] = semantic.repeat(copies, *[1] * (semantic.ndim - 1))
        for name in self._names:
            found.update(self._aligned(name, image, batch, copies))
        logits = [found[f"{name}/aligned_logits"][:batch] for name in self._names]
        return {**found, "student/logits": torch.stack(logits).mean(dim=0)}

    # ---- inner work --------------------------------------------------------------------------------------------

    def _one_view(self, image: Tensor, views: Tensor) -> Tensor:
        given = check_views(image, views, ["alignment"])
        return given[:, int(torch.randint(given.shape[1], ())) if self.training else 0]

    def _aligned(self, name: str, image: Tensor, batch: int, copies: int) -> dict[str, Tensor]:
        network, alignment = self.frozen_teachers[name], self.student[name]  # type: ignore[index]
        with torch.no_grad():
            features, skips = network.encode(image)  # type: ignore[operator]
            logits = network.decode(features, skips)  # type: ignore[operator]
        latent = alignment.encode(features)
        aligned = realign(alignment, latent, features)
        found = {
            "features": features,
            "aligned": aligned,
            "latent": latent,
            "image_latent": latent[:batch],
            "logits": logits,
            "aligned_logits": network.decode(aligned, skips),  # type: ignore[operator]
        }
        if copies > 1:
            found["view_latent"] = latent[batch:]
        return {f"{name}/{view}": value for view, value in found.items()}

    def _find_read_teachers(self) -> list[str]:
        return list(self.frozen_teachers)

    def _trained_heads(self, views: Mapping[str, Tensor]) -> list[Tensor]:
        return [views[f"{name}/aligned_logits"] for name in self._names]
