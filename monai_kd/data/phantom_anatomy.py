"""The anatomy of a phantom: tissue fractions of a made-up hippocampus and what surrounds it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["FIELD_OF_VIEW_MM", "TISSUES", "label_map", "rotation", "smooth_field", "texture", "tissue_fractions"]

FIELD_OF_VIEW_MM = (40.0, 52.0, 54.0)  # right-left, posterior-anterior, inferior-superior
TISSUES = (
    "white_matter",
    "gray_matter",
    "csf",
    "thalamus",
    "brainstem",
    "amygdala",
    "vessel",
    "anterior",
    "posterior",
)


def tissue_fractions(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw an anatomy: the share of each tissue in each voxel, ``(len(TISSUES), *shape)`` float32, summing to 1."""
    frame = _organ_frame(rng, shape)
    lateral, along, up = frame
    split_mm = 5.0 + rng.normal(0.0, 1.2)  # where the head begins, along the organ
    half_length_mm = 23.5 + rng.normal(0.0, 1.0)
    head = sigmoid((along - split_mm + 1.0) / 1.5)
    depth = _organ_distance(rng, frame, head, half_length_mm)

    fractions = np.zeros((len(TISSUES), *shape), np.float32)
    fractions[TISSUES.index("white_matter")] = 1.0
    _paint_surroundings(rng, fractions, frame)
    _paint_neighbors(rng, fractions, frame, half_length_mm)
    _paint_ventricle(rng, fractions, frame, depth)
    organ = sigmoid(-depth / 0.35)
    _paint(fractions, "posterior", organ)
    front = sigmoid((along - split_mm + rng.normal(0.0, 0.05) * lateral + rng.normal(0.0, 0.08) * up) / 0.35)
    fractions[TISSUES.index("anterior")] = organ * front
    fractions[TISSUES.index("posterior")] -= organ * front
    return fractions


def _organ_frame(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Voxel centers in the organ's straightened frame, ``(3, *shape)`` mm.

    The rows are ``lateral`` (+ outward), ``along`` (- at the tail, + at the head) and ``up``.
    """
    centers = [(np.arange(n, dtype=np.float32) + 0.5) / n - 0.5 for n in shape]
    grid = np.stack(np.meshgrid(*centers, indexing="ij")) * np.array(FIELD_OF_VIEW_MM, np.float32)[:, None, None, None]
    roll, pitch, yaw = np.deg2rad(rng.normal((0.0, -35.0, 0.0), (6.0, 4.0, 5.0)))
    pose = rotation((0, 1, 0), roll) @ rotation((1, 0, 0), pitch) @ rotation((0, 0, 1), yaw)
    shift_mm = rng.normal(0.0, (1.2, 1.0, 1.5))
    scale = rng.normal(1.0, 0.05) * rng.normal(1.0, 0.04, size=3)
    matrix = (pose / scale).T.astype(np.float32)  # the inverse of posing and scaling
    frame = np.einsum("ij,jxyz->ixyz", matrix, grid - shift_mm.astype(np.float32)[:, None, None, None])
    for axis in range(3):
        frame[axis] += 1.5 * smooth_field(rng, shape, (14.0, 14.0, 14.0))
        frame[axis] += 0.55 * smooth_field(rng, shape, (5.0, 5.0, 5.0))
    reach = frame[1] / 24.0  # -1 at the tip of the tail, 1 at the tip of the head
    frame[0] += rng.normal(4.0, 1.0) * reach**2  # both ends bend inward
    frame[2] -= rng.normal(4.5, 1.0) * reach**2 - 1.5  # and upward
    return frame


def _organ_distance(rng: np.random.Generator, frame: np.ndarray, head: np.ndarray, half_length_mm: float) -> np.ndarray:
    """Approximate signed distance in mm to the organ's surface, negative inside."""
    lateral, along, up = frame
    reach = along / half_length_mm
    taper = np.sqrt(np.clip(1.0 - np.abs(reach) ** 5, 0.002, None)) * (0.55 + 0.45 * sigmoid((along + 9.0) / 5.0))
    half_width = (5.4 + rng.normal(0, 0.3) + (2.2 + rng.normal(0, 0.3)) * head) * taper
    half_height = (3.7 + rng.normal(0, 0.2) + (1.5 + rng.normal(0, 0.25)) * head) * taper
    hook = 3.0 * head * np.clip(reach, 0.0, 1.0)  # the uncus: the tip turns inward
    across = lateral + hook
    arched = up + rng.normal(0.05, 0.01) * across**2  # a cross-section like a bean, hollow below
    radius = np.hypot(across, arched) + 1.0e-3
    distance = radius - radius / np.hypot(across / half_width, arched / half_height)
    bumps = 0.5 * head * sigmoid(up / 1.5) * np.sin(2 * np.pi * across / 4.5 + rng.uniform(0, 2 * np.pi))
    return np.maximum(distance + bumps, np.abs(along) - half_length_mm)


def _paint_surroundings(rng: np.random.Generator, fractions: np.ndarray, frame: np.ndarray) -> None:
    """Folded cortex below and outside, thalamus above, cistern and brainstem inside."""
    lateral, along, up = frame
    shape = lateral.shape
    folds = smooth_field(rng, shape, (3.6, 5.5, 3.6))
    cortical = sigmoid(np.maximum(lateral - 11.0 - rng.normal(0, 0.8), -up - 11.0 - rng.normal(0, 0.8)) / 0.8)
    _paint(fractions, "gray_matter", cortical * sigmoid((0.35 - folds) / 0.15))
    _paint(fractions, "csf", cortical * sigmoid((-0.85 - folds) / 0.15))
    gyri_above = sigmoid((up - 11.0) / 1.0) * sigmoid((lateral - 3.0) / 1.0)
    _paint(fractions, "gray_matter", gyri_above * sigmoid((-0.3 - folds) / 0.15))

    center = np.array((-7.0, -6.0, 15.0)) + rng.normal(0.0, 1.0, 3)
    _paint(fractions, "thalamus", ellipsoid(frame, center, (10.0, 13.0, 8.5)))
    inner = -lateral - 12.0 + 0.012 * (up + 2.0) ** 2 + 0.8 * smooth_field(rng, shape, (6.0, 8.0, 6.0))
    _paint(fractions, "csf", sigmoid(inner / 0.5) * sigmoid((10.0 - up) / 1.0))
    width_mm = 1.8 + rng.normal(0.0, 0.4) + 1.2 * smooth_field(rng, shape, (7.0, 9.0, 7.0))  # closes here and there
    _paint(fractions, "brainstem", sigmoid((inner - width_mm) / 0.5) * sigmoid((8.0 - up) / 1.0))
    artery = np.hypot(inner - 1.0, up + 3.0 + 2.5 * np.sin(along / 5.0 + rng.uniform(0, 2 * np.pi))) - 1.0
    _paint(fractions, "vessel", sigmoid(-artery / 0.35))


def _paint_neighbors(rng: np.random.Generator, fractions: np.ndarray, frame: np.ndarray, half_length_mm: float) -> None:
    """The distractors: the amygdala on the head and the cortical ribbon that joins the body from below."""
    lateral, _, up = frame
    center = np.array((-1.5, half_length_mm - 5.0, 8.0)) + rng.normal(0.0, 0.8, 3)
    _paint(fractions, "amygdala", ellipsoid(frame, center, (7.0, 6.5, 5.0)))
    inward = np.clip(-lateral, 0.0, None)
    waves = smooth_field(rng, lateral.shape, (6.0, 8.0, 6.0))
    ribbon_center = -9.0 + rng.normal(0.0, 0.4) + 0.11 * inward**2 + 0.7 * waves  # rises inward, meets the organ
    thickness_mm = 1.6 + 0.4 * smooth_field(rng, lateral.shape, (6.0, 8.0, 6.0))
    ribbon = np.abs(up - ribbon_center) / np.hypot(1.0, 0.22 * inward) - thickness_mm
    inside = sigmoid((9.5 + lateral) / 0.5) * sigmoid((9.0 + waves - lateral) / 0.5)
    _paint(fractions, "gray_matter", sigmoid(-ribbon / 0.35) * inside)
    sulcus = np.abs(up - ribbon_center + thickness_mm + 0.7) - 0.6
    _paint(fractions, "csf", 0.9 * sigmoid(-sulcus / 0.3) * inside)


def _paint_ventricle(rng: np.random.Generator, fractions: np.ndarray, frame: np.ndarray, depth: np.ndarray) -> None:
    """The temporal horn: a sheet of CSF on the organ's outer upper side, thin to wide, with a thin white lining."""
    lateral, along, up = frame
    width_mm = rng.uniform(0.5, 2.4) + 0.4 * smooth_field(rng, lateral.shape, (5.0, 7.0, 5.0))
    outer = sigmoid((0.8 * lateral + up - 2.0) / 1.2)
    horn = outer * sigmoid((along + 14.0) / 3.0)
    _paint(fractions, "csf", horn * sigmoid((width_mm - depth) / 0.35))
    pocket = np.hypot((lateral - 8.0) / 1.6, (up + 0.5) / 3.2) - 1.0
    _paint(fractions, "csf", sigmoid(-pocket * 1.6 / 0.4) * sigmoid((width_mm - 0.8) / 0.3))
    plexus = smooth_field(rng, lateral.shape, (2.2, 3.0, 2.2))
    _paint(fractions, "vessel", 0.8 * horn * sigmoid((width_mm - depth) / 0.35) * sigmoid((plexus - 1.2) / 0.2))
    _paint(fractions, "white_matter", sigmoid((0.6 - depth) / 0.3) * sigmoid((up - 1.0) / 1.0))


def _paint(fractions: np.ndarray, tissue: str, share: np.ndarray) -> None:
    """Put ``tissue`` over what is there; ``share`` is its opacity, 0 to 1. The fractions keep summing to 1."""
    fractions *= 1.0 - share
    fractions[TISSUES.index(tissue)] += share


def label_map(fractions: np.ndarray) -> np.ndarray:
    """The class with the larger share, where the whole organ holds at least half of the voxel."""
    anterior, posterior = (fractions[TISSUES.index(name)] for name in ("anterior", "posterior"))
    organ = anterior + posterior >= 0.5
    return np.where(organ, np.where(anterior >= posterior, 1, 2), 0).astype(np.uint8)


def texture(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Anatomical signal variation shared by the modalities, about 0 +- 0.09, ``shape``."""
    return 0.075 * smooth_field(rng, shape, (1.6, 1.6, 1.6)) + 0.05 * smooth_field(rng, shape, (6.0, 6.0, 6.0))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)  # tanh: exp would overflow far from a border


def ellipsoid(frame: np.ndarray, center: Sequence[float] | np.ndarray, radii_mm: Sequence[float]) -> np.ndarray:
    """Share of an ellipsoid in each voxel."""
    offsets = [(x - c) / r for x, c, r in zip(frame, center, radii_mm, strict=True)]
    return sigmoid((1.0 - np.sqrt(sum(x**2 for x in offsets))) * min(radii_mm) / 0.5)


def rotation(axis: Sequence[float] | np.ndarray, angle: float) -> np.ndarray:
    """Rotation by ``angle`` radians about the unit vector ``axis``, ``(3, 3)``."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def smooth_field(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    scale_mm: Sequence[float],
    field_of_view_mm: Sequence[float] = FIELD_OF_VIEW_MM,
) -> np.ndarray:
    """A smooth Gaussian random field, mean 0 and variance 1 at every voxel, features of about ``scale_mm``.

    A sum of Gaussian bumps on a lattice. The lattice depends on the field of view, not on the grid, so another
    ``spatial_size`` samples the same field.
    """
    bases = []
    for size, extent_mm, scale in zip(shape, field_of_view_mm, scale_mm, strict=True):
        knots = np.arange(-2.0 * scale, extent_mm + 2.0 * scale, scale)
        positions = (np.arange(size) + 0.5) / size * extent_mm
        basis = np.exp(-0.5 * ((positions[:, None] - knots) / (0.8 * scale)) ** 2)
        bases.append((basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32))
    weights = rng.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    for basis in bases:  # each step contracts the leading axis and appends the new one: order is kept after three
        weights = np.tensordot(weights, basis, axes=(0, 1))
    return weights
