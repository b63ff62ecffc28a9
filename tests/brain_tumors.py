"""Made-up brain tumors as tests need them: small, and beside them images of one modality to segment."""

from __future__ import annotations

import shutil
from pathlib import Path

from monai_kd.data import make_brats_phantoms

__all__ = ["brain_tumors"]


def brain_tumors(folder: Path, layout: str = "2018", num_cases: int = 6) -> tuple[Path, Path]:
    """Write cases to ``folder``, and the T1ce images of two of them to ``folder_images``; return both."""
    data = make_brats_phantoms(folder, num_cases, (32, 32, 32), (1.5, 1.5, 1.5), layout=layout, progress=False)
    images = folder.with_name(f"{folder.name}_images")
    images.mkdir()
    for path in sorted(data.glob("*/*_t1ce.nii.gz"))[:2]:
        shutil.copyfile(path, images / path.name.replace("_t1ce", ""))
    return data, images
