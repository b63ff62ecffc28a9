"""The trainings that a bundle lists in configs/stages.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["STAGES_FILE", "Stage", "read_stages"]

STAGES_FILE = "configs/stages.json"
_TAKEN = ("previous", "unfinished")  # folders beside those of the stages


@dataclass(frozen=True)
class Stage:
    """One training of several.

    Attributes:
        name: of the stage and of its folder.
        configs: files below ``configs/``, overlays last.
        needs: ids of the configuration that take weights of earlier stages.
        gives: the id by which later stages take this one's weights; None for the last.
    """

    name: str
    configs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    gives: str | None = None


def read_stages(bundle: str | Path, overlays: Sequence[str] = ()) -> list[Stage]:
    """Return the stages that a bundle lists in ``configs/stages.json``, in their order.

    Args:
        bundle: the bundle's folder.
        overlays: files below ``configs/`` that stand behind the first file of every stage, before its own overlays.

    Raises:
        FileNotFoundError: the bundle has no such file: its method is one training, or it is no bundle.
        ValueError: no JSON; or a stage has a name that is no folder's, an unknown key, a value of the wrong kind, no
            configurations or files that do not exist, or needs what no earlier stage gives; names file and stage.
    """
    path = Path(bundle) / STAGES_FILE
    if not Path(bundle).is_dir():
        raise FileNotFoundError(f"bundle '{bundle}' is not a folder; give one that has {STAGES_FILE}")
    if not path.is_file():
        raise FileNotFoundError(
            f"'{path}' does not exist: this bundle has no stages; train it by python -m monai.bundle run"
        )
    stages: list[Stage] = []
    for name, given in _content(path):
        problem = _wrong_form(name, given, [stage.name for stage in stages])
        if not problem:
            first, *own = given["configs"]
            stage = Stage(name, (first, *overlays, *own), tuple(given.get("needs", ())), given.get("gives"))
            problem = _wrong_names(stage, path.parent, stages)
        if problem:
            raise ValueError(f"'{path}': stage '{name}' {problem}")
        stages.append(stage)
    return stages


def _content(path: Path) -> list[tuple[str, Any]]:
    """Return names and entries; a list, because JSON may have a name twice."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Pairs)
    except ValueError as error:
        raise ValueError(f"'{path}' is no JSON: {error}") from error
    if not isinstance(content, _Pairs) or not content:
        raise ValueError(f"'{path}' lists no stages; it must be an object of name to configs, needs and gives")
    return [(name, dict(given) if isinstance(given, _Pairs) else given) for name, given in content]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object."""


def _wrong_form(name: str, given: Any, earlier: Sequence[str]) -> str:
    """Say what is wrong with an entry as such, or return an empty text."""
    if name in earlier:
        return "is listed twice"
    if not name or name.startswith(".") or set("/\\") & set(name) or name in _TAKEN:
        return f"has a name that cannot be its folder's; nor can a path, .hidden, {', '.join(_TAKEN)}"
    if not isinstance(given, dict):
        return f"is {given!r}; it must be an object"
    known = [field.name for field in fields(Stage) if field.name != "name"]
    if unknown := sorted(given.keys() - set(known)):
        return f"has the keys {unknown}; known: {', '.join(known)}"
    for key in ("configs", "needs"):
        value = given.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return f"has {key} {value!r}; it must be a list of texts"
    if not given.get("configs"):
        return "has no configs; it needs one file or more"
    if not isinstance(given.get("gives"), str | None):
        return f"has gives {given['gives']!r}; it must be a text"
    return ""


def _wrong_names(stage: Stage, configs: Path, earlier: Sequence[Stage]) -> str:
    """Say what an entry names that does not exist, or return an empty text."""
    missing = [file for file in stage.configs if not (configs / file).is_file()]
    if missing:
        return f"has configs {missing}, which are no files in '{configs}'"
    known = [other.gives for other in earlier if other.gives]
    unknown = sorted(set(stage.needs) - set(known))
    if unknown:
        return f"needs {unknown}, which no earlier stage gives; known: {', '.join(known) or 'none'}"
    return ""
