"""Run a bundle as its users do: ``python -m monai.bundle`` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["TINY", "TINY_UNET3D", "bundle_run", "monai_bundle"]

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
