"""The phantoms as the data of other tasks: one class, or a folder of brain tumor cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

__all__ = ["as_brats", "with_one_class"]


def with_one_class(phantoms: Path, folder: Path) -> Path:
    """Copy the phantoms; all of the foreground is one class."""
    shutil.copytree(phantoms, folder)
    for path in (folder / "labelsTr").iterdir():
        label = nib.load(path)
        nib.save(nib.Nifti1Image((np.asarray(label.dataobj) > 0).astype(np.uint8), label.affine), path)
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"0": "background", "1": "organ"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def as_brats(phantoms: Path, folder: Path) -> Path:
    """Write each labelled phantom as a case of BraTS: four modalities, and the labels 1, 2 and 4 of its tumor."""
    for path in sorted((phantoms / "labelsTr").iterdir()):
        case = folder / path.name.removesuffix(".nii.gz")
        case.mkdir(parents=True)
        image = phantoms / "imagesTr" / path.name
        if not image.is_file():
            image = phantoms / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz")
        for modality in ("t1", "t1ce", "t2", "flair"):
            shutil.copyfile(image, case / f"{case.name}_{modality}.nii.gz")
        label = nib.load(path)
        values = np.array([0, 2, 4], dtype=np.uint8)[np.asarray(label.dataobj).astype(int)]
        values[: values.shape[0] // 2][values[: values.shape[0] // 2] == 4] = 1  # a core that does not enhance
        nib.save(nib.Nifti1Image(values, label.affine), case / f"{case.name}_seg.nii.gz")
    return folder
