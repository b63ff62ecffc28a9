"""What the values of a label map are called: classes, or regions that may overlap."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_kd.visualize.panels import CLASS_COLORS

__all__ = ["Structure", "bundle_classes", "named_structures"]

Names = Sequence[str] | Mapping[Any, str] | str | None
Regions = Mapping[str, Sequence[int]] | None


@dataclass(frozen=True)
class Structure:
    """One class or region: its name, the label values it is made of, and its color ``#rrggbb``."""

    name: str
    values: tuple[int, ...]
    color: str

    def mask(self, label_map: NDArray[Any]) -> NDArray[np.bool_]:
        """True where a label map holds one of the values."""
        if len(self.values) == 1:
            return label_map == self.values[0]
        return np.isin(label_map, self.values)


def named_structures(
    found: Iterable[int], class_names: Names = None, regions: Regions = None, bundle_root: str | Path | None = None
) -> tuple[Structure, ...]:
    """Return the structures of label maps, from one of three sources; without any, ``class 1`` and so on as found.

    Args:
        found: values that the maps hold; 0 is background.
        class_names: names of the values 1, 2, ..., or a mapping of label value to name.
        regions: name to label values: ``{"whole_tumor": [1, 2, 4], "core": [1, 4]}``.
        bundle_root: bundle whose metadata name the classes (:func:`bundle_classes`).

    Raises:
        ValueError: several sources, an empty one, two structures of one name, or a value that none holds.
    """
    given = [name for name, item in _sources(class_names, regions, bundle_root).items() if item]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} both name the classes; give one of them")
    values = sorted({int(value) for value in found} - {0})
    if regions:
        named = _checked_regions(regions)
    else:
        classes = bundle_classes(bundle_root) if bundle_root else _classes(class_names)
        named = [(name, (value,)) for value, name in classes.items()]
        named = named or [(f"class {value}", (value,)) for value in values]
    names = [name for name, _ in named]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"'{doubled[0]}' names several classes; every structure needs a name of its own")
    _refuse_unknown(values, named)
    return tuple(Structure(name, own, _color(number)) for number, (name, own) in enumerate(named))


def bundle_classes(bundle_root: str | Path) -> dict[int, str]:
    """Return label value to name of a bundle's output, without the background.

    Reads ``network_data_format::outputs::pred::channel_def`` of ``configs/metadata.json``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON or has no channel_def, or channel 0 is no background: then the outputs are regions,
            and the label values are not known.
    """
    path = Path(bundle_root) / "configs" / "metadata.json"
    if not path.is_file():
        raise FileNotFoundError(f"bundle_root '{bundle_root}' is no bundle: it has no configs/metadata.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        channels = content["network_data_format"]["outputs"]["pred"]["channel_def"]
        classes = {int(value): str(name) for value, name in channels.items()}
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is no JSON: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(
            f"'{path}' names no classes: network_data_format::outputs::pred::channel_def must be "
            '{"0": "background", "1": NAME, ...}'
        ) from None
    if classes.pop(0, "").casefold() != "background":
        raise ValueError(
            f"channel 0 of '{path}' is no background, so its outputs {list(channels.values())} are regions; say which "
            "label values they are made of: --regions \"{'NAME': [1, 2], ...}\""
        )
    return classes


def _color(number: int) -> str:
    """The colors of the overlays; after those, hues that lie apart by the golden ratio, so that neighbors differ."""
    if number < len(CLASS_COLORS):
        return CLASS_COLORS[number]
    rgb = colorsys.hls_to_rgb(number * 0.618034 % 1, 0.62, 0.75)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _sources(class_names: Names, regions: Regions, bundle_root: str | Path | None) -> dict[str, Any]:
    return {"class_names": class_names, "regions": regions, "bundle_root": bundle_root}


def _classes(class_names: Names) -> dict[int, str]:
    if not class_names:
        return {}
    if isinstance(class_names, str):
        return {1: class_names}
    if not isinstance(class_names, Mapping):
        return {value: str(name) for value, name in enumerate(class_names, start=1)}
    try:
        classes = {int(value): str(name) for value, name in class_names.items()}
    except (TypeError, ValueError):
        raise ValueError(
            f"class_names is {dict(class_names)}; it must be a list, or a mapping of label values to names"
        ) from None
    return {value: name for value, name in classes.items() if value != 0}


def _checked_regions(regions: Mapping[str, Sequence[int]]) -> list[tuple[str, tuple[int, ...]]]:
    if not isinstance(regions, Mapping):
        raise ValueError(f"regions is {regions!r}; it must be {{'name': [label values], ...}}")
    checked = []
    for name, values in regions.items():
        whole = isinstance(values, Sequence) and all(isinstance(value, int) and value > 0 for value in values)
        if not values or isinstance(values, str) or not whole:
            raise ValueError(f"region '{name}' is {values!r}; it must be a list of label values above 0")
        checked.append((str(name), tuple(values)))
    return checked


def _refuse_unknown(values: Sequence[int], named: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    known = {value for _, own in named for value in own}
    if unknown := [value for value in values if value not in known]:
        shown = ", ".join(f"{name} ({', '.join(map(str, own))})" for name, own in named)
        raise ValueError(f"the label maps hold the value {unknown[0]}, which has no name; known: {shown}")
