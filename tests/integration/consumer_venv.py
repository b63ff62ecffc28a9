"""Virtual environments of consumers that do not share one with the tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["REPOSITORY", "code_block", "environment", "run_in", "venv_bin"]

REPOSITORY = Path(__file__).resolve().parents[2]


def venv_bin(name: str) -> Path:
    """The ``bin`` folder of a consumer's environment, or a loud skip that says how to make it."""
    variable = f"MONAI_KD_{name.upper()}_VENV"
    venv = Path(os.environ.get(variable) or REPOSITORY / f".venv-{name}")
    if not (venv / "bin" / "python").exists():
        pytest.skip(f"'{venv}' is no virtual environment: run `make venv-{name}`, or name one by {variable}")
    return venv / "bin"


def environment(bin_folder: Path, **more: str) -> dict[str, str]:
    """The variables of a process in a consumer's environment that imports this checkout."""
    inherited = {key: value for key, value in os.environ.items() if key != "MONAI_KD_DATA"}
    path = f"{bin_folder}{os.pathsep}{inherited['PATH']}"
    quiet = {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return {**inherited, **quiet, "PATH": path, "VIRTUAL_ENV": str(bin_folder.parent), **more}


def run_in(bin_folder: Path, command: Sequence[str], cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of a consumer's environment; its end is shown when it fails."""
    env = environment(bin_folder, **more)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    return done


def code_block(page: str, title: str) -> str:
    """The fenced block that follows a line of a documentation page which starts with `title`."""
    lines = (REPOSITORY / "docs" / page).read_text(encoding="utf-8").splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(f"`{title}`")]
    first = next(number for number in range(start, len(lines)) if lines[number].startswith("```")) + 1
    last = next(number for number in range(first, len(lines)) if lines[number] == "```")
    return "\n".join(lines[first:last]) + "\n"
