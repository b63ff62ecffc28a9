"""Which image and label belong to a prediction, by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monai_kd.data.case_names import LABEL_NAMES, MODALITY_NAMES, file_role

__all__ = ["CaseFiles", "find_cases"]

_ENDINGS = (".nii.gz", ".nii")
_IMAGE_FOLDERS = ("", "imagesTs", "imagesTr")
_LABEL_FOLDERS = ("", "labelsTs", "labelsTr")


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case; ``channel`` is that of the image's fourth dimension."""

    name: str
    prediction: Path
    image: Path
    channel: int
    truth: Path | None


def find_cases(
    pred: str | Path, image: str | Path, label: str | Path | None = None, channel: int | str = 0
) -> list[CaseFiles]:
    """Find the image and the label of every prediction.

    A prediction is named as ``inference.yaml`` does, ``<image>_seg.nii.gz``, or as its image. The image ``<image>``
    lies in the image folder, in its ``imagesTs`` or ``imagesTr`` (MSD), or in a folder of the case's name (BraTS, where
    ``<image>`` may end in a modality). Labels lie the same way, in ``labelsTs`` or ``labelsTr`` (MSD), or end in
    ``seg`` in the folder of the case (BraTS).

    Args:
        pred: a label map, or a folder of them.
        image: an image, or a folder.
        label: a label map, a folder, or None.
        channel: of a 4-D image, from 0; or a modality, ``t1``, ``t1ce``, ``t2`` or ``flair``, of a case whose
            modalities are files: it is shown in place of the file that the prediction is named after.

    Returns:
        The cases, sorted by name.

    Raises:
        FileNotFoundError: a path is missing, the folder holds no prediction, or a prediction has no image or label.
        ValueError: two predictions of one name, one file for a folder of predictions, or an unknown modality.
    """
    if isinstance(channel, bool) or (isinstance(channel, str) and channel not in MODALITY_NAMES):
        raise ValueError(f"channel is {channel!r}; it must be a number from 0, or one of {', '.join(MODALITY_NAMES)}")
    source = Path(pred)
    for role, path in (("prediction", source), ("image", Path(image)), *([("label", Path(label))] if label else [])):
        if not path.exists():
            raise FileNotFoundError(f"{role} '{path}' does not exist")
        if source.is_dir() and not path.is_dir():
            raise ValueError(f"'{source}' is a folder of predictions, so {role} must be a folder too, got '{path}'")
    predictions = _predictions(source)
    cases = []
    for name, file in predictions.items():
        shown = _modality(_image_of(name, Path(image)), channel)
        truth = _label_of(name, Path(label)) if label else None
        cases.append(CaseFiles(name, file, shown, channel if isinstance(channel, int) else 0, truth))
    return cases


def _predictions(source: Path) -> dict[str, Path]:
    files = [source]
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.name.endswith(_ENDINGS) and path.name[0] != ".")
    if not files:
        raise FileNotFoundError(f"the folder '{source}' holds no prediction, a .nii or .nii.gz file")
    found: dict[str, Path] = {}
    for path in files:
        name = _stem(path).removesuffix("_seg")
        if name in found:
            raise ValueError(f"'{found[name].name}' and '{path.name}' in '{source}' are two predictions of '{name}'")
        found[name] = path
    return dict(sorted(found.items()))


def _image_of(name: str, place: Path) -> Path:
    if place.is_file():
        return place
    if found := _named(place, _IMAGE_FOLDERS, name):
        return found
    case = _case_folder(place, name)
    if case and (exact := _named(case, ("",), name)):
        return exact
    if case:
        roles = {file_role(path): path for path in sorted(case.iterdir())}
        for spelling in (spelling for names in MODALITY_NAMES.values() for spelling in names):
            if spelling in roles:
                return roles[spelling]
    raise FileNotFoundError(
        f"no image of the prediction '{name}' in '{place}': neither {name}.nii.gz there, in imagesTs or imagesTr, nor "
        "a folder of that case"
    )


def _label_of(name: str, place: Path) -> Path:
    if place.is_file():
        return place
    if found := _named(place, _LABEL_FOLDERS, name):
        return found
    if case := _case_folder(place, name):
        for path in sorted(case.iterdir()):
            if file_role(path) in LABEL_NAMES:
                return path
    raise FileNotFoundError(
        f"no label of the prediction '{name}' in '{place}': neither {name}.nii.gz there, in labelsTs or labelsTr, nor "
        "a file ending in seg in a folder of that case"
    )


def _named(place: Path, folders: Sequence[str], name: str) -> Path | None:
    candidates = (place / folder / f"{name}{ending}" for folder in folders for ending in _ENDINGS)
    return next((path for path in candidates if path.is_file()), None)


def _case_folder(place: Path, name: str) -> Path | None:
    """The folder of a case, whose name is the prediction's or that without a modality."""
    names = [name]
    if file_role(f"{name}.nii") in {spelling for names in MODALITY_NAMES.values() for spelling in names}:
        names.append(re.sub(r"[_-][A-Za-z0-9]+$", "", name))
    return next((place / folder for folder in names if (place / folder).is_dir()), None)


def _modality(image: Path, channel: int | str) -> Path:
    """The file beside an image that holds another modality of the same case."""
    if isinstance(channel, int):
        return image
    start = re.sub(r"[_-][A-Za-z0-9]+$", "", _stem(image))
    beside = {
        file_role(path): path
        for path in sorted(image.parent.iterdir())
        if path.name.endswith(_ENDINGS) and re.sub(r"[_-][A-Za-z0-9]+$", "", _stem(path)) == start
    }
    for spelling in MODALITY_NAMES[channel]:
        if spelling in beside:
            return beside[spelling]
    raise FileNotFoundError(
        f"beside '{image}' is no file of the modality {channel}; it has {', '.join(sorted(beside))}"
    )


def _stem(path: Path) -> str:
    return next((path.name.removesuffix(ending) for ending in _ENDINGS if path.name.endswith(ending)), path.stem)
