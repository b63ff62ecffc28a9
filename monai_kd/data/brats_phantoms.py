"""Made-up brain tumor cases in the layouts of BraTS and MSD, so that methods for several modalities can be tried.

A scene is a brain without skull, and in it one tumor: a necrotic core, an enhancing rim and edema. What a modality
shows of it is in :data:`BRAIN_CONTRAST`: FLAIR and T2 the whole tumor, T1ce the rim, T1 little.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from monai_kd.data.phantom_anatomy import smooth_field
from monai_kd.data.phantom_folder import claim_folder
from monai_kd.data.phantoms import PhantomCase, check_count, write_nifti
from monai_kd.data.tumor_anatomy import BRAIN_FIELD_MM, brain_fractions, brain_texture, tumor_map

__all__ = ["BRAIN_CONTRAST", "brats_phantom_case", "make_brats_phantoms"]

MADE_BY = "monai_kd.data.brats_phantoms"
MIN_SPATIAL_SIZE = 24  # coarser grids can lose the rim, and then a label value would be missing

# Mean signal relative to white matter in T1, in the order of BRAIN_TISSUES. In T1ce edema lies between white and gray
# matter, and vessels are as bright as the rim; in T2 edema is darker than CSF; FLAIR hardly tells the tumor's parts.
BRAIN_CONTRAST = {
    "t1": (1.00, 0.76, 0.36, 0.60, 0.86, 0.84, 0.70),
    "t1ce": (1.00, 0.77, 0.36, 1.50, 0.90, 1.50, 0.60),
    "t2": (0.55, 0.74, 1.50, 0.30, 1.12, 1.02, 1.28),
    "flair": (0.68, 0.82, 0.28, 0.30, 1.30, 1.16, 1.05),
}

# how a layout names a case, its files and its tissues; MSD stacks the modalities in this order
_BRATS_VALUES = {"necrotic_core": 1, "edema": 2, "enhancing_tumor": 4}
_ENDINGS = {"t1": "_t1", "t1ce": "_t1ce", "t2": "_t2", "flair": "_flair", "label": "_seg"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "2018": {"case": "Brats18_PHANTOM_{:03d}_1", "endings": _ENDINGS, "values": _BRATS_VALUES},
    "2021": {"case": "BraTS2021_{:05d}", "endings": _ENDINGS, "values": _BRATS_VALUES},
    "2023": {
        "case": "BraTS-GLI-{:05d}-000",
        "endings": {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f", "label": "-seg"},
        "values": {**_BRATS_VALUES, "enhancing_tumor": 3},
    },
    "msd": {
        "case": "BRATS_{:03d}",
        "modality": {"flair": "FLAIR", "t1": "T1w", "t1ce": "t1gd", "t2": "T2w"},
        "values": {"edema": 1, "necrotic_core": 2, "enhancing_tumor": 3},
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
    },
}


def brats_phantom_case(
    seed: int,
    index: int,
    modalities: Sequence[str] = ("t1", "t1ce", "t2", "flair"),
    spatial_size: Sequence[int] = (48, 48, 48),
    spacing_mm: Sequence[float] = (3.0, 3.0, 3.0),
    values: Mapping[str, int] | None = None,
) -> PhantomCase:
    """Make case ``index`` of the collection ``seed``: image ``(M, *S)``, label ``(*S)``, affine.

    The image is int16, 0 outside the brain and above it inside, in arbitrary units: a channel's maximum lies anywhere
    from 100 to 30000. The case depends on the arguments only, and a channel not on the other modalities.

    Args:
        seed: names the collection, >= 0.
        index: names the case in it, >= 0.
        modalities: one channel each, in this order; of t1, t1ce, t2 and flair.
        spatial_size: voxels along right-left, posterior-anterior, inferior-superior, each >= 24. The brain fills the
            grid whatever its size.
        spacing_mm: written into the affine; 144 mm over 48 voxels are about a head.
        values: label value of ``necrotic_core``, ``edema`` and ``enhancing_tumor``; None takes 1, 2 and 4.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_options(seed, index, modalities, spatial_size, spacing_mm)
    shape = tuple(int(n) for n in spatial_size)
    anatomy_rng, texture_rng = (np.random.default_rng([seed, index, stream]) for stream in range(2))
    fractions = brain_fractions(anatomy_rng, shape)
    grain = brain_texture(texture_rng, shape)
    channels = []
    for name in modalities:
        rng = np.random.default_rng([seed, index, 2, list(BRAIN_CONTRAST).index(name)])
        channels.append(_scan(rng, fractions, grain, BRAIN_CONTRAST[name]))
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])  # stored as LPS, as BraTS
    affine[1, 3] = spacing_mm[1] * (shape[1] - 1)
    return PhantomCase(np.stack(channels), tumor_map(fractions, values or _BRATS_VALUES), affine)


def make_brats_phantoms(
    output_dir: str | Path,
    num_cases: int = 6,
    spatial_size: Sequence[int] = (48, 48, 48),
    spacing_mm: Sequence[float] = (3.0, 3.0, 3.0),
    layout: str = "2021",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write labelled brain tumor phantoms that :func:`~monai_kd.data.brats_cases` lists.

    The same arguments give the same bytes, a smaller ``num_cases`` the first cases of a larger one, and case ``i`` has
    the same images in every layout. About 0.12 s and 0.25 MB a case.

    Args:
        output_dir: created if missing. Phantoms that are there already are replaced.
        num_cases: 1 to 1000.
        spatial_size, spacing_mm, seed: see :func:`brats_phantom_case`.
        layout: ``2018``, ``2021`` and ``2023`` write one folder per case with the file names of that year's BraTS
            (label 1 necrotic core, 2 edema, 4 enhancing tumor, which is 3 in 2023); ``msd`` one 4-D file per case and
            ``dataset.json`` as MSD Task01_BrainTumour (FLAIR, T1, T1ce, T2; label 1 edema, 2 core, 3 enhancing).
        progress: show a progress bar.

    Returns:
        ``output_dir`` as a path.
    Raises:
        ValueError: an argument is out of its range.
        FileExistsError: ``output_dir`` is a file, or holds something that this function did not write.
    """
    folder = Path(output_dir)
    check_count("num_cases", num_cases, 1, 1000)
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; known: {', '.join(LAYOUTS)}")
    _check_options(seed, 0, tuple(BRAIN_CONTRAST), spatial_size, spacing_mm)
    form = LAYOUTS[layout]
    names = [form["case"].format(index) for index in range(num_cases)]
    files = [_files(form, name) for name in names]
    written = [path for paths in files for path in paths.values()] + ["dataset.json"] * ("labels" in form)
    claim_folder(folder, written, MADE_BY)
    for index, paths in enumerate(tqdm(files, desc="phantoms", unit="case", disable=not progress)):
        modalities = tuple(form.get("modality", BRAIN_CONTRAST))
        case = brats_phantom_case(seed, index, modalities, spatial_size, spacing_mm, form["values"])
        channels = dict(zip(modalities, case.image, strict=True))
        volumes = {**channels, "image": np.moveaxis(case.image, 0, -1), "label": case.label}
        for role, path in paths.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_nifti(folder / path, volumes[role], case.affine)
    if "labels" in form:
        _write_dataset_json(folder, form, files)
    return folder


def _scan(rng: np.random.Generator, fractions: np.ndarray, grain: np.ndarray, contrast: Sequence[float]) -> np.ndarray:
    """Scan the scene once: contrast, blur, bias field, Rician noise, arbitrary scale; 0 outside the brain. int16."""
    brain = fractions.sum(axis=0) > 0.5
    case_contrast = np.array(contrast) * rng.normal(1.0, 0.04, len(contrast))
    signal = np.tensordot(case_contrast.astype(np.float32), fractions, axes=1) * (1.0 + grain)
    signal = ndimage.gaussian_filter(signal, 0.4)  # voxels
    signal *= np.exp(0.08 * smooth_field(rng, signal.shape, (80.0, 80.0, 80.0), BRAIN_FIELD_MM))
    noise_std = rng.uniform(0.03, 0.06)
    real, imaginary = noise_std * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    magnitude = np.hypot(signal + real, imaginary) * brain
    maximum = 10.0 ** rng.uniform(2.0, np.log10(30000.0))
    return (np.clip(np.rint(magnitude * (maximum / magnitude.max())), 1, None) * brain).astype(np.int16)


def _files(form: dict[str, Any], name: str) -> dict[str, str]:
    """Return the paths of a case's files by what they hold."""
    if "endings" in form:
        return {role: f"{name}/{name}{ending}.nii.gz" for role, ending in form["endings"].items()}
    return {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}


def _write_dataset_json(folder: Path, form: dict[str, Any], files: Sequence[dict[str, str]]) -> None:
    content = {
        "name": "Brain tumor phantoms",
        "description": "Synthetic MR of a brain with a tumor; no patient data",
        "reference": "monai_kd",
        "licence": "Apache-2.0",
        "release": "1.0",
        "tensorImageSize": "4D",
        "modality": {str(channel): name for channel, name in enumerate(form["modality"].values())},
        "labels": form["labels"],
        "numTraining": len(files),
        "numTest": 0,
        "training": [{role: f"./{path}" for role, path in paths.items()} for paths in files],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _check_options(
    seed: int, index: int, modalities: Sequence[str], spatial_size: Sequence[int], spacing_mm: Sequence[float]
) -> None:
    check_count("seed", seed, 0)
    check_count("index", index, 0)
    if not modalities or not set(modalities) <= set(BRAIN_CONTRAST):
        raise ValueError(f"modalities is {list(modalities)}; known: {', '.join(BRAIN_CONTRAST)}")
    if len(spatial_size) != 3 or len(spacing_mm) != 3 or not min(spacing_mm) > 0:
        raise ValueError(
            f"spatial_size is {list(spatial_size)} and spacing_mm {list(spacing_mm)}; give three numbers each, the "
            "spacing above 0"
        )
    for axis, size in enumerate(spatial_size):
        check_count(f"spatial_size[{axis}]", size, MIN_SPATIAL_SIZE)
