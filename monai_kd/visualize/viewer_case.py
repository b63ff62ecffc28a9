"""A case as the viewer shows it: image, prediction and truth on one grid, in RAS order."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from monai_kd.data.checks import GRID_TOLERANCE, grid_shift
from monai_kd.visualize.panels import dice_score
from monai_kd.visualize.structures import Structure

__all__ = ["ViewerCase", "read_case"]

_MOST_VALUES = 256  # a map with more of them is an image


@dataclass(frozen=True)
class ViewerCase:
    """Image and label maps of one case; all arrays are ``(X, Y, Z)``, their axes run nearest to right, front, up.

    Attributes:
        name: of the case.
        image: one channel of gray values, float32.
        affine: 4 x 4, voxel index to RAS+ millimeters.
        maps: ``prediction`` and, if known, ``truth``: integers, 0 is background.
        structures: what is shown of the maps.
    """

    name: str
    image: NDArray[np.float32]
    affine: NDArray[np.float64]
    maps: dict[str, NDArray[np.int32]]
    structures: tuple[Structure, ...]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along each axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def oblique_degrees(self) -> float:
        """Largest angle between an axis of the grid and the direction of the body that it is named after."""
        cosines = np.diag(self.affine[:3, :3]) / np.array(self.spacing_mm)
        return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())

    def volume_ml(self, kind: str, structure: Structure) -> float:
        """Voxels of a structure in ``prediction`` or ``truth`` times their volume."""
        voxel_ml = abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000
        return int(structure.mask(self.maps[kind]).sum()) * voxel_ml

    def dice(self, structure: Structure) -> float | None:
        """Dice of a structure, 0 to 1; None without truth, or where it is in neither map."""
        if "truth" not in self.maps:
            return None
        return dice_score(structure.mask(self.maps["prediction"]), structure.mask(self.maps["truth"]), True)


def read_case(
    name: str,
    prediction: str | Path,
    image: str | Path,
    truth: str | Path | None,
    structures: Callable[[Iterable[int]], tuple[Structure, ...]],
    channel: int = 0,
) -> ViewerCase:
    """Read a case from NIfTI files and bring it into RAS order; the voxels are not resampled.

    Args:
        name: of the case.
        prediction: label map.
        image: 3-D, or with channels in its fourth dimension.
        truth: label map, or None.
        structures: gets the values that the maps hold and returns the structures.
        channel: of the image that is shown, from 0.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, a map is not 3-D or not of whole numbers, there is no such channel, or the
            files do not share one grid (:data:`~monai_kd.data.checks.GRID_TOLERANCE`).
    """
    shown = _read_channel(Path(image), channel)
    paths = {"prediction": prediction} | ({} if truth is None else {"truth": truth})
    read = {kind: _read_map(Path(path)) for kind, path in paths.items()}
    for kind, (_, affine) in read.items():
        _require_one_grid(paths[kind], read[kind][0].shape, affine, image, shown)
    maps = {kind: found for kind, (found, _) in read.items()}
    values = {int(value) for found in maps.values() for value in np.unique(found)}
    return ViewerCase(name, shown[0], shown[1], maps, structures(values))


def _read(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels in RAS order without trailing axes of one, and the affine."""
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist; it must be a NIfTI file")
    try:
        volume: Any = nib.load(path)
        if abs(np.linalg.det(volume.affine)) > 0 and len(volume.shape) >= 3:
            volume = nib.as_closest_canonical(volume)
        voxels = np.asanyarray(volume.dataobj)
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"'{path}' cannot be read, it is damaged or no NIfTI file: {error}") from None
    if not abs(np.linalg.det(volume.affine)) > 0:
        raise ValueError(f"'{path}' has the affine {volume.affine.tolist()}, which gives its voxels no volume")
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    return voxels, np.asarray(volume.affine, dtype=float)


def _read_map(path: Path) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    voxels, affine = _read(path)
    if voxels.ndim != 3:
        raise ValueError(f"'{path}' has {voxels.ndim} dimensions, {voxels.shape}; a label map has 3 (X, Y, Z)")
    if voxels.dtype.kind == "f" and not np.array_equal(voxels, np.round(voxels)):  # NaN is unequal to itself
        odd = voxels[voxels != np.round(voxels)].flat[0]
        raise ValueError(f"'{path}' holds the value {odd:g}; a label map holds whole numbers")
    whole = voxels.astype(np.int32)
    if (count := len(np.unique(whole))) > _MOST_VALUES:
        raise ValueError(f"'{path}' holds {count} different values; a label map has at most {_MOST_VALUES}")
    return whole, affine


def _read_channel(path: Path, channel: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    voxels, affine = _read(path)
    if voxels.ndim not in (3, 4):
        raise ValueError(f"'{path}' has the shape {voxels.shape}; an image is (X, Y, Z) or (X, Y, Z, channels)")
    channels = voxels[..., None] if voxels.ndim == 3 else voxels
    if not 0 <= channel < channels.shape[3]:
        raise ValueError(f"channel is {channel}; the image '{path}' has the channels 0 to {channels.shape[3] - 1}")
    return np.nan_to_num(channels[..., channel].astype(np.float32)), affine


def _require_one_grid(
    path: str | Path,
    shape: tuple[int, ...],
    affine: NDArray[np.float64],
    image_path: str | Path,
    image: tuple[NDArray[np.float32], NDArray[np.float64]],
) -> None:
    if shape != image[0].shape:
        raise ValueError(
            f"'{path}' has {_size(shape)} voxels and the image '{image_path}' {_size(image[0].shape)}; they must share "
            "one grid"
        )
    if (shift := grid_shift(image[1], affine, shape)) > GRID_TOLERANCE:
        raise ValueError(
            f"the affines of '{path}' and of the image '{image_path}' differ, by up to {shift:.3g} voxels; they must "
            f"share one grid (to {GRID_TOLERANCE} voxels)"
        )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
