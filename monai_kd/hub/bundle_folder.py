"""A bundle's folder as its checks see it: files, raw configurations, and the combinations that its documents name."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

__all__ = ["WRITTEN_LATER", "BundleFolder", "NotReadable", "leaves", "name_in_configs"]

_CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
WRITTEN_LATER = ("runs", "eval", "models/previous", "models/exported")  # not the bundle's own
_COMMAND = re.compile(r"--config_file[\s\\#]+(?:\"?\[(.*?)\]|(\S+))", re.DOTALL)
_CONFIG_NAME = re.compile(r"configs/((?:[\w-][\w.-]*/)*[\w.-]+\.(?:json|ya?ml))")


class NotReadable(Exception):
    """A file that a check needs is not there or not readable; the text says which and why."""


def name_in_configs(path: str | Path) -> str:
    """Return a configuration file's name as commands use it: ``kd.yaml`` or ``distillers/kd.yaml``.

    Args:
        path: with a folder ``configs`` in it; of a file elsewhere the last part is its name.
    """
    parts = Path(path).parts
    folders = [number for number, part in enumerate(parts[:-1]) if part == "configs"]
    return "/".join(parts[folders[-1] + 1 :]) if folders else parts[-1]


def _base_stem(name: str) -> str:
    return "inference" if name.rpartition("/")[2].startswith("inference") else "train"


def leaves(content: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value below a configuration entry that is no mapping or list, with its ``::`` id."""
    if isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, f"{where}::{key}" if where else str(key))
    else:
        yield where, content


class BundleFolder:
    """A bundle's folder; nothing of it is evaluated here.

    Args:
        root: the folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, root: str | Path) -> None:
        if not Path(root).is_dir():
            raise FileNotFoundError(f"bundle '{root}' is no folder")
        self.root = Path(root).resolve()
        self._contents: dict[Path, dict[str, Any]] = {}

    @cached_property
    def files(self) -> list[Path]:
        """Every file that belongs to the bundle: not what runs and exports leave in it, nothing hidden, no caches."""
        found: list[Path] = []
        for folder, names, files in os.walk(self.root):
            here = Path(folder)
            names[:] = [name for name in names if self._belongs(here / name)]
            found += [here / name for name in files if self._belongs(here / name)]
        return sorted(found)

    def _belongs(self, path: Path) -> bool:
        hidden = path.name.startswith(".") or path.name == "__pycache__"
        return not hidden and path.relative_to(self.root).as_posix() not in WRITTEN_LATER

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    @property
    def configs(self) -> list[Path]:
        """The configuration files, those in subfolders of ``configs`` too, without metadata."""
        folder = self.root / "configs"
        found = [path for path in self.files if path.is_relative_to(folder) and path.suffix in _CONFIG_SUFFIXES]
        return [path for path in found if path != folder / "metadata.json"]

    def overlays(self) -> list[str]:
        """Return the names of the files in subfolders of ``configs``, which are overlays: ``distillers/kd.yaml``."""
        names = [path.relative_to(self.root / "configs").as_posix() for path in self.configs]
        return [name for name in names if "/" in name]

    def base_of(self, name: str) -> str:
        """Return the name of the configuration that an overlay changes: inference.yaml by its name, or train.yaml."""
        return self.config_path(_base_stem(name)).name

    def config_path(self, stem: str) -> Path:
        """Return the path of ``configs/<stem>.json`` or ``.yaml`` or ``.yml``, in the order in which MONAI looks."""
        for suffix in _CONFIG_SUFFIXES:
            if (path := self.root / "configs" / f"{stem}{suffix}").is_file():
                return path
        raise NotReadable(f"configs/{stem}.yaml is missing")

    def read(self, path: Path) -> dict[str, Any]:
        """Return a file's raw mapping.

        Raises:
            NotReadable: missing, not JSON or YAML, or no mapping.
        """
        if path in self._contents:
            return self._contents[path]
        name = self.relative(path)
        if not path.is_file():
            raise NotReadable(f"{name} is missing")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # duplicate keys have a check of their own
                content = ConfigParser.load_config_file(str(path))
        except (yaml.YAMLError, ValueError) as error:
            raise NotReadable(f"{name} cannot be parsed: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise NotReadable(f"{name} holds a {type(content).__name__}; a configuration is a mapping of ids")
        self._contents[path] = content
        return content

    @property
    def metadata(self) -> dict[str, Any]:
        """The content of ``configs/metadata.json``."""
        path = self.root / "configs" / "metadata.json"
        if not path.is_file():
            raise NotReadable("configs/metadata.json is missing")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise NotReadable(f"configs/metadata.json is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise NotReadable(f"configs/metadata.json holds a {type(content).__name__}, not an object")
        return content

    def config(self, stem: str) -> dict[str, Any]:
        return self.read(self.config_path(stem))

    def merged(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the raw configuration of several files, overlays applied, as MONAI merges it."""
        for name in names:
            self.read(self.root / "configs" / name)
        parser = ConfigParser()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser.read_config([str(self.root / "configs" / name) for name in names])
        content: dict[str, Any] = parser.get()
        return {key: value for key, value in content.items() if key != "_meta_"}

    def standard_combinations(self) -> list[tuple[str, ...]]:
        """Return what MONAI's tools run: train.yaml alone, with baseline.yaml and evaluate.yaml, and inference.yaml."""
        found: list[tuple[str, ...]] = []
        for stem, overlays in (("train", ("baseline", "evaluate")), ("inference", ())):
            if self._has_config(stem):
                base = self.config_path(stem).name
                found.append((base,))
                found += [(base, self.config_path(name).name) for name in overlays if self._has_config(name)]
        return found

    def overlay_combinations(self) -> list[tuple[str, ...]]:
        """Return every overlay in a subfolder of ``configs`` with its base, where the bundle has that base.

        A subfolder beside a file of its name (``pictures/`` beside ``pictures.yaml``) is left out: what it holds stands
        behind that file, and names stages that the user trains.
        """
        names = [name for name in self.overlays() if not self._has_config(name.partition("/")[0])]
        return [(self.base_of(name), name) for name in names if self._has_config(_base_stem(name))]

    def combinations(self) -> list[tuple[str, ...]]:
        """Return the standard combinations, overlays on their bases, and what headers and the card name in commands."""
        found = [*self.standard_combinations(), *self.overlay_combinations()]
        texts = [path for path in self.configs if path.suffix != ".json"]
        for path in [*texts, self.root / "docs" / "README.md"]:
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace")
                found += [tuple(_CONFIG_NAME.findall(many or one)) for many, one in _COMMAND.findall(text)]
        return list(dict.fromkeys(names for names in found if names))

    def _has_config(self, stem: str) -> bool:
        return any((self.root / "configs" / f"{stem}{suffix}").is_file() for suffix in _CONFIG_SUFFIXES)

    def model_folders(self) -> list[Path]:
        """The folders below ``models/`` that hold a network of their own, such as the default teacher.

        See :meth:`recorded_folders` for those that do not.
        """
        known = self.recorded_folders()
        return [path for path in self._below_models() if path not in known and any(path.rglob("*"))]

    def recorded_folders(self) -> list[Path]:
        """The folders below ``models/`` of weights with a record each, whose networks the configuration builds."""
        return [path for path in self._below_models() if _all_recorded(path) and not (path / "configs").is_dir()]

    def _below_models(self) -> list[Path]:
        return sorted(path for path in (self.root / "models").glob("*") if path.is_dir() and self._belongs(path))


def _all_recorded(folder: Path) -> bool:
    """Tell whether a folder holds weights, each with its record beside it."""
    weights = list(folder.glob("*.pt"))
    return bool(weights) and all(path.with_suffix(".json").is_file() for path in weights)
