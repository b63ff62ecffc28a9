"""Phantoms: made-up MR crops of a hippocampus-like organ, so that every bundle can train without a download.

A scene is a sum of tissue fractions on a grid whose field of view is always about 40 x 52 x 54 mm. It is drawn in the
organ's own straightened frame (``lateral``, ``along``, ``up``, in mm), after a random smooth deformation and a pose:

- the organ: a bent, tapering tube; its head is ``anterior`` (1), its body and tail are ``posterior`` (2);
- what looks like it: an amygdala that touches the head and a cortical ribbon that runs along the body and joins it;
- what surrounds it: white matter, folded cortex, ventricle, cistern, brainstem, thalamus, vessels.

The image of a modality is the scene times that modality's contrasts, then texture, blur, bias field, Rician noise and
an arbitrary intensity scale. Fractions are continuous, so voxels on a border are mixtures (partial volume).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from monai_kd.data.phantom_anatomy import (
    FIELD_OF_VIEW_MM,
    TISSUES,
    label_map,
    rotation,
    smooth_field,
    texture,
    tissue_fractions,
)

MADE_BY = "monai_kd.data.phantoms"
CLASS_NAMES = ("background", "anterior", "posterior")
MIN_SPATIAL_SIZE = 16  # coarser grids can lose the tail, and then a class would be missing
FIRST_TEST_INDEX = 100_000  # test cases are numbered from here, so more training cases never become test cases

# Mean signal relative to white matter in T1. Where two neighbors are (nearly) equal, that modality alone is blind:
# T1 barely separates anterior from posterior, T2 not at all, T1ce not from the ribbon, FLAIR not from white matter.
CONTRAST = {
    "T1": (1.00, 0.56, 0.14, 0.80, 0.92, 0.55, 0.30, 0.49, 0.55),
    "T1ce": (0.95, 0.58, 0.16, 0.80, 0.90, 0.66, 1.30, 0.70, 0.57),
    "T2": (0.38, 0.60, 1.10, 0.52, 0.44, 0.66, 0.15, 0.68, 0.68),
    "FLAIR": (0.62, 0.82, 0.18, 0.70, 0.64, 0.80, 0.25, 0.60, 0.66),
}


class PhantomCase(NamedTuple):
    """One labelled phantom.

    Attributes:
        image: ``(M, *S)`` float32, one channel per modality; whole numbers >= 0 in arbitrary units that differ between
            cases and channels: a channel's maximum lies anywhere from 100 to 1e6, so normalize each by itself.
        label: ``(*S)`` uint8, 0 background, 1 anterior, 2 posterior.
        affine: ``(4, 4)`` float64, voxel index to patient position in mm (RAS+, as NIfTI).
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


def phantom_case(
    seed: int,
    index: int,
    modalities: Sequence[str] = ("T1",),
    spatial_size: Sequence[int] = (40, 52, 36),
    axis_codes: Sequence[str] = ("RAS", "LPS"),
) -> PhantomCase:
    """Make case ``index`` of the collection ``seed``.

    The case depends on the arguments only. Its anatomy and affine do not depend on ``modalities``, and a modality's
    channel does not depend on the others.

    Args:
        seed: names the collection, >= 0.
        index: names the case in it, >= 0.
        modalities: one channel each, in this order; known: T1, T1ce, T2, FLAIR.
        spatial_size: voxels along right-left, posterior-anterior, inferior-superior, each >= 16. The field of view is
            about 40 x 52 x 54 mm (plus or minus 4 % over cases) whatever the size, so this sets the spacing: about
            1.0 x 1.0 x 1.5 mm by default.
        axis_codes: orientations of the stored array, one drawn per case. A code that permutes axes, such as ``PIR``,
            permutes the stored shape too.

    Raises:
        ValueError: an argument is out of its range; the message names it, what was got and what would be right.
    """
    _check_case_options(seed, index, modalities, spatial_size, axis_codes)
    shape = tuple(int(n) for n in spatial_size)
    anatomy_rng, texture_rng, affine_rng = (np.random.default_rng([seed, index, stream]) for stream in range(3))
    fractions = tissue_fractions(anatomy_rng, shape)
    grain = texture(texture_rng, shape)
    channels = []
    for name in modalities:
        rng = np.random.default_rng([seed, index, 3, list(CONTRAST).index(name)])  # new modalities go last in the table
        channels.append(_acquire(rng, fractions, grain, CONTRAST[name]))
    affine = _oblique_affine(affine_rng, shape)
    code = axis_codes[int(affine_rng.integers(len(axis_codes)))]
    return _reorient(PhantomCase(np.stack(channels), label_map(fractions), affine), code)


def make_phantoms(
    output_dir: str | Path,
    num_train: int = 24,
    num_test: int = 4,
    modalities: Sequence[str] = ("T1",),
    spatial_size: Sequence[int] = (40, 52, 36),
    seed: int = 0,
    progress: bool = True,
    axis_codes: Sequence[str] = ("RAS", "LPS"),
) -> Path:
    """Write a data set of phantoms in the layout of the Medical Segmentation Decathlon.

    ``dataset.json`` lists the gzipped NIfTI files of ``imagesTr/``, ``labelsTr/`` and ``imagesTs/``. Images are
    float32, ``(H, W, D)`` for one modality and ``(H, W, D, M)`` for several; labels are uint8. The same arguments give
    the same bytes, and a smaller ``num_train`` gives the first cases of a larger one. About 0.05 s and 0.15 MB a case.

    Args:
        output_dir: created if missing. Phantoms that are there already are replaced.
        num_train: labelled cases, 1 to 100000.
        num_test: images without labels, >= 0; anatomies that no training case has.
        modalities, spatial_size, seed, axis_codes: see :func:`phantom_case`.
        progress: show a progress bar.

    Returns:
        ``output_dir`` as a path.
    Raises:
        ValueError: an argument is out of its range.
        FileExistsError: ``output_dir`` is a file, or holds something that this function did not write.
    """
    output_dir = Path(output_dir)
    check_count("num_train", num_train, 1, FIRST_TEST_INDEX)
    check_count("num_test", num_test, 0, FIRST_TEST_INDEX)
    _check_case_options(seed, 0, modalities, spatial_size, axis_codes)
    options: dict[str, Any] = {
        "seed": int(seed),
        "modalities": list(modalities),
        "spatial_size": [int(n) for n in spatial_size],
        "axis_codes": list(axis_codes),
    }
    _claim_folder(output_dir)
    train_indices = list(range(num_train))
    test_indices = list(range(FIRST_TEST_INDEX, FIRST_TEST_INDEX + num_test))
    for index in tqdm(train_indices + test_indices, desc="phantoms", unit="case", disable=not progress):
        case = phantom_case(index=index, **options)
        image_dir = "imagesTr" if index < FIRST_TEST_INDEX else "imagesTs"
        stored = case.image[0] if len(modalities) == 1 else np.moveaxis(case.image, 0, -1)
        write_nifti(output_dir / image_dir / _file_name(index), stored, case.affine)
        if index < FIRST_TEST_INDEX:
            write_nifti(output_dir / "labelsTr" / _file_name(index), case.label, case.affine)
    _write_dataset_json(output_dir, train_indices, test_indices, options)
    return output_dir


def _acquire(
    rng: np.random.Generator, fractions: np.ndarray, grain: np.ndarray, contrast: Sequence[float]
) -> np.ndarray:
    """Scan the scene once: contrast, blur, bias field, Rician noise, arbitrary scale. ``(*S)``, whole numbers."""
    case_contrast = np.array(contrast) * rng.normal(1.0, 0.04, len(contrast))
    organ = [TISSUES.index(name) for name in CLASS_NAMES[1:]]
    case_contrast[organ] = np.array(contrast)[organ] * rng.normal(1.0, 0.05)  # together: keeps their order
    signal = np.tensordot(case_contrast.astype(np.float32), fractions, axes=1) * (1.0 + grain)
    signal = ndimage.gaussian_filter(signal, (0.45, 0.45, 0.35))  # voxels
    signal *= np.exp(0.12 * smooth_field(rng, signal.shape, (22.0, 22.0, 22.0)))
    noise_std = rng.uniform(0.025, 0.055)
    real, imaginary = noise_std * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    magnitude = np.hypot(signal + real, imaginary)
    maximum = 10.0 ** rng.uniform(2.0, 6.0)
    return np.rint(magnitude * (maximum / magnitude.max())).astype(np.float32)


def _oblique_affine(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A RAS affine, turned by 10 to 20 degrees about a random axis, voxel edges varying by up to 4 %, ``(4, 4)`` mm."""
    spacing_mm = np.array(FIELD_OF_VIEW_MM) / shape * rng.uniform(0.96, 1.04, 3)
    axis = rng.standard_normal(3)
    affine = np.eye(4)
    affine[:3, :3] = rotation(axis / np.linalg.norm(axis), np.deg2rad(rng.uniform(10.0, 20.0))) * spacing_mm
    affine[:3, 3] = rng.uniform(-30.0, 30.0, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _reorient(case: PhantomCase, code: str) -> PhantomCase:
    """Store the same case with other axis directions; no voxel changes its place in the patient."""
    ornt = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(code))
    )
    image = np.stack([nib.orientations.apply_orientation(channel, ornt) for channel in case.image])
    affine = case.affine @ nib.orientations.inv_ornt_aff(ornt, case.label.shape)
    return PhantomCase(image, np.ascontiguousarray(nib.orientations.apply_orientation(case.label, ornt)), affine)


def _file_name(index: int) -> str:
    return f"phantom_{index:03d}.nii.gz"


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a gzipped NIfTI whose bytes depend on the content only (no time stamp, no file name)."""
    volume = nib.Nifti1Image(array, affine)
    volume.set_qform(affine, code=1)
    volume.set_sform(affine, code=1)
    volume.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(volume.to_bytes(), compresslevel=4, mtime=0))


def _claim_folder(output_dir: Path) -> None:
    """Make the folders and mark them as ours; removes earlier phantoms, refuses anything else."""
    if output_dir.is_file():
        raise FileExistsError(f"output_dir '{output_dir}' is a file; give a new or empty directory")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not _is_ours(output_dir):
        raise FileExistsError(
            f"output_dir '{output_dir}' is not empty and holds no phantoms of {MADE_BY}; give a new or empty directory"
        )
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (output_dir / name).mkdir(parents=True, exist_ok=True)
        for stale in (output_dir / name).glob("phantom_*.nii.gz"):
            stale.unlink()
    # The mark comes first, so that an interrupted run can be repeated; the lists come last.
    (output_dir / "dataset.json").write_text(json.dumps({"made_by": MADE_BY}))


def _is_ours(output_dir: Path) -> bool:
    try:
        return json.loads((output_dir / "dataset.json").read_text())["made_by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_dataset_json(output_dir: Path, train_indices: list[int], test_indices: list[int], options: dict) -> None:
    modality = {str(i): name for i, name in enumerate(options["modalities"])}
    content = {
        "name": "Phantoms",
        "description": "Synthetic MR crops of a hippocampus-like organ; no patient data",
        "reference": "monai_kd",
        "licence": "Apache-2.0",
        "release": "1.0",
        "tensorImageSize": "3D" if len(modality) == 1 else "4D",
        "modality": modality,
        "channel_names": modality,
        "labels": {str(i): name for i, name in enumerate(CLASS_NAMES)},
        "file_ending": ".nii.gz",
        "numTraining": len(train_indices),
        "numTest": len(test_indices),
        "training": [
            {"image": f"./imagesTr/{_file_name(i)}", "label": f"./labelsTr/{_file_name(i)}"} for i in train_indices
        ],
        "test": [f"./imagesTs/{_file_name(i)}" for i in test_indices],
        "made_by": MADE_BY,
        "options": options,
    }
    (output_dir / "dataset.json").write_text(json.dumps(content, indent=1) + "\n")


# --- checks ----------------------------------------------------------------------------------------------------------


def check_count(name: str, value: int, low: int, high: int | None = None) -> None:
    allowed = f">= {low}" if high is None else f"from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be a whole number {allowed}; got {value!r}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be a whole number {allowed}; got {value!r}")


def _check_case_options(
    seed: int, index: int, modalities: Sequence[str], spatial_size: Sequence[int], axis_codes: Sequence[str]
) -> None:
    check_count("seed", seed, 0)
    check_count("index", index, 0)
    _check_names("modalities", modalities, tuple(CONTRAST), f"known: {', '.join(CONTRAST)}")
    if len(set(modalities)) < len(modalities):
        raise ValueError(f"modalities must not repeat; got {modalities!r}")
    _check_names("axis_codes", axis_codes, _all_axis_codes(), "known: RAS, LPS and the other 46 NIfTI axis codes")
    if isinstance(spatial_size, str) or not isinstance(spatial_size, Sequence) or len(spatial_size) != 3:
        raise ValueError(f"spatial_size must be three whole numbers >= {MIN_SPATIAL_SIZE}; got {spatial_size!r}")
    for axis, size in enumerate(spatial_size):
        check_count(f"spatial_size[{axis}]", size, MIN_SPATIAL_SIZE)


def _check_names(argument: str, names: Sequence[str], known: tuple[str, ...], known_text: str) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(f"{argument} must be a list of one or more names; got {names!r}; {known_text}")
    for name in names:
        if name not in known:
            raise ValueError(f"{argument} holds {name!r}; {known_text}")


def _all_axis_codes() -> tuple[str, ...]:
    """The 48 three-letter codes: each of the three axes once, in either direction."""
    return tuple("".join(code) for axes in permutations(("RL", "AP", "SI")) for code in product(*axes))
