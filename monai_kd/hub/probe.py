"""Build a bundle's workflow without its data and without traces: for checks that must evaluate configurations."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import optional_import

from monai_kd.export.pipeline import takes_photographs
from monai_kd.handlers.first_cause import first_cause
from monai_kd.hub.bundle_folder import BundleFolder, NotReadable

__all__ = ["has_id", "opened_workflow", "quiet", "reason", "several_processes", "write_cases"]

_SIDE = 24  # voxels of a made-up case
_LONGEST = 600  # characters of a reason


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep prints, warnings and log lines of what runs inside from the reader of a report."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(before)


def reason(error: BaseException) -> str:
    """Return the first cause of an error in one line; MONAI wraps it in an error for every id on the way."""
    error = first_cause(error)
    text = " ".join(str(error).split()).partition(". For details about installing")[0]  # MONAI adds a stack trace there
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def several_processes(config: dict[str, Any]) -> bool:
    """Tell whether a configuration opens a process group, which a check in one process cannot."""
    return "init_process_group" in str(config.get("initialize", ""))


def write_cases(
    folder: Path,
    metadata: dict[str, Any],
    count: int = 2,
    spacing_mm: Sequence[float] = (),
    least: Sequence[int] = (),
    photographs: bool | None = None,
    slices: bool = False,
    colors: Sequence[Sequence[Any]] = (),
) -> list[dict[str, str]]:
    """Write small made-up images and labels with the dimensions and classes that the metadata states, and its channels.

    Photographs are in color, whatever the network sees of them.

    Args:
        folder: where to.
        metadata: the bundle's.
        count: of cases.
        spacing_mm: of the images, per axis; 1 mm where it says nothing or nothing above 0.
        least: voxels that they have at least, per axis.
        photographs: whether they are PNG files and no NIfTI ones; None asks the metadata's ``data_type``. What is no
            photograph in a bundle of photographs is a volume of its slices.
        slices: whether the network takes volumes slice by slice.
        colors: of each class in the masks of photographs, one or several; the first is drawn. Empty draws numbers.

    Raises:
        NotReadable: the metadata does not state them.
    """
    try:
        image = metadata["network_data_format"]["inputs"]["image"]
        classes = int(metadata["network_data_format"]["outputs"]["pred"]["num_channels"])
        channels, dimensions = int(image["num_channels"]), len(image["spatial_shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise NotReadable(f"configs/metadata.json does not describe image and pred: {reason(error)}") from error
    generator = np.random.default_rng(0)
    stated = takes_photographs(metadata)
    photographs = stated if photographs is None else photographs
    dimensions = 3 if (stated or slices) and not photographs else dimensions
    sides = [*least, *[_SIDE] * dimensions][:dimensions]
    shape = tuple(max(_SIDE, side) for side in sides)
    mm = [size if size > 0 else 1.0 for size in [*spacing_mm, *[1.0] * 3][:3]]
    affine = np.diag([*mm, 1.0])
    label = np.minimum(np.indices(shape)[0] * classes // shape[0], classes - 1).astype(np.uint8)
    if photographs:
        stems = [folder / f"made_up_{number}" for number in range(count)]
        return [_write_photograph(stem, label, classes, generator, colors) for stem in stems]
    cases = []
    for number in range(count):
        stored = [*shape, channels] if channels > 1 else [*shape]
        volume = generator.normal(100, 10, stored).astype(np.float32)
        case = {key: str(folder / f"made_up_{number}_{key}.nii.gz") for key in ("image", "label")}
        nib.save(nib.Nifti1Image(volume, affine), case["image"])
        nib.save(nib.Nifti1Image(label, affine), case["label"])
        cases.append(case)
    return cases


def _write_photograph(
    stem: Path, label: Any, classes: int, generator: np.random.Generator, colors: Sequence[Sequence[Any]]
) -> dict[str, str]:
    """Write a photograph in color and its mask: the classes' colors, or 0 and 255, or numbers if more than two."""
    pil_image, _ = optional_import("PIL.Image")
    case = {key: f"{stem}_{key}.png" for key in ("image", "label")}
    levels = generator.normal(100, 10, [*label.shape, 3]).clip(0, 255).astype(np.uint8)
    pil_image.fromarray(levels).save(case["image"])
    if colors:
        pil_color, _ = optional_import("PIL.ImageColor")
        first = [pil_color.getrgb(of[0]) if isinstance(of[0], str) else tuple(of[0]) for of in colors]
        label = np.asarray(first, dtype=np.uint8)[label]
    pil_image.fromarray(label * 255 if classes == 2 and not colors else label).save(case["label"])
    return case


@contextlib.contextmanager
def opened_workflow(
    bundle: BundleFolder, names: tuple[str, ...], overrides: dict[str, Any] | None = None
) -> Iterator[ConfigWorkflow]:
    """Give a workflow of some of a bundle's files, on made-up cases, that writes into a temporary folder only.

    Nothing is evaluated yet: ``initialize()`` is the caller's.

    Args:
        bundle: the bundle.
        names: files in its configs folder, later ones win.
        overrides: ``::`` id to value; ids that the files lack are left out.
    """
    kind = "infer" if names[0].startswith("inference") else "train"
    parser = ConfigParser(bundle.merged(names))
    with tempfile.TemporaryDirectory() as temporary:
        own = [_numbers(parser, key) for key in ("spacing_mm", "patch_size")]
        least, text = [int(side) for side in own[1]], str(parser.get())
        photographs = "PILReader" in text
        if takes_photographs(bundle.metadata):  # but for configurations that read volumes
            photographs = not any(reader in text for reader in ("NibabelReader", "ITKReader"))
        slices = "SliceInferer" in text
        colors = parser.get("colors", []) if "ColorClasses" in text else []
        cases = write_cases(Path(temporary), bundle.metadata, 2, own[0], least, photographs, slices, colors)
        training = [cases[0], {**cases[1], "labelled": False}] if "MixedSampler" in text else cases
        wanted: dict[str, Any] = {
            **{key: f"{temporary}/{key}" for key in ("run_dir", "ckpt_dir", "output_dir")},
            **{f"{section}dataset::data": cases for section in ("validate::", "")},
            "train::dataset::data": training,
            "dataset_dir": temporary,
            "num_workers": 0,
            **(overrides or {}),
        }
        flow = ConfigWorkflow(
            config_file=[str(bundle.root / "configs" / name) for name in names],
            workflow_type=kind,
            logging_file=False,
            bundle_root=str(bundle.root),
            **{key: value for key, value in wanted.items() if has_id(parser, key)},
        )
        yield flow


def _numbers(parser: ConfigParser, key: str) -> list[float]:
    """Return a list of numbers of a configuration; an empty one where it has none, or an expression."""
    found = parser.get(key, []) if has_id(parser, key) else []
    numbers = isinstance(found, list) and all(isinstance(value, (int, float)) for value in found)
    return list(found) if numbers else []


def has_id(parser: ConfigParser, config_id: str) -> bool:
    try:
        return config_id in parser
    except TypeError:  # below a text or a number
        return False
