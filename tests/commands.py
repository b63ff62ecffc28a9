"""Run a bundle as its users do: ``python -m monai.bundle`` in a process of its own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["TINY", "TINY_UNET3D", "bundle_run", "monai_bundle", "page_commands", "run_page_command"]

# the overrides that make a bundle's own network tiny, or its images
TINY: dict[str, dict[str, Any]] = {
    "distill-dsm": {"network_def::channels": [16, 16, 16]},
    "gkd": {"diameter": 88, "roi_size": [64, 64]},  # small enough as it is, and its stages' weights fit
    "mtcm-kd": {"network_def::channels": [4, 8, 8, 8], "teacher_channels": [4, 8, 8, 8]},
    "mtms-kd": {"patch_size": [64, 64], "volumes_per_epoch": 4},  # the shipped teacher's deepest map is a sixteenth
    "teacher": {"network_def::filters": [4, 8, 8, 8]},
    "student": {"network_def::channels": [4, 4, 8]},
}
TINY_UNET3D = {"network_def::filters": [4, 8, 8, 8]}  # of the overlay unet3d.yaml, another network


def monai_bundle(
    cwd: Path, *arguments: str, launcher: Sequence[str] = (), python_path: str | None = None, succeed: bool = True
) -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle ...`` from a folder; ``succeed`` False expects it to fail."""
    environment = {key: value for key, value in os.environ.items() if key != "MONAI_KD_DATA"}
    environment |= {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    if python_path is not None:
        environment["PYTHONPATH"] = python_path
    cwd.mkdir(exist_ok=True)
    command = [sys.executable, "-m", *launcher, "monai.bundle", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert (done.returncode == 0) == succeed, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def bundle_run(
    bundle: Path,
    names: Sequence[str],
    cwd: Path,
    launcher: Sequence[str] = (),
    python_path: str | None = None,
    succeed: bool = True,
    **overrides: Any,
) -> subprocess.CompletedProcess[str]:
    """``monai.bundle run`` of some of a bundle's files from another folder, into which nothing may be written."""
    files = [str(bundle / "configs" / name) for name in names]
    arguments = ["--config_file", files[0] if len(files) == 1 else str(files), "--bundle_root", str(bundle)]
    for key, value in overrides.items():
        arguments += [f"--{key}", str(value)]
    done = monai_bundle(cwd, "run", *arguments, launcher=launcher, python_path=python_path, succeed=succeed)
    assert list(cwd.iterdir()) == [], "written into the current folder"
    return done


def page_commands(page: str) -> list[list[str]]:
    """The words of every line of a document's shell blocks that calls python."""
    return [
        shlex.split(line)
        for block in re.findall(r"^```bash\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("python")
    ]


def run_page_command(
    words: Sequence[str], places: Mapping[str, Path], cwd: Path, settings: Mapping[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Run a command of a document, with folders in place of its capital words, and with further settings."""
    command = [sys.executable, *(str(places.get(word, word)) for word in words[1:])]
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    environment = {key: value for key, value in os.environ.items() if key != "MONAI_KD_DATA"}
    environment |= {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done
