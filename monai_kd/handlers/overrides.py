"""Compare what the command line asks for with what the configuration files know."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from monai.bundle import ConfigParser

from monai_kd.handlers.first_cause import first_cause

__all__ = ["check_overrides", "override_problems"]

_WORDS = {"true", "false", "yes", "no", "on", "off", "none", "null"}
_WORDS_FOR_BOOLEANS = {"true", "false"}
_ENTRY_POINT = os.path.join("monai", "bundle", "__main__.py")
_RUN_ARGUMENTS = {
    *("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file"),
    *("workflow_name", "workflow_type", "properties_path"),
}
_LISTS = {"initialize", "run", "finalize"}  # MONAI's own optional ids
_TRACKING_IDS = {"tracking_uri", "experiment_name", "run_name", "output_dir", "save_execute_config"}  # with --tracking


def check_overrides() -> None:
    """Refuse unknown keys and values of the wrong kind on the command line of ``python -m monai.bundle run``.

    MONAI takes any ``--key value``: an unknown key is stored and never read, and ``false`` is a text that counts as
    true. Call this first in a configuration's ``run`` list. Whatever fails from here on ends with a line that repeats
    the first cause, which MONAI wraps in errors of its own. Without effect when MONAI Label, a federated client or
    Python code started the workflow: they add keys of their own.

    Raises:
        ValueError: one line for every override that is wrong, with what would be right.
    """
    if not sys.argv[0].endswith(_ENTRY_POINT):
        return
    sys.excepthook = _print_with_cause
    files, overrides = _command_line()
    problems = override_problems(files, overrides)
    if problems:
        raise ValueError("wrong on the command line:\n" + "\n".join(f"  {line}" for line in problems))


def override_problems(files: str | Sequence[str], overrides: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with overrides of configuration files, one line each.

    A key may be new where the configuration asks for more of its kind: an argument of a component, a component among
    components (``terms::mine``), a mapping in an empty one (``schedules::soft``), or an id that another override refers
    to.

    Args:
        files: configuration files, later ones win.
        overrides: ``::`` or ``#`` id to value.
    """
    parser = ConfigParser(ConfigParser.load_config_files(files))
    given = {key.removeprefix("--").replace("#", "::"): value for key, value in overrides.items()}
    problems = []
    for key, value in given.items():
        name = key.removeprefix("+")
        if not _has(parser, name):
            if not (name.startswith("_meta_") or name in _LISTS or _may_be_new(name, value, parser, given)):
                problems.append(f"--{name}: no such key in {_shown(files)}{_hint(name, parser)}")
            elif isinstance(value, str) and value.casefold() in _WORDS_FOR_BOOLEANS:
                problems.append(f"--{name}: '{value}' is a text here, and any text counts as true; write True or False")
        elif problem := _wrong_kind(parser[name], value):
            problems.append(f"--{name}: {problem}")
    return problems


def _print_with_cause(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    cause = first_cause(error)
    if cause is not error:
        print(f"\nCause: {type(cause).__name__}: {cause}", file=sys.stderr)


def _command_line() -> tuple[Any, dict[str, Any]]:
    """Return configuration files and overrides of the ``monai.bundle run`` up the call stack."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "run" and frame.f_globals.get("__name__") == "monai.bundle.scripts":
            found = frame.f_locals
            stored = ConfigParser.load_config_file(found["args_file"]) if isinstance(found["args_file"], str) else {}
            overrides = {**stored, **found["override"]}
            files = found["config_file"] or stored.get("config_file", [])
            tracking = _TRACKING_IDS if found["tracking"] or stored.get("tracking") else set()
            return files, {key: value for key, value in overrides.items() if key not in _RUN_ARGUMENTS | tracking}
        frame = frame.f_back
    return [], {}


def _has(parser: ConfigParser, name: str) -> bool:
    try:
        return name in parser
    except TypeError:  # an id below a text or a number
        return False


def _may_be_new(name: str, value: Any, parser: ConfigParser, given: Mapping[str, Any]) -> bool:
    parent = name.rpartition("::")[0]
    if any(re.search(rf"@{re.escape(name)}\b", text) for text in _texts(dict(given))):
        return True
    siblings = parser[parent] if parent and _has(parser, parent) else None
    if not isinstance(siblings, dict):
        return False
    if _in_component(parent, parser):
        return True  # MONAI refuses an argument that the component does not take
    return isinstance(value, dict) and all(isinstance(item, dict) for item in siblings.values())


def _in_component(name: str, parser: ConfigParser) -> bool:
    """Tell whether an id is a component, or lies inside the arguments of one."""
    while name:
        if isinstance(parser[name], dict) and "_target_" in parser[name]:
            return True
        name = name.rpartition("::")[0]
    return False


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list, tuple)):
        for item in content.values() if isinstance(content, dict) else content:
            yield from _texts(item)


def _wrong_kind(current: Any, value: Any) -> str:
    """Say why a value cannot stand where the files have another, or return an empty text."""
    if isinstance(value, (bool, int, float)):
        return _wrong_number(current, value)
    if not isinstance(value, str) or value.startswith(("$", "@", "%")):
        return ""
    plain_text = isinstance(current, str) and not current.startswith(("$", "@", "%"))
    if value.casefold() in _WORDS and not plain_text:
        return f"'{value}' is a text here, and any text counts as true; write True, False or, for nothing, \"''\""
    if isinstance(current, bool):
        return f"'{value}' is a text, the files have {current}; write True or False"
    if isinstance(current, (int, float)):
        return f"'{value}' is a text, the files have the number {current}"
    if isinstance(current, list):
        return f"'{value}' is a text, the files have a list; write \"['{value}']\" for a list of one"
    return ""


def _wrong_number(current: Any, value: float) -> str:
    """Say why a number or boolean cannot stand where the files have another kind."""
    if isinstance(value, bool):
        is_number = isinstance(current, (int, float)) and not isinstance(current, bool)
        return f"{value} is no number, the files have {current}" if is_number else ""
    if isinstance(current, bool):
        return f"{value} is a number, the files have {current}; write True or False"
    if isinstance(current, int) and isinstance(value, float) and not value.is_integer():
        return f"{value} is no whole number, the files have {current}"
    return ""


def _shown(files: str | Sequence[str]) -> str:
    return files if isinstance(files, str) else ", ".join(files)


def _hint(name: str, parser: ConfigParser) -> str:
    parent, _, _ = name.rpartition("::")
    while parent and not _has(parser, parent):
        parent = parent.rpartition("::")[0]
    siblings = parser[parent] if parent else parser.get()
    known = [f"{parent}::{key}" if parent else str(key) for key in siblings] if isinstance(siblings, dict) else []
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(f'--{key}' for key in near)}?" if near else ""
