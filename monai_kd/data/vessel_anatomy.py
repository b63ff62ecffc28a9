"""The anatomy of a fundus phantom: vessels that branch out of the optic disc, and the disc and macula.

Coordinates are in radii of the field of view, its center at 0, ``x`` to the right and ``y`` downwards.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from monai.utils import optional_import

__all__ = ["Fundus", "Segment", "draw_vessels", "grow_fundus"]

_STEP = 0.05
_MIN_WIDTH = 0.013  # diameters below are not drawn: about 1 pixel on a field of 150 pixels
_FINER = 4  # vessels are drawn on a grid as many times finer, then averaged


class Segment(NamedTuple):
    """A straight piece of a vessel: its ends, its diameter, and whether it is a vein."""

    start: np.ndarray
    end: np.ndarray
    width: float
    vein: bool


class Fundus(NamedTuple):
    """Where things are: the centers of disc and macula ``(2,)``, and the vessels."""

    disc: np.ndarray
    macula: np.ndarray
    segments: list[Segment]


def grow_fundus(rng: np.random.Generator, left_eye: bool) -> Fundus:
    """Grow the vessels of an eye: an artery and a vein into each quadrant, which arch round the macula and branch.

    The same state of ``rng`` gives the same eye; the other eye is not its mirror image.
    """
    side = 1.0 if left_eye else -1.0  # where the nose is not: the macula's side of the disc
    disc = np.array([-0.5 * side, 0.0]) + rng.uniform(-0.06, 0.06, 2)
    macula = disc + np.array([0.62 * side, 0.06])
    segments: list[Segment] = []
    for up in (-1.0, 1.0):
        for away, bend in ((side, 1.0), (-side, 0.35)):
            for vein, width in ((True, 0.046), (False, 0.036)):
                angle = np.arctan2(up, 0.35 * away) + rng.normal(0.0, 0.15) + (0.12 if vein else -0.12)
                turn = -bend * up * away * rng.uniform(0.9, 1.4)  # radians a radius, towards the horizontal
                _grow(rng, segments, disc.copy(), angle, turn, width * rng.uniform(0.9, 1.1), vein)
    return Fundus(disc, macula, segments)


def _grow(
    rng: np.random.Generator,
    segments: list[Segment],
    point: np.ndarray,
    angle: float,
    turn: float,
    width: float,
    vein: bool,
) -> None:
    """Follow a vessel until it leaves the field or is too thin; branches are grown on the way."""
    length = 0.0
    next_branch = rng.uniform(0.2, 0.4)
    while width >= _MIN_WIDTH and np.hypot(*point) < 1.1 and length < 2.5:
        angle += turn * _STEP + rng.normal(0.0, 0.12)
        end = point + _STEP * np.array([np.cos(angle), np.sin(angle)])
        segments.append(Segment(point, end, width, vein))
        point, length, width = end, length + _STEP, width * 0.985
        if length >= next_branch:
            away = rng.choice((-1.0, 1.0))
            branch = angle + away * rng.uniform(0.5, 1.0)
            _grow(rng, segments, point.copy(), branch, -0.5 * away, width * rng.uniform(0.5, 0.75), vein)
            width *= 0.93
            next_branch = length + rng.uniform(0.14, 0.34)


def draw_vessels(fundus: Fundus, shape: tuple[int, int], center: np.ndarray, radius: float, veins: bool) -> np.ndarray:
    """Draw the veins or the arteries: the part of each pixel that they cover, ``(H, W)`` float32 in 0 to 1.

    Args:
        fundus: see :func:`grow_fundus`.
        shape: height and width, pixels.
        center: x and y of the field of view, pixels.
        radius: of the field of view, pixels.
        veins: which of the two.
    """
    pil_image: Any
    pil_image, _ = optional_import("PIL.Image")
    pil_draw, _ = optional_import("PIL.ImageDraw")
    height, width = shape
    canvas = pil_image.new("L", (width * _FINER, height * _FINER))
    pen = pil_draw.Draw(canvas)
    for start, end, diameter, vein in fundus.segments:
        if vein == veins:
            ends = [tuple(((center + radius * point) * _FINER).tolist()) for point in (start, end)]
            thickness = max(1, round(diameter * radius * _FINER))
            pen.line(ends, fill=255, width=thickness)
            x, y = ends[1]
            half = thickness / 2 - 0.5
            pen.ellipse((x - half, y - half, x + half, y + half), fill=255)  # no gap where the vessel bends
    return np.asarray(canvas.reduce(_FINER), dtype=np.float32) / 255
