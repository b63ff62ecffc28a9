"""The stages of a bundle's network, as terms address them: name, module path, shape and stride."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from monai_kd.distillers import Stage, network_stages, pair_stages
from monai_kd.hub.bundle_folder import BundleFolder, NotReadable
from monai_kd.hub.probe import quiet
from monai_kd.teachers.network_config import DEFAULT_ID, build_network, find_network

__all__ = ["BundleTaps", "bundle_taps"]

_SIDE = 64  # voxels along an axis whose size the metadata leaves open: a multiple of most total strides


@dataclass(frozen=True)
class BundleTaps:
    """The stages of a bundle's network, and of the teacher that lies in it.

    Attributes:
        network: class of the network.
        input_shape: of the image they were measured on, ``(1, C, *spatial)``.
        stages: in the order of the U, bottleneck between encoder and decoder.
        teacher: class of the teacher's network, empty without one.
        teacher_stages: of that; measured on the same image.
    """

    network: str
    input_shape: tuple[int, ...]
    stages: tuple[Stage, ...]
    teacher: str = ""
    teacher_stages: tuple[Stage, ...] = ()

    def table(self) -> str:
        """Return the stages as aligned text, and with a teacher which of its stages ``*`` pairs each one with."""
        shape = " x ".join(map(str, self.input_shape))
        parts = [f"network: {self.network}, image {shape}\n{_rows('student' if self.teacher else '', self.stages)}"]
        if self.teacher:
            parts.append(f"teacher: {self.teacher}\n{_rows('teacher', self.teacher_stages)}")
        if self.stages and self.teacher_stages:
            pairs = pair_stages(self.stages, self.teacher_stages)
            named = [f"  student/{self.stages[a].name} with teacher/{self.teacher_stages[b].name}" for a, b in pairs]
            parts.append("student/* and teacher/* are paired by stride:\n" + "\n".join(named))
        return "\n\n".join(parts)


def bundle_taps(bundle: str | Path, input_shape: Sequence[int] | None = None) -> BundleTaps:
    """Measure the stages of a bundle's network, and of the teacher in its ``models/teacher`` if there is one.

    The networks are built from their configurations with random weights and run once on zeros, on the CPU.

    Args:
        bundle: the bundle's folder.
        input_shape: ``[1, C, *spatial]``; None takes ``network_data_format`` of the metadata, with 64 voxels where that
            leaves an axis open.

    Raises:
        ValueError: no network, no shape in the metadata, or a shape that the network cannot take; names it.
    """
    folder = BundleFolder(bundle)
    shape = _input_shape(folder, input_shape)
    name, stages = _stages(folder.root, shape)
    inner = folder.root / "models" / "teacher"
    if not (inner / "configs").is_dir():
        return BundleTaps(name, shape, stages)
    teacher, teacher_stages = _stages(inner, shape)
    return BundleTaps(name, shape, stages, teacher, teacher_stages)


def _stages(root: Path, shape: tuple[int, ...]) -> tuple[str, tuple[Stage, ...]]:
    path, network_id, config = find_network(root, DEFAULT_ID, None)
    with quiet(), torch.random.fork_rng():
        network = build_network(root, config, network_id, path, {}, torch.device("cpu"))
        try:
            stages = network_stages(network, shape)
        except RuntimeError as error:
            cause = " ".join(str(error).split())
            raise ValueError(
                f"{type(network).__name__} of '{root}' cannot take an image of {list(shape)}: {cause}; give "
                '--input_shape "[1, C, *spatial]"'
            ) from error
    return type(network).__name__, tuple(stages)


def _input_shape(folder: BundleFolder, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is not None:
        shape = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        if len(shape) < 3 or not all(type(size) is int and size > 0 for size in shape):
            raise ValueError(f"input_shape is {given!r}; give [1, channels, *spatial], e.g. [1, 1, 96, 96, 96]")
        return shape
    try:
        image: dict[str, Any] = folder.metadata["network_data_format"]["inputs"]["image"]
        sizes = [size if isinstance(size, int) else _SIDE for size in image["spatial_shape"]]
        return (1, int(image["num_channels"]), *sizes)
    except (NotReadable, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"configs/metadata.json of '{folder.root}' does not state the image's shape "
            f'({type(error).__name__}: {error}); give --input_shape "[1, C, *spatial]"'
        ) from error


def _rows(owner: str, stages: Sequence[Stage]) -> str:
    if not stages:
        return "  no stages known of this class: terms can read its modules by an alias in distiller_def::taps"
    rows = [("address", "channels", "size", "stride", "module")]
    for stage in stages:
        size = " x ".join(map(str, stage.shape[2:]))
        stride = " x ".join(f"{step:g}" for step in stage.stride)
        rows.append((f"{owner}/{stage.name}".lstrip("/"), str(stage.shape[1]), size, stride, stage.path))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(f"  {line}" for line in lines)
