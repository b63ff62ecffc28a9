"""Networks that come in two halves, and the alignment networks that stand at the cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from monai_kd.distillers.term import plain_tensor

__all__: list[str] = []


def check_encode_decode(name: str, network: Any) -> None:
    """Refuse a network that cannot be cut at its bottleneck.

    Raises:
        TypeError: it lacks one of the methods ``encode`` and ``decode``.
    """
    if lacking := _lacking_halves(network):
        raise TypeError(
            f"network '{name}' is a {type(network).__name__} without {lacking}; give one with "
            "encode(image) -> (features, skips) and decode(features, skips) -> logits, or wrap it in "
            "monai_kd.networks.EncodeDecode"
        )


def check_alignments(alignments: Mapping[str, nn.Module], names: tuple[str, ...]) -> None:
    """Refuse alignment networks that are not one for each name.

    Raises:
        ValueError: one is missing or too much.
        TypeError: one lacks the methods ``encode`` and ``decode``.
    """
    if set(alignments) != set(names):
        raise ValueError(f"alignments are for {sorted(alignments)}; give one for each of {', '.join(names)}")
    for name, alignment in alignments.items():
        if lacking := _lacking_halves(alignment):
            raise TypeError(
                f"alignment '{name}' is a {type(alignment).__name__} without {lacking}; give a "
                "monai_kd.networks.nets.AlignmentNetwork"
            )


def _lacking_halves(module: Any) -> str:
    """Name the methods of the two halves that a module lacks."""
    return " and ".join(half for half in ("encode", "decode") if not callable(getattr(module, half, None)))


def realign(alignment: Any, latent: Tensor, like: Tensor) -> Tensor:
    """Return features decoded from a latent, on the grid of ``like``."""
    features: Tensor = alignment.decode(latent, like.shape[2:])
    if features.shape[1:] != like.shape[1:]:
        raise ValueError(
            f"an alignment network gives features {tuple(features.shape[1:])} where its network has "
            f"{tuple(like.shape[1:])}; train it for this network"
        )
    return features


def check_views(image: Tensor, views: Tensor | None, readers: list[str]) -> Tensor:
    """Return the photometric views of a batch.

    Raises:
        ValueError: there are none, or they do not belong to the image.
    """
    if views is None:
        raise ValueError(
            f"{', '.join(readers)} needs photometric views and the batch has none; add "
            "monai_kd.transforms.PhotometricViewsd to the training's transforms and 'views: views' to extra_keys"
        )
    views = plain_tensor(views)
    if views.ndim != image.ndim + 1 or (views.shape[0], *views.shape[2:]) != tuple(image.shape) or not views.shape[1]:
        raise ValueError(
            f"views have the shape {tuple(views.shape)}; for an image {tuple(image.shape)} give (batch, N, channels, "
            "*spatial) with N at least 1"
        )
    return views
