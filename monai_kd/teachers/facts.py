"""What a model folder says of its network's images and classes: metadata and preprocessing, read and not evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_kd.teachers.network_config import config_files, read_config
from monai_kd.teachers.nnunet_plans import Plans, find_plans

__all__ = ["Facts", "facts_of_metadata", "read_facts"]


@dataclass(frozen=True)
class Facts:
    """Images and classes of a network; None where nothing is stated.

    Attributes:
        channels: number of image channels.
        channel_names, class_names: in the network's order.
        modality: e.g. MR or CT.
        value_range: lowest and highest usual intensity.
        spacing_mm: of the network's spatial axes.
        orientation: axis codes of the network's spatial axes, e.g. RAS.
        plans: of an nnU-Net model, with its normalization.
    """

    channels: int | None = None
    channel_names: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None
    modality: str | None = None
    value_range: tuple[float, float] | None = None
    spacing_mm: tuple[float, ...] | None = None
    orientation: str | None = None
    plans: Plans | None = None


def read_facts(root: Path, stored_orientation: str | None = None) -> Facts:
    """The facts of an nnU-Net model folder or of a MONAI bundle.

    Args:
        root: the folder; one without metadata and configs, or a file, states nothing.
        stored_orientation: axis codes of the images that an nnU-Net model was trained on, where its reader keeps them.
    """
    plans = find_plans(root)
    if plans is not None:
        return Facts(
            channels=len(plans.channel_names),
            channel_names=plans.channel_names,
            class_names=plans.class_names,
            spacing_mm=plans.spacing_mm,
            orientation=plans.orientation(stored_orientation),
            plans=plans,
        )
    metadata = root / "configs" / "metadata.json"
    stated = facts_of_metadata(read_config(metadata)) if metadata.is_file() else Facts()
    spacing_mm, orientation = _preprocessing(root)
    return Facts(
        stated.channels,
        stated.channel_names,
        stated.class_names,
        stated.modality,
        stated.value_range,
        spacing_mm,
        orientation,
    )


def facts_of_metadata(metadata: Mapping[str, Any]) -> Facts:
    """What ``metadata.json`` of a bundle states: of its first input and first output."""
    formats = metadata.get("network_data_format")
    formats = formats if isinstance(formats, Mapping) else {}
    image, pred = _first(formats.get("inputs")), _first(formats.get("outputs"))
    channels = str(image.get("num_channels"))
    return Facts(
        channels=int(channels) if channels.isdecimal() else None,
        channel_names=_names(image),
        class_names=_names(pred),
        modality=_modality(image.get("modality")),
        value_range=_range(image.get("value_range")),
    )


def _first(tensors: Any) -> Mapping[str, Any]:
    """The description of the first tensor, or nothing."""
    first = next(iter(tensors.values()), None) if isinstance(tensors, Mapping) else None
    return first if isinstance(first, Mapping) else {}


def _names(tensor: Mapping[str, Any]) -> tuple[str, ...] | None:
    channel_def = tensor.get("channel_def")
    if not isinstance(channel_def, Mapping) or not channel_def or not all(str(key).isdecimal() for key in channel_def):
        return None  # keys that are no channel numbers tell no order
    return tuple(str(name) for _, name in sorted(channel_def.items(), key=lambda item: int(item[0])))


def _modality(stated: Any) -> str | None:
    text = ", ".join(map(str, stated)) if isinstance(stated, list) else str(stated or "")
    return None if text.casefold() in ("", "n/a") else text


def _range(stated: Any) -> tuple[float, float] | None:
    if isinstance(stated, Sequence) and len(stated) == 2 and all(isinstance(value, (int, float)) for value in stated):
        return float(stated[0]), float(stated[1])
    return None


# ---- preprocessing, from the text of the configs ---------------------------------------------------------------------


def _preprocessing(root: Path) -> tuple[tuple[float, ...] | None, str | None]:
    """Spacing and orientation of the first config that states one, if all its transforms agree."""
    for path in config_files(root):
        try:
            config = read_config(path)
        except ValueError:  # a config that the network does not come from may be broken
            continue
        parser = ConfigParser(config)
        spacings = {
            tuple(map(float, value)) for value in _arguments(parser, config, "Spacing", "pixdim") if _triple(value)
        }
        codes = {value for value in _arguments(parser, config, "Orientation", "axcodes") if isinstance(value, str)}
        if spacings or codes:
            return (spacings.pop() if len(spacings) == 1 else None), (codes.pop() if len(codes) == 1 else None)
    return None, None


def _triple(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 3
        and all(isinstance(number, (int, float)) and number > 0 for number in value)
    )


def _arguments(parser: ConfigParser, content: Any, transform: str, argument: str) -> Iterator[Any]:
    """One argument of every use of a transform; ``@id`` is followed as long as it leads to plain values."""
    if isinstance(content, Mapping):
        target = str(content.get("_target_", "")).rpartition(".")[2]
        if target in (transform, f"{transform}d", f"{transform}D", f"{transform}Dict"):
            yield _plain(parser, content.get(argument))
    values = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    for value in values:
        yield from _arguments(parser, value, transform, argument)


def _plain(parser: ConfigParser, value: Any, depth: int = 0) -> Any:
    if isinstance(value, str) and value.startswith("@") and depth < 10:
        key = value[1:]
        return _plain(parser, parser[key], depth + 1) if key in parser else None
    return value
