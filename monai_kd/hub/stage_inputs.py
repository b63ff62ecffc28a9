"""What the result of one training of several depends on, and which overrides it may be given."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from monai_kd.handlers.provenance import config_hash, file_sha256
from monai_kd.handlers.run_record import PLACE_IDS
from monai_kd.hub.probe import reason

__all__ = ["OWN_IDS", "stage_inputs", "stage_overrides"]

OWN_IDS = ("run_dir", "resume", "bundle_root", "config_file", "args_file")  # that the runner of stages sets
_ENVIRONMENT = "MONAI_KD_DATA"  # where default_dataset_dir and default_split_file look
_DATA_IDS = ("dataset_dir", "split_file")
_HARDWARE_IDS = ("device", "num_workers")
_PATH_ENDINGS = ("_dir", "_root", "_path", "_file")
_MSD_LAYOUT = ("dataset.json", "imagesTr", "labelsTr")  # what else lies there, predictions say, is no input


def stage_overrides(root: Path, overrides: Mapping[str, Any], handed_on: Iterable[str]) -> dict[str, Any]:
    """Return overrides as a training in the bundle's folder needs them.

    A relative path that exists in the current folder and not in the bundle becomes absolute. A path is what has a
    ``/``, or belongs to an id that ends with ``_dir``, ``_root``, ``_path`` or ``_file``.

    Args:
        root: the bundle's folder.
        overrides: ``::`` or ``#`` id to value.
        handed_on: ids by which stages take weights of each other.

    Raises:
        ValueError: an id that the stages set themselves.
    """
    given = {name.removeprefix("--").replace("#", "::"): value for name, value in overrides.items()}
    own = [*OWN_IDS, *dict.fromkeys(handed_on)]
    taken = [name for name in given if name.removeprefix("+").partition("::")[0] in own]
    if taken:
        raise ValueError(
            f"overrides {taken} are not free: the stages set {', '.join(own)} themselves; the folder is chosen by --out"
        )
    return {name: _from_bundle(root, name, value) for name, value in given.items()}


def stage_inputs(
    root: Path, configs: Sequence[str], needs: Mapping[str, str], overrides: Mapping[str, Any]
) -> dict[str, str]:
    """Return what the result of a training depends on, by name: hashes, and the texts of overrides.

    These are the parsed configuration files, weights of earlier stages, overrides (the content of files, not their
    place), the split file, names and sizes of the files in the data's folder, and the value of ``MONAI_KD_DATA``.
    Device, ``num_workers`` and places are left out.

    Not seen: contents of images and labels, code, versions, and files that a configuration names itself. Evaluates the
    configuration's ``dataset_dir`` and ``split_file``, so use it on bundles you trust.

    Args:
        root: the bundle's folder.
        configs: files below ``configs/``, overlays last.
        needs: id to weights file, relative to the bundle.
        overrides: as :func:`stage_overrides` returns them.

    Raises:
        ValueError: a configuration cannot be read or evaluated; names the file.
    """
    contents = {f"configs/{name}": _content(root / "configs" / name) for name in configs}
    inputs = {name: _content_hash(content) for name, content in contents.items()}
    inputs |= {name: file_sha256(root / path) for name, path in needs.items()}
    inputs |= {name: _value(root, name, value) for name, value in overrides.items() if _counts(name)}
    inputs |= {name: _files_hash(root, value) for name, value in _data(root, list(contents), overrides).items()}
    return {**inputs, _ENVIRONMENT: os.environ.get(_ENVIRONMENT, "")}


def _counts(name: str) -> bool:
    """Tell whether an id can change the result; where things lie and what computes them does not."""
    parts = name.removeprefix("+").replace("#", "::").split("::")
    return parts[0] not in PLACE_IDS and parts[-1] not in _HARDWARE_IDS


def _is_path(name: str, value: Any) -> bool:
    if not isinstance(value, (str, os.PathLike)):
        return False
    text = os.fspath(value)
    return bool(text) and text[0] not in "$@%" and ("/" in text or name.endswith(_PATH_ENDINGS))


def _from_bundle(root: Path, name: str, value: Any) -> Any:
    if not _is_path(name, value) or os.path.exists(root / value) or not os.path.exists(value):
        return value
    return str(Path(value).absolute())


def _content(path: Path) -> dict[str, Any]:
    try:
        content = ConfigParser.load_config_file(path)
    except Exception as error:  # yaml, json and MONAI have their own
        raise ValueError(f"'{path}' cannot be read: {reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds no ids: it is a {type(content).__name__}, not a mapping")
    return content


def _content_hash(content: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in content.items() if _counts(str(name))}
    return config_hash(json.loads(json.dumps(kept, default=str)))  # YAML has dates, and keys that are numbers


def _value(root: Path, name: str, value: Any) -> str:
    """Return what stands for an override: the content of a file or folder, else the value as the training reads it."""
    if _is_path(name, value) and os.path.exists(root / value):
        return _files_hash(root, value)
    return repr(_parsed(value))


def _parsed(value: Any) -> Any:
    return DefaultParseValue(str(value))


def _data(root: Path, files: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the folder of the data and the split file as the training will find them, where it has these ids."""
    with chdir(root):  # the training's expressions see relative paths from there
        try:
            parser = ConfigParser(ConfigParser.load_config_files(list(files)))
            parser.update({name: _parsed(value) for name, value in overrides.items()})
            return {name: parser.get_parsed_content(name) for name in _DATA_IDS if name in parser}
        except Exception as error:  # expressions raise anything
            raise ValueError(f"{' or '.join(_DATA_IDS)} of {', '.join(files)}: {reason(error)}") from error


def _files_hash(root: Path, value: Any) -> str:
    """Return the hash of a file's bytes, or of names and sizes of the files in a folder; ``""`` if there is none."""
    if isinstance(value, (list, tuple)):
        return " ".join(_files_hash(root, item) for item in value)
    if not isinstance(value, (str, os.PathLike)):
        return repr(value)
    path = root / value
    if not os.fspath(value) or not path.exists():
        return ""
    if path.is_file():
        return file_sha256(path)
    known = [path / name for name in _MSD_LAYOUT if (path / name).exists()]
    lines = [line for top in known or [path] for line in _listing(path, top)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _listing(folder: Path, top: Path) -> list[str]:
    """Return a line for each file below ``top``, of names relative to ``folder``; of lists (JSON, CSV) the content."""
    files = [top] if top.is_file() else [Path(at, name) for at, _, names in os.walk(top) for name in names]
    shown = [path for path in files if not path.name.startswith(".") and path.is_file()]
    return [
        f"{path.relative_to(folder)} {file_sha256(path) if path.suffix in ('.json', '.csv') else path.stat().st_size}"
        for path in shown
    ]
