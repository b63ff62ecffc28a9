"""How far the latents of two domains are apart: the Frechet semantic distance (GKD, Qi et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["frechet_semantic_distance"]

_SAMPLES_PER_DIMENSION = 10  # below it a covariance is shrunk


def frechet_semantic_distance(
    latents_a: Tensor, latents_b: Tensor, max_dims: int = 64, shrinkage: float = 0.1
) -> float:
    """Return the squared Frechet distance of two sets of latents, each taken for a Gaussian.

    ``|mean_a - mean_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2))``, in squared units of the latents, >= 0; 0 for identical
    sets. Lower is less dependent on the domain, for latents of one and the same model.

    More than ``max_dims`` numbers per latent are first brought to the principal components of both sets together. Where
    either set has less than 10 samples per dimension, both covariances C are drawn towards a multiple of the unit
    matrix: ``(1 - s) C + s Tr(C) / dims``. Computed in float64 on the latents' device.

    Args:
        latents_a, latents_b: ``(n, ...)`` of at least 2 samples each; further axes, of one shape, are flattened.
        max_dims: most dimensions that are compared, at least 1.
        shrinkage: s, 0 to 1.

    Raises:
        ValueError: other shapes, fewer samples, numbers that are not finite, or a setting out of range.

    Source: Qi et al. 2024, abstract; the Frechet distance is that of Heusel et al. 2017. ``monai.metrics.fid`` takes
    the matrix square root of ``C_a C_b`` by Schur decomposition, which is not reliable for singular covariances (fewer
    samples than dimensions, as latents have): it may be complex, or is replaced by one with 1e-6 on the diagonal. Here
    its trace is the sum of the singular values of ``C_a^(1/2) C_b^(1/2)``, with roots by eigendecomposition, which
    holds for any covariances.
    """
    _check_settings(max_dims, shrinkage)
    one, other = _samples("latents_a", latents_a), _samples("latents_b", latents_b)
    if latents_a.shape[1:] != latents_b.shape[1:]:
        raise ValueError(
            f"latents_a {tuple(latents_a.shape)} and latents_b {tuple(latents_b.shape)} differ in more than the number "
            "of samples; compare latents of one model"
        )
    one, other = _principal(one, other.to(one.device), max_dims)
    few = min(len(one), len(other)) < _SAMPLES_PER_DIMENSION * one.shape[1]
    shrunk = shrinkage if few else 0.0
    return _frechet(one.mean(dim=0), _covariance(one, shrunk), other.mean(dim=0), _covariance(other, shrunk))


def _samples(name: str, latents: Tensor) -> Tensor:
    if latents.ndim < 2 or len(latents) < 2 or not latents[0].numel():
        raise ValueError(f"{name} has the shape {tuple(latents.shape)}; give (n, ...) with at least 2 samples")
    values = latents.detach().double().flatten(1)
    bad = int((~torch.isfinite(values).all(dim=1)).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {len(values)} latents hold numbers that are not finite")
    return values


def _principal(one: Tensor, other: Tensor, max_dims: int) -> tuple[Tensor, Tensor]:
    """Bring both sets to at most ``max_dims`` principal components of their union; unchanged where they have as few."""
    joint = torch.cat([one, other])
    joint = joint - joint.mean(dim=0)
    if joint.shape[1] > max_dims:
        axes = torch.linalg.svd(joint, full_matrices=False).Vh[:max_dims]
        joint = joint @ axes.T
    return joint[: len(one)], joint[len(one) :]


def _covariance(samples: Tensor, shrinkage: float) -> Tensor:
    centered = samples - samples.mean(dim=0)
    covariance = centered.T @ centered / (len(samples) - 1)
    if shrinkage:
        share = shrinkage * covariance.trace() / len(covariance)
        covariance = (1 - shrinkage) * covariance + share * torch.eye(len(covariance)).to(covariance)
    return covariance


def _frechet(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    overlap = torch.linalg.svdvals(_root(covariance_a) @ _root(covariance_b)).sum()
    spread = covariance_a.trace() + covariance_b.trace() - 2 * overlap
    return float((mean_a - mean_b).square().sum() + spread.clamp_min(0))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _check_settings(max_dims: int, shrinkage: float) -> None:
    if isinstance(max_dims, bool) or not isinstance(max_dims, int) or max_dims < 1:
        raise ValueError(f"max_dims is {max_dims!r}; it must be a whole number above 0")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage!r}; it must lie between 0 and 1")
