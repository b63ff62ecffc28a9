"""Run bundle configurations as their users do: ``python -m monai.bundle run`` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]

# glibc keeps what was freed, where it would give every large tensor back and clear it anew: a fifth of a 3-D step
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}


def bundle_command(configs: Sequence[str], overrides: Mapping[str, Any]) -> list[str]:
    """Return the command line for configuration files (relative to the bundle) and overrides."""
    files = "[" + ",".join(f"'configs/{name}'" for name in configs) + "]"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", files, "--bundle_root", "."]
    for key, value in overrides.items():
        command += [f"--{key}", str(value)]
    return command


def run_bundle(
    bundle: str | Path,
    configs: Sequence[str],
    overrides: Mapping[str, Any],
    log: str | Path,
    threads: int,
    show_progress: bool = True,
) -> None:
    """Run one configuration inside its bundle folder; everything printed goes to ``log``.

    With ``show_progress`` the progress bar (standard error) goes to the terminal as well.

    Raises:
        RuntimeError: the command failed; the message holds the end of the log.
    """
    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = {**KEEP_MEMORY, **os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    with open(path, "w", encoding="utf-8") as file:
        process = subprocess.run(
            bundle_command(configs, overrides),
            cwd=bundle,
            env=environment,
            stdout=file,
            stderr=None if show_progress else subprocess.STDOUT,
        )
    if process.returncode:
        tail = "\n".join(path.read_text(encoding="utf-8").splitlines()[-25:])
        raise RuntimeError(f"{Path(bundle).name} {list(configs)} failed with code {process.returncode}:\n{tail}")


def finished(run_dir: str | Path) -> bool:
    """Tell whether a run folder holds the record of a finished run."""
    record = Path(run_dir) / "run.json"
    return record.is_file() and json.loads(record.read_text(encoding="utf-8")).get("status") == "finished"
