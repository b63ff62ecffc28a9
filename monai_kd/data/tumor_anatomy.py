"""The anatomy of a brain phantom: tissue fractions of a made-up brain with one tumor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from monai_kd.data.phantom_anatomy import ellipsoid, rotation, sigmoid, smooth_field

__all__ = ["BRAIN_FIELD_MM", "BRAIN_TISSUES", "brain_fractions", "brain_texture", "tumor_map"]

BRAIN_FIELD_MM = (150.0, 150.0, 150.0)  # right-left, posterior-anterior, inferior-superior
BRAIN_TISSUES = ("white_matter", "gray_matter", "csf", "vessel", "edema", "enhancing_tumor", "necrotic_core")
_field = partial(smooth_field, field_of_view_mm=BRAIN_FIELD_MM)


def brain_fractions(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw an anatomy: the share of each tissue in each voxel, ``(len(BRAIN_TISSUES), *shape)`` float32.

    The shares sum to 1 in the brain and to 0 around it.
    """
    frame = _frame(rng, shape)
    half_mm = np.array((62.0, 69.0, 60.0)) * rng.normal(1.0, 0.03, 3)
    depth_mm = _depth_mm(frame, half_mm) + 2.0 * _field(rng, shape, (30.0, 30.0, 30.0))
    fractions = np.zeros((len(BRAIN_TISSUES), *shape), np.float32)
    fractions[BRAIN_TISSUES.index("white_matter")] = 1.0
    _paint_brain(rng, fractions, frame, depth_mm)
    _paint_tumor(rng, fractions, frame, half_mm)
    return fractions * (depth_mm > 0.0)  # no partial volume: as if the skull were stripped by a mask


def tumor_map(fractions: np.ndarray, values: Mapping[str, int]) -> np.ndarray:
    """The value of the tumor's tissue with the largest share, where the tumor holds at least half of the voxel."""
    shares = fractions[[BRAIN_TISSUES.index(tissue) for tissue in values]]
    largest = np.array(list(values.values()), dtype=np.uint8)[shares.argmax(axis=0)]
    return np.where(shares.sum(axis=0) >= 0.5, largest, 0).astype(np.uint8)


def brain_texture(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Anatomical signal variation shared by the modalities, about 0 +- 0.06, ``shape``."""
    return 0.04 * _field(rng, shape, (6.0, 6.0, 6.0)) + 0.045 * _field(rng, shape, (20.0, 20.0, 20.0))


def _frame(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Voxel centers from the middle of the brain, ``(3, *shape)`` mm."""
    centers = [((np.arange(n) + 0.5) / n - 0.5) * extent for n, extent in zip(shape, BRAIN_FIELD_MM, strict=True)]
    shift_mm = rng.normal(0.0, 1.5, 3)
    return (np.stack(np.meshgrid(*centers, indexing="ij")) - shift_mm[:, None, None, None]).astype(np.float32)


def _depth_mm(frame: np.ndarray, half_mm: np.ndarray) -> np.ndarray:
    """Approximate distance to an ellipsoid's surface, positive inside."""
    return (1.0 - np.sqrt(sum((x / half) ** 2 for x, half in zip(frame, half_mm, strict=True)))) * half_mm.min()


def _paint_brain(rng: np.random.Generator, fractions: np.ndarray, frame: np.ndarray, depth_mm: np.ndarray) -> None:
    """Folded cortex with CSF between the folds, two ventricles, gray nuclei, and vessels that take up contrast."""
    shape = depth_mm.shape
    folds = _field(rng, shape, (11.0, 11.0, 11.0))
    cortical = sigmoid((9.0 + 4.0 * folds - depth_mm) / 1.5)
    _paint(fractions, "gray_matter", cortical)
    _paint(fractions, "csf", cortical * sigmoid((folds - 1.0) / 0.2))
    width_mm, length_mm = rng.uniform(4.0, 8.0), rng.uniform(18.0, 26.0)
    for side in (-1.0, 1.0):
        _paint(fractions, "gray_matter", ellipsoid(frame, (side * 22.0, 2.0, -4.0), (8.0, 15.0, 11.0)))
        _paint(fractions, "csf", ellipsoid(frame, (side * 9.0, 0.0, 6.0), (width_mm, length_mm, 9.0)))
    _paint(fractions, "vessel", sigmoid((_field(rng, shape, (7.0, 7.0, 7.0)) - 2.3) / 0.1))


def _paint_tumor(rng: np.random.Generator, fractions: np.ndarray, frame: np.ndarray, half_mm: np.ndarray) -> None:
    """A necrotic core, the enhancing rim around it and edema around both, of uneven outlines."""
    shape = frame.shape[1:]
    direction = rng.standard_normal(3)
    center = direction / np.linalg.norm(direction) * rng.uniform(0.25, 0.5) * half_mm
    axis = rng.standard_normal(3)
    pose = rotation(axis / np.linalg.norm(axis), rng.uniform(0.0, np.pi)) / rng.uniform(0.85, 1.2, 3)
    offsets = np.einsum(
        "ij,jxyz->ixyz", pose.T.astype(np.float32), frame - center.astype(np.float32)[:, None, None, None]
    )
    radius_mm = np.linalg.norm(offsets, axis=0) + 2.5 * _field(rng, shape, (18.0, 18.0, 18.0))
    core_mm, rim_mm, edema_mm = rng.uniform((11.0, 6.0, 9.0), (15.0, 9.0, 17.0))
    fingers_mm = 5.0 * _field(rng, shape, (16.0, 16.0, 16.0))
    _paint(fractions, "edema", sigmoid((core_mm + rim_mm + edema_mm + fingers_mm - radius_mm) / 1.0))
    _paint(fractions, "enhancing_tumor", sigmoid((core_mm + rim_mm - radius_mm) / 0.8))
    _paint(fractions, "necrotic_core", sigmoid((core_mm - radius_mm) / 0.8))


def _paint(fractions: np.ndarray, tissue: str, share: np.ndarray) -> None:
    """Put ``tissue`` over what is there; ``share`` is its opacity, 0 to 1."""
    fractions *= 1.0 - share
    fractions[BRAIN_TISSUES.index(tissue)] += share
