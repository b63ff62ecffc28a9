"""Small made-up pictures in the folders and formats of published sets: one for each that mtms-kd has an overlay for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["CASES", "GREEN", "HEIGHT", "RED", "SETS", "WHITE", "WIDTH", "make", "picture", "save"]

WIDTH, HEIGHT = 60, 44
BLACK, WHITE, RED, GREEN, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)
CASES = 12
LGG = "TCGA_{0}_000{0}_19960909/TCGA_{0}_000{0}_19960909_{1}"  # two slices of each patient
# of each set, as it is published: image and mask of a case by its number, and the colors of the mask
SETS: dict[str, tuple[Callable[[int], tuple[str, str]], tuple[tuple[int, int, int], ...]]] = {
    "drive": (lambda n: (f"images/{n}_training.tif", f"1st_manual/{n}_manual1.gif"), (WHITE,)),
    "rite": (lambda n: (f"images/{n}_training.tif", f"vessel/{n}_training.png"), (WHITE,)),
    "rite_av": (lambda n: (f"images/{n}_training.tif", f"av/{n}_training.png"), (RED, BLUE, GREEN, WHITE)),
    "isic": (
        lambda n: (
            f"ISIC2018_Task1-2_Training_Input/ISIC_000000{n}.jpg",
            f"ISIC2018_Task1_Training_GroundTruth/ISIC_000000{n}_segmentation.png",
        ),
        (WHITE,),
    ),
    "brain_tumor": (lambda n: (f"images/{n}.png", f"masks/{n}.png"), (WHITE,)),
    "brain_tumor_lgg": (
        lambda n: (f"{LGG.format(n // 2, n)}.tif", f"{LGG.format(n // 2, n)}_mask.tif"),
        (WHITE,),
    ),
    "kvasir": (lambda n: (f"images/ck{n}.jpg", f"masks/ck{n}.jpg"), (WHITE,)),
    "cvc_clinicdb": (lambda n: (f"Original/{n}.tif", f"Ground Truth/{n}.tif"), (WHITE,)),
    "neopolyp": (lambda n: (f"train/train/a{n}.jpeg", f"train_gt/train_gt/a{n}.jpeg"), (RED, GREEN)),
    "cvc_300": (lambda n: (f"images/{n}.png", f"masks/{n}.png"), (WHITE,)),
}


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def picture(number: int, colors: tuple[tuple[int, int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """An image with a bright disc, and its mask: the disc in stripes of the colors, none in every fourth."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    disc = (rows - 22) ** 2 + (columns - 26 - number) ** 2 < 14**2
    noise = np.random.default_rng(number).integers(0, 60, (HEIGHT, WIDTH, 3))
    image = (noise + 120 * disc[..., None] + [40, 10, 0]).astype(np.uint8)
    stripes = np.array(colors, np.uint8)[(columns // 9) % len(colors)]
    return image, np.where(disc[..., None], stripes, 0).astype(np.uint8)


def make(folder: Path, name: str) -> Path:
    """Write a set as it is published, ``CASES`` pictures of it."""
    places, colors = SETS[name]
    for number in range(CASES):
        image_place, mask_place = places(number)
        image, mask = picture(number, colors)
        save(folder / image_place, image[..., 0] if name == "brain_tumor" else image)
        save(folder / mask_place, mask[..., 0] if colors == (WHITE,) else mask)
        if name == "drive":
            save(folder / f"mask/{number}_training_mask.gif", np.full((HEIGHT, WIDTH), 255, np.uint8))
    if name == "cvc_clinicdb":
        rows = "".join(f"{n},{n // 2}\n" for n in range(CASES))
        (folder / "sequences.csv").write_text(f"frame,sequence\n{rows}")
    if name == "brain_tumor":
        rows = "".join(f"{n},{n // 2}\n" for n in range(CASES))
        (folder / "patients.csv").write_text(f"image,patient\n{rows}")
    return folder
