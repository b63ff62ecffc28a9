"""The plans of an nnU-Net v2 model: its network, spacing, axes, normalization and classes, as plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from monai_kd.teachers.weights import read_nnunet_checkpoint

__all__ = ["Normalization", "Plans", "checkpoint_files", "find_plans", "plans_folder", "refuse_parts_of_models"]

_REORIENTING_READERS = {"NibabelIOWithReorient": "RAS"}
_LEGACY_NETWORKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}


@dataclass(frozen=True)
class Normalization:
    """How nnU-Net normalizes one channel.

    Attributes:
        scheme: nnU-Net's name of it.
        scale, shift, clip: the fixed part: ``raw * scale + shift``, then cut to ``clip``. None as ``scale`` means that
            each image is normalized by its own statistics, or in a way that is not known here.
    """

    scheme: str
    scale: float | None = None
    shift: float = 0.0
    clip: tuple[float, float] = (-math.inf, math.inf)

    @property
    def of_each_image(self) -> bool:
        return self.scheme in ("ZScoreNormalization", "RescaleTo01Normalization")

    def __str__(self) -> str:
        if self.scheme == "CTNormalization" and self.scale is not None:
            low, high = ((value - self.shift) / self.scale for value in self.clip)
            mean = -self.shift / self.scale
            return f"Hounsfield units cut to [{low:g}, {high:g}], minus {mean:g}, divided by {1 / self.scale:g}"
        return self.scheme


@dataclass(frozen=True)
class Plans:
    """One configuration of a model.

    Attributes:
        folder: that holds plans.json.
        configuration: e.g. 3d_fullres.
        network_class: dotted path.
        arguments: of the class, without channels; those in ``imported`` are dotted paths to import.
        spacing_mm: of the network's own axes.
        channel_names, class_names: in the network's order.
        normalizations: of each channel.
        size_multiple: total stride of each axis of the network; None where the plans do not tell.
        transpose_forward: from the reader's axes (z, y, x) to the network's.
        reader: the class that read the training images.
    """

    folder: Path
    configuration: str
    network_class: str
    arguments: Mapping[str, Any]
    imported: tuple[str, ...]
    spacing_mm: tuple[float, ...]
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    normalizations: tuple[Normalization, ...]
    size_multiple: tuple[int, ...] | None
    transpose_forward: tuple[int, ...]
    reader: str

    @property
    def path(self) -> Path:
        return self.folder / "plans.json"

    def orientation(self, stored: str | None = None) -> str | None:
        """Axis codes of the network's axes, from those of the image file's (i, j, k), which readers hand over reversed.

        Args:
            stored: of the training images' files. A reader that reorients decides by itself; otherwise None stays None.
        """
        codes = _REORIENTING_READERS.get(self.reader, stored)
        if codes is None:
            return None
        reversed_codes = codes[::-1]
        return "".join(reversed_codes[axis] for axis in self.transpose_forward)


def plans_folder(root: Path) -> Path | None:
    """The folder with plans.json: the model folder itself, or models/ of a bundle that MONAI converted it to."""
    return next((place for place in (root, root / "models") if (place / "plans.json").is_file()), None)


def refuse_parts_of_models(root: Path) -> None:
    """Say which folder is meant when one above or below an nnU-Net model folder is given.

    Raises:
        FileNotFoundError: the folder is a fold, or holds model folders.
    """
    if root.name.startswith("fold_") and (root.parent / "plans.json").is_file():
        fold = root.name.removeprefix("fold_")
        raise FileNotFoundError(
            f"'{root}' is one fold of an nnU-Net model; give bundle_root='{root.parent}' and folds=['{fold}']"
        )
    models = sorted(path.parent.name for path in root.glob("*__*__*/plans.json"))
    if models:
        raise FileNotFoundError(
            f"'{root}' holds the nnU-Net models {', '.join(models)}; give the folder of one of them"
        )


def find_plans(root: Path) -> Plans | None:
    """The plans of an nnU-Net model folder, or of one that MONAI converted to a bundle; None for any other folder.

    Raises:
        ValueError: a file cannot be parsed, or the model is of a kind that cannot teach.
        FileNotFoundError: dataset.json or every checkpoint is missing.
    """
    folder = plans_folder(root)
    if folder is None:
        return None
    plans, dataset = _read(folder / "plans.json"), _read(folder / "dataset.json")
    if "configurations" not in plans:
        raise ValueError(f"'{folder / 'plans.json'}' lists no configurations; a teacher is an nnU-Net v2 model")
    name = _configuration_name(folder)
    configuration = _configuration(plans, name, folder)
    _refuse_other_kinds(configuration, name, dataset, folder)
    network_class, arguments, imported = _architecture(configuration, folder)
    channel_names = dataset.get("channel_names") or dataset["modality"]
    names = tuple(str(channel_names[key]) for key in sorted(channel_names, key=int))
    return Plans(
        folder=folder,
        configuration=name,
        network_class=network_class,
        arguments=arguments,
        imported=imported,
        spacing_mm=tuple(float(value) for value in configuration["spacing"]),
        channel_names=names,
        class_names=_class_names(dataset, folder),
        normalizations=_normalizations(plans, configuration, len(names)),
        size_multiple=_total_strides(arguments.get("strides")),
        transpose_forward=tuple(plans.get("transpose_forward", (0, 1, 2))),
        reader=str(plans.get("image_reader_writer", "SimpleITKIO")),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"'{path}' is missing; an nnU-Net model folder holds plans.json and dataset.json"
        ) from None
    except ValueError as error:
        raise ValueError(f"'{path}' cannot be parsed: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}; nnU-Net writes a mapping")
    return content


# ---- which configuration, which folds --------------------------------------------------------------------------------

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "model.pt", "best_model.pt")


def checkpoint_files(folder: Path, folds: Sequence[int | str] | None = None, weights: str | None = None) -> list[Path]:
    """The checkpoint of each fold.

    Args:
        folder: that holds plans.json and the fold folders.
        folds: numbers, or ``"all"`` for the model of that name; None takes every fold.
        weights: the file's name in each fold; None takes the first of checkpoint_final.pth, checkpoint_best.pth, and of
            the names that MONAI's conversion gives.
    """
    known = sorted(path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir())
    wanted = known if folds is None else [str(fold) for fold in folds]
    unknown = [fold for fold in wanted if fold not in known]
    if unknown or not wanted:
        raise FileNotFoundError(f"nnU-Net model '{folder}' has the folds {known}; asked for {wanted}")
    names = _CHECKPOINTS if weights is None else (weights,)
    files = []
    for fold in wanted:
        found = [folder / f"fold_{fold}" / name for name in names if (folder / f"fold_{fold}" / name).is_file()]
        if found:
            files.append(found[0])
        elif folds is not None or weights is not None:
            raise FileNotFoundError(f"no checkpoint in '{folder / f'fold_{fold}'}': looked for {', '.join(names)}")
    if not files:
        raise FileNotFoundError(f"no checkpoint in any fold of '{folder}': looked for {', '.join(names)}")
    return files


def _configuration_name(folder: Path) -> str:
    """The third part of nnU-Net's folder name, else what the checkpoint says."""
    parts = folder.name.split("__")
    if len(parts) == 3:
        return parts[2]
    common = folder / "nnunet_checkpoint.pth"  # of MONAI's conversion
    path = common if common.is_file() else checkpoint_files(folder)[0]
    arguments = read_nnunet_checkpoint(path, torch.device("cpu")).get("init_args")
    name = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    if not name:
        raise ValueError(
            f"'{path}' does not name its configuration; name the folder as nnU-Net does, "
            "nnUNetTrainer__nnUNetPlans__3d_fullres"
        )
    return str(name)


def _configuration(plans: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """A configuration together with what it inherits."""
    known = plans["configurations"]
    if name not in known:
        raise ValueError(f"'{folder / 'plans.json'}' has no configuration '{name}'; known: {', '.join(known)}")
    own = dict(known[name])
    parent = own.pop("inherits_from", None)
    return own if parent is None else {**_configuration(plans, parent, folder), **own}


def _refuse_other_kinds(configuration: Mapping[str, Any], name: str, dataset: Mapping[str, Any], folder: Path) -> None:
    dimensions = len(configuration["spacing"])
    if dimensions != 3:
        raise ValueError(
            f"nnU-Net model '{folder}' is the {dimensions}-D configuration '{name}', the student's patches are 3-D; "
            "give 3d_fullres or 3d_lowres"
        )
    if configuration.get("previous_stage"):
        raise ValueError(
            f"nnU-Net model '{folder}' is the second stage '{name}' of a cascade and needs the first stage's output, "
            "the student's batch holds only the image; give 3d_fullres or 3d_lowres"
        )
    regions = [label for label, value in dataset["labels"].items() if isinstance(value, (list, tuple))]
    if regions:
        raise ValueError(
            f"nnU-Net model '{folder}' predicts overlapping regions {regions} by sigmoid, the student exclusive "
            "classes by softmax; give a model that was trained on labels"
        )


def _class_names(dataset: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    labels = {int(value): str(label) for label, value in dataset["labels"].items() if label != "ignore"}
    if sorted(labels) != list(range(len(labels))):
        raise ValueError(
            f"'{folder / 'dataset.json'}' has the labels {labels}; nnU-Net numbers them from 0 without gaps"
        )
    return tuple(labels[value] for value in sorted(labels))


# ---- the network and what it is fed ----------------------------------------------------------------------------------


def _architecture(configuration: Mapping[str, Any], folder: Path) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Class, arguments, and which arguments are dotted paths; also from plans that were written before mid 2024."""
    architecture = configuration.get("architecture")
    if architecture is not None:
        return (
            architecture["network_class_name"],
            dict(architecture["arch_kwargs"]),
            tuple(architecture["_kw_requires_import"]),
        )
    kind = configuration.get("UNet_class_name")
    if kind not in _LEGACY_NETWORKS:
        raise ValueError(
            f"'{folder / 'plans.json'}' has the network '{kind}'; plans without an architecture section are read for "
            f"{' and '.join(_LEGACY_NETWORKS)}"
        )
    blocks, stages = _LEGACY_NETWORKS[kind], len(configuration["n_conv_per_stage_encoder"])
    widths = [configuration["UNet_base_num_features"] * 2**stage for stage in range(stages)]
    arguments = {
        "n_stages": stages,
        "features_per_stage": [min(width, configuration["unet_max_num_features"]) for width in widths],
        "conv_op": "torch.nn.Conv3d",
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        blocks: configuration["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": "torch.nn.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    network_class = f"dynamic_network_architectures.architectures.unet.{kind}"
    return network_class, arguments, ("conv_op", "norm_op", "dropout_op", "nonlin")


def _total_strides(strides: Any) -> tuple[int, ...] | None:
    if not isinstance(strides, Sequence) or not strides:
        return None
    by_stage = [[stride] * 3 if isinstance(stride, int) else list(stride) for stride in strides]
    return tuple(math.prod(stage[axis] for stage in by_stage) for axis in range(3))


def _normalizations(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], channels: int
) -> tuple[Normalization, ...]:
    properties = plans.get("foreground_intensity_properties_per_channel") or {}
    schemes = configuration["normalization_schemes"]
    return tuple(_normalization(schemes[channel], properties.get(str(channel), {})) for channel in range(channels))


def _normalization(scheme: str, properties: Mapping[str, float]) -> Normalization:
    if scheme == "CTNormalization":
        deviation = max(properties["std"], 1e-8)
        low, high = (
            (properties[key] - properties["mean"]) / deviation for key in ("percentile_00_5", "percentile_99_5")
        )
        return Normalization(scheme, 1 / deviation, -properties["mean"] / deviation, (low, high))
    fixed = {"NoNormalization": 1.0, "RGBTo01Normalization": 1 / 255}
    return Normalization(scheme, fixed.get(scheme))
