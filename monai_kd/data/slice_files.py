"""Volumes as folders of PNG slices, for those who want files: images, labels, and a table of where each came from."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd
from monai.utils import optional_import
from tqdm import tqdm

from monai_kd.data.case_names import case_id
from monai_kd.data.case_problems import case_problems
from monai_kd.data.splits import labelled_cases
from monai_kd.data.volumes import read_volumes

__all__ = ["write_slices"]

_PERCENTILES = (0.5, 99.5)  # of a case, where no window is given
_COLUMNS = ("slice", "case", "position", "pixel_mm_x", "pixel_mm_y", "slice_mm", "low", "high")


def write_slices(
    dataset_dir: str | Path,
    output_dir: str | Path,
    window: Sequence[float] | None = None,
    pixel_size: float | None = None,
    progress: bool = True,
) -> Path:
    """Write every axial slice of the labelled volumes of a folder as 8-bit PNG.

    Volumes are turned to RAS first, and a picture is drawn as radiologists look at it: the patient's right at the left,
    the front above. A name holds the case and the slice, counted from the feet with four digits, so that
    names sort as the slices lie; ``slices.csv`` says what each is. The folder is read again by
    :func:`monai_kd.data.image_mask_cases` with the layout ``slices``, which keeps the slices of a case together; labels
    hold class numbers, for :func:`monai_kd.data.as_classes`.

    Args:
        dataset_dir: in the MSD layout.
        output_dir: gets ``images``, ``labels`` and ``slices.csv``; must not hold them yet.
        window: least and greatest intensity, such as ``(-160, 240)`` Hounsfield units; what lies outside is cut off.
            None takes the percentiles 0.5 and 99.5 of each case.
        pixel_size: mm, to which slices are resampled; None keeps them. Slices stay as thick as they are.
        progress: whether a bar is shown.

    Returns:
        ``output_dir``.

    Raises:
        FileExistsError: the folder holds slices already.
        FileNotFoundError, ValueError: see :func:`labelled_cases`; a window that is none; volumes that cannot be read,
            have several channels, or labels other than whole numbers from 0 to 255: each is named.
        ImportError: Pillow is missing.

    Source: Biswas 2024, arXiv 2406.03173, trains on such files. There axes are not turned, the conversion to 8 bits
    cuts at 0 and 255 HU without saying so, and numbers of two digits sort wrongly above 99.
    """
    if window is not None and not _is_window(window):
        raise ValueError(f"window is {window!r}; give the least and the greatest intensity, e.g. [-160, 240]")
    if pixel_size is not None and not pixel_size > 0:
        raise ValueError(f"pixel_size is {pixel_size!r}; it must be above 0 mm, or None")
    out = Path(output_dir)
    for name in ("images", "labels", "slices.csv"):
        if (out / name).exists():
            raise FileExistsError(f"'{out / name}' is there already; give another folder, or remove it")
    if not optional_import("PIL.Image")[1]:
        raise ImportError("PNG files need Pillow; install the extra: pip install 'monai_kd[vessels]'")
    cases = labelled_cases(dataset_dir)
    _refuse_bad_cases(dataset_dir, cases, progress)  # all of them, before anything is written
    load = _pipeline(pixel_size)
    for name in ("images", "labels"):
        (out / name).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for case in tqdm(cases, desc="writing slices", unit="case", disable=not progress):
        rows += _write_case(case_id(case["image"]), load(case), out, window)
    with open(out / "slices.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    return out


def _is_window(window: Any) -> bool:
    return isinstance(window, Sequence) and len(window) == 2 and bool(window[0] < window[1])


def _refuse_bad_cases(dataset_dir: str | Path, cases: Sequence[dict[str, str]], progress: bool) -> None:
    """Raise ValueError, naming each case and what is wrong, where a volume cannot be read or become 8-bit slices."""
    images, labels = ([case[key] for case in cases] for key in ("image", "label"))
    facts = read_volumes(dataset_dir, images, labels, progress)
    found = {
        image: problems
        for image, label in zip(images, labels, strict=True)
        if (problems := case_problems(facts[image], facts[label], 1, range(256)))
    }
    if found:
        named = "; ".join(f"'{image}': {', '.join(problems)}" for image, problems in list(found.items())[:5])
        raise ValueError(
            f"{len(found)} of {len(cases)} cases cannot be written as slices, nothing was written: {named}"
        )


def _pipeline(pixel_size: float | None) -> Compose:
    keys = ["image", "label"]
    steps: list[Any] = [LoadImaged(keys), EnsureChannelFirstd(keys), Orientationd(keys, axcodes="RAS", labels=None)]
    if pixel_size is not None:
        steps.append(Spacingd(keys, pixdim=(pixel_size, pixel_size, -1.0), mode=["bilinear", "nearest"]))
    return Compose(steps)


def _write_case(name: str, volume: dict[str, Any], out: Path, window: Sequence[float] | None) -> list[dict[str, Any]]:
    image, label = volume["image"], volume["label"]
    if image.shape[0] != 1:
        raise ValueError(f"case '{name}' has {image.shape[0]} channels; slices are written of one")
    classes = np.unique(np.asarray(label))
    if classes.min() < 0 or classes.max() > 255 or (classes != classes.round()).any():
        raise ValueError(
            f"case '{name}' has the labels {classes[:8].tolist()}; a PNG takes whole numbers from 0 to 255"
        )
    values = np.asarray(image[0], dtype=np.float32)
    low, high = (float(v) for v in (np.percentile(values, _PERCENTILES) if window is None else window))
    grey = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255
    size = [float(mm) for mm in image.pixdim]
    pil_image, _ = optional_import("PIL.Image")
    rows = []
    for position in range(values.shape[2]):
        file = f"{name}_{position:04}"
        pil_image.fromarray(_as_seen(grey[..., position].round())).save(out / "images" / f"{file}.png")
        pil_image.fromarray(_as_seen(np.asarray(label[0, ..., position]))).save(out / "labels" / f"{file}.png")
        facts = (file, name, position, *(f"{mm:.6g}" for mm in size), f"{low:.6g}", f"{high:.6g}")
        rows.append(dict(zip(_COLUMNS, facts, strict=True)))
    return rows


def _as_seen(plane: np.ndarray) -> np.ndarray:
    """Return a slice of a volume in RAS, x to the patient's right and y to the front, as rows of a picture."""
    return np.ascontiguousarray(plane.T[::-1, ::-1].astype(np.uint8))
