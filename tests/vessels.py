"""Made-up fundus photographs as tests need them: small, and beside them some to segment."""

from __future__ import annotations

import shutil
from pathlib import Path

from monai_kd.data import make_vessel_phantoms

__all__ = ["vessel_photographs"]


def vessel_photographs(folder: Path, num_cases: int = 6) -> tuple[Path, Path]:
    """Write cases as DRIVE has them below ``folder``, and two photographs alone to ``folder_images``; return both."""
    made = make_vessel_phantoms(folder, num_cases - 1, 1, domains=["drive"], size=96, progress=False)
    data, images = made / "DRIVE" / "training", folder.with_name(f"{folder.name}_images")
    images.mkdir()
    for path in sorted((data / "images").iterdir())[:2]:
        shutil.copyfile(path, images / path.name)
    return data, images
