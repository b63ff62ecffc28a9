"""Made-up fundus photographs with vessel masks in three looks, so that generalization can be tried without data.

A photograph is a retina in a round field of view, with an optic disc, a macula and vessels that branch. The three
domains show the same anatomy as different cameras do: sizes, contrast, color, light and noise differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.utils import optional_import
from scipy import ndimage
from tqdm import tqdm

from monai_kd.data.phantom_folder import claim_folder
from monai_kd.data.phantoms import check_count
from monai_kd.data.vessel_anatomy import Fundus, draw_vessels, grow_fundus

__all__ = ["VESSEL_DOMAINS", "VesselDomain", "VesselPhantom", "make_vessel_phantoms", "vessel_phantom"]

MADE_BY = "monai_kd.data.vessel_phantoms"
_MOST = 98  # children of training are numbered 1 to 49, those of testing 51 to 99
_FIRST_TEST_INDEX = 100


@dataclass(frozen=True)
class VesselDomain:
    """How a camera shows a fundus, and where a data set keeps its files.

    Attributes:
        aspect: width over height of the image.
        field: diameter of the field of view over the image's longer side; what is beyond the image is cut off.
        color: of the retina, red, green and blue, 0 to 255.
        contrast: part of the green light that a vein takes; red and blue lose a third and half as much.
        light: how much the light falls off towards a side and the rim, part of the brightest.
        blur: standard deviation, parts of the field's diameter.
        noise: standard deviation, 0 to 255.
        background: gray level outside of the field of view.
        lesions: bright spots.
        folder, image, label, fov: where the files go; ``""`` writes no field-of-view mask.
    """

    aspect: float
    field: float
    color: tuple[float, float, float]
    contrast: float
    light: float
    blur: float
    noise: float
    background: float
    lesions: int
    folder: str
    image: str
    label: str
    fov: str


VESSEL_DOMAINS = {
    "chase_db1": VesselDomain(
        *(999 / 960, 0.92, (150.0, 70.0, 25.0), 0.42, 0.45, 0.002, 3.0, 1.0, 0, "CHASE_DB1"),
        *("images/{}.jpg", "labels_1stHO/{}_1stHO.png", "fov_masks/{}.gif"),
    ),
    "stare": VesselDomain(
        *(700 / 605, 0.93, (225.0, 130.0, 60.0), 0.30, 0.30, 0.005, 8.0, 18.0, 6, "STARE"),
        *("images/{}.png", "labels_ah/{}.ah.png", ""),
    ),
    "drive": VesselDomain(
        *(565 / 584, 0.92, (215.0, 105.0, 55.0), 0.36, 0.35, 0.003, 6.0, 2.0, 2, "DRIVE/training"),
        *("images/{}_training.tif", "1st_manual/{}_manual1.gif", "mask/{}_training_mask.gif"),
    ),
}


class VesselPhantom(NamedTuple):
    """One photograph.

    Attributes:
        image: ``(H, W, 3)`` uint8, red, green, blue.
        label: ``(H, W)`` bool, vessels.
        fov: ``(H, W)`` bool, the field of view.
    """

    image: np.ndarray
    label: np.ndarray
    fov: np.ndarray


def vessel_phantom(seed: int, index: int, domain: str = "chase_db1", size: int = 160) -> VesselPhantom:
    """Make photograph ``index`` of the collection ``seed``; odd numbers are right eyes.

    It depends on the arguments only, and its anatomy neither on the domain nor on the size. About 0.03 s at 160 pixels.

    Args:
        seed: names the collection, >= 0.
        index: names the eye in it, >= 0.
        domain: how it looks, of :data:`VESSEL_DOMAINS`.
        size: longer side of the image, pixels, >= 64; vessels are 1 to 4 pixels wide at 160.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_options(seed, size, [domain])
    check_count("index", index, 0)
    look = VESSEL_DOMAINS[domain]
    shape = (round(size / max(1.0, look.aspect)), round(size * min(1.0, look.aspect)))  # height, width
    anatomy_rng, look_rng = (
        np.random.default_rng([seed, index, *stream]) for stream in ((0,), (1, list(VESSEL_DOMAINS).index(domain)))
    )
    fundus = grow_fundus(anatomy_rng, left_eye=index % 2 == 0)
    center = np.array([shape[1], shape[0]]) / 2
    radius = look.field * size / 2
    y, x = (np.mgrid[: shape[0], : shape[1]].astype(np.float32) + 0.5 - center[::-1].reshape(2, 1, 1)) / radius
    fov = (np.hypot(x, y) < 1) & (np.abs(y) < 0.985 * shape[0] / 2 / radius)
    veins, arteries = (draw_vessels(fundus, shape, center, radius, kind) for kind in (True, False))
    colors = _retina(look_rng, look, fundus, x, y) * _vessel_light(look, veins, arteries)
    return VesselPhantom(
        _photograph(look_rng, look, colors, fov, radius), (np.maximum(veins, arteries) >= 0.5) & fov, fov
    )


def make_vessel_phantoms(
    output_dir: str | Path,
    num_train: int = 12,
    num_test: int = 4,
    domains: Sequence[str] = ("chase_db1", "stare", "drive"),
    size: int = 160,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write fundus phantoms in the folders, names and formats of CHASE_DB1, STARE and DRIVE.

    The first domain is the source, with ``num_train`` photographs to train and select on and ``num_test`` others; of
    the other domains there are ``num_test``, for testing only. ``splits/retina.json`` says so
    (:class:`~monai_kd.data.CaseSplit`, :func:`~monai_kd.data.target_dirs`), so that ``MONAI_KD_DATA`` may point here.
    Two eyes make a child, who is in one section. The same arguments give the same bytes (JPEG: with the same version of
    Pillow), and a smaller number the first photographs of a larger one.

    Args:
        output_dir: created if missing. Phantoms that are there already are replaced.
        num_train: 3 to 98; a fifth of the children, at least one, is for validation.
        num_test: 1 to 98.
        domains: of :data:`VESSEL_DOMAINS`, each once.
        size, seed: see :func:`vessel_phantom`.
        progress: show a progress bar.

    Returns:
        ``output_dir`` as a path.
    Raises:
        ValueError: an argument is out of its range.
        FileExistsError: ``output_dir`` is a file, or holds something that this function did not write.
    """
    folder = Path(output_dir)
    check_count("num_train", num_train, 3, _MOST)
    check_count("num_test", num_test, 1, _MOST)
    _check_options(seed, size, domains)
    train, test = range(num_train), range(_FIRST_TEST_INDEX, _FIRST_TEST_INDEX + num_test)
    wanted = [(domain, index) for domain in domains for index in (*(train if domain == domains[0] else ()), *test)]
    files = {(domain, index): _paths(domain, index) for domain, index in wanted}
    claim_folder(
        folder, [path for paths in files.values() for path in paths.values()] + ["splits/retina.json"], MADE_BY
    )
    for (domain, index), paths in tqdm(files.items(), desc="phantoms", unit="image", disable=not progress):
        phantom = vessel_phantom(seed, index, domain, size)
        for role, path in paths.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            _write(folder / path, getattr(phantom, role))
    _write_split(folder, domains, train, test)
    return folder


def _retina(rng: np.random.Generator, look: VesselDomain, fundus: Fundus, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The retina without vessels, ``(H, W, 3)``: color, light, texture, macula, lesions and disc."""
    angle = rng.uniform(0, 2 * np.pi)
    slope = 0.5 * (1 + x * np.cos(angle) + y * np.sin(angle))
    light = 1 - look.light * (0.6 * slope.clip(0, 1) + 0.4 * (x**2 + y**2).clip(0, 1))
    texture = ndimage.gaussian_filter(rng.standard_normal(x.shape), 0.02 * x.shape[0])
    macula = np.exp(-(np.hypot(x - fundus.macula[0], y - fundus.macula[1]) ** 2) / 0.05)
    light = light * (1 + 0.05 * texture / texture.std()) * (1 - 0.3 * macula)
    colors = light[..., None] * (np.array(look.color) * rng.normal(1.0, 0.05, 3))
    bright = np.array([250.0, 220.0, 150.0])
    for _ in range(look.lesions):
        place, width = rng.uniform(-0.6, 0.6, 2), rng.uniform(0.015, 0.05)
        spot = np.exp(-((np.hypot(x - place[0], y - place[1]) / width) ** 4))
        colors += 0.6 * spot[..., None] * (bright - colors)
    disc = 1 / (1 + np.exp((np.hypot(x - fundus.disc[0], 0.9 * (y - fundus.disc[1])) - 0.17) / 0.015))
    return colors + 0.75 * disc[..., None] * (bright * light[..., None] - colors)


def _vessel_light(look: VesselDomain, veins: np.ndarray, arteries: np.ndarray) -> np.ndarray:
    """What vessels let through, ``(H, W, 3)``, 0 to 1: arteries are paler than veins."""
    taken = look.contrast * np.maximum(veins, 0.8 * arteries)[..., None] * np.array([1 / 3, 1.0, 1 / 2])
    return 1 - taken


def _photograph(
    rng: np.random.Generator, look: VesselDomain, colors: np.ndarray, fov: np.ndarray, radius: float
) -> np.ndarray:
    """Blur, field of view and noise, ``(H, W, 3)`` uint8."""
    blurred = ndimage.gaussian_filter(colors, (look.blur * 2 * radius, look.blur * 2 * radius, 0))
    seen = np.where(fov[..., None], blurred, look.background)
    noise = look.noise * np.where(fov, 1.0, 0.3)[..., None] * rng.standard_normal(seen.shape)
    return np.rint(seen + noise).clip(0, 255).astype(np.uint8)


def _paths(domain: str, index: int) -> dict[str, str]:
    """Return the paths of a photograph's files by what they hold, relative to the folder of all domains."""
    look = VESSEL_DOMAINS[domain]
    number = index + 1 if index < _FIRST_TEST_INDEX else index + 101 - _FIRST_TEST_INDEX
    name = {"chase_db1": _child_name(index), "stare": f"im{number:04d}", "drive": f"{number:02d}"}[domain]
    patterns = {"image": look.image, "label": look.label, "fov": look.fov}
    return {role: f"{look.folder}/{pattern.format(name)}" for role, pattern in patterns.items() if pattern}


def _child_name(index: int) -> str:
    return f"Image_{index // 2 + 1:02d}{'LR'[index % 2]}"


def _write(path: Path, pixels: np.ndarray) -> None:
    """Write as the data sets do: masks of 1 bit as PNG; GIF of CHASE_DB1 with a palette whose first color is white."""
    pil_image: Any
    pil_image, _ = optional_import("PIL.Image")
    if path.suffix == ".gif" and path.parent.name == "fov_masks":
        image = pil_image.fromarray((~pixels).astype(np.uint8)).convert("P")
        image.putpalette([255, 255, 255, 0, 0, 0])
    elif pixels.dtype == bool and path.parent.name != "labels_1stHO":
        image = pil_image.fromarray(pixels.astype(np.uint8) * 255)
    else:
        image = pil_image.fromarray(pixels)
    image.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def _write_split(folder: Path, domains: Sequence[str], train: range, test: range) -> None:
    children = sorted({index // 2 for index in train})
    held_out = children[-max(1, len(children) // 5) :]
    names = {index: Path(_paths(domains[0], index)["image"]).stem for index in (*train, *test)}
    content = {
        "protocol": "retina",
        "train": [names[index] for index in train if index // 2 not in held_out],
        "validation": [names[index] for index in train if index // 2 in held_out],
        "test": [names[index] for index in test],
        "targets": [VESSEL_DOMAINS[domain].folder for domain in domains[1:]],
    }
    (folder / "splits").mkdir(exist_ok=True)
    (folder / "splits" / "retina.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _check_options(seed: int, size: int, domains: Sequence[str]) -> None:
    check_count("seed", seed, 0)
    check_count("size", size, 64)
    if (
        isinstance(domains, str)
        or not domains
        or len(set(domains)) < len(domains)
        or not set(domains) <= set(VESSEL_DOMAINS)
    ):
        raise ValueError(f"domains is {domains!r}; give at least one, each once, of {', '.join(VESSEL_DOMAINS)}")
