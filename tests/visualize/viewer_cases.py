"""Small cases for the tests of the viewer: two blocks in a gray box, and NIfTI files of them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from monai_kd.visualize.structures import named_structures
from monai_kd.visualize.viewer_case import ViewerCase

SPACING_MM = (1.0, 2.0, 3.0)
SHAPE = (20, 16, 12)


def blocks() -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth: class 1 has 4 x 4 x 4 voxels in both, half of them shared; class 2 only in the truth."""
    prediction, truth = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    prediction[4:8, 4:8, 4:8] = 1
    truth[6:10, 4:8, 4:8] = 1
    truth[12:14, 4:8, 4:8] = 2
    return prediction, truth


def gray() -> np.ndarray:
    image = np.full(SHAPE, 100.0, dtype=np.float32)
    image[6:14, 4:8, 4:8] = 200.0
    image[0, 0, 0] = 0.0  # air, or the gray of the box would be taken for it
    return image


def small_case(truth: bool = True, affine: np.ndarray | None = None, **names) -> ViewerCase:
    """The blocks as a case; ``names`` are those of :func:`named_structures`."""
    maps = dict(zip(("prediction", "truth"), (found.astype(np.int32) for found in blocks()), strict=True))
    if not truth:
        del maps["truth"]
    affine = np.diag([*SPACING_MM, 1.0]) if affine is None else affine
    return ViewerCase(
        "case 7", gray(), affine, maps, named_structures([1, 2], **(names or {"class_names": ["a", "b"]}))
    )


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([*SPACING_MM, 1.0]) if affine is None else affine), path)
    return path


def save_case(folder: Path) -> tuple[Path, Path, Path]:
    """Write prediction, image and label of the blocks."""
    prediction, truth = blocks()
    return (
        save(folder / "pred" / "case_7_seg.nii.gz", prediction),
        save(folder / "imagesTs" / "case_7.nii.gz", gray()),
        save(folder / "labelsTs" / "case_7.nii.gz", truth),
    )
