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

__all__ = [
    "TINY",
    "TINY_SLICES",
    "TINY_UNET3D",
    "bundle_run",
    "monai_bundle",
    "page_commands",
    "run_page_command",
    "tiny_overrides",
]

# the overrides that make a bundle's own network tiny, or its images
TINY: dict[str, dict[str, Any]] = {
    "distill-dsm": {"network_def::channels": [16, 16, 16]},
    "gkd": {"diameter": 88, "roi_size": [64, 64]},  # small enough as it is, and its stages' weights fit
    "mtcm-kd": {"network_def::channels": [4, 8, 8, 8], "teacher_channels": [4, 8, 8, 8]},
    "mtms-kd": {"patch_size": [64, 64], "volumes_per_epoch": 4},  # the shipped teacher's deepest map is a sixteenth
    "teacher": {"network_def::filters": [4, 8, 8, 8]},
    "student": {"network_def::channels": [4, 4, 8]},
}
# and those of slices, by the overlay that names the network
TINY_SLICES: dict[str, dict[str, Any]] = {"slices": {"network_def::channels": [8, 8, 8, 16]}}
TINY_SLICES |= {
    name: {"network_def::channels": [8, 8, 8, 16]} for name in ("fcn_r18", "fcn_r50", "unet_r18", "unet_r50")
}
TINY_SLICES |= {
    "attention_unet": TINY_SLICES["unet_r18"],
    "mednext_s": {"network_def::init_filters": 4},
    "mednext_b": {"network_def::init_filters": 4},
    "missformer": {"network_def::channels": [8, 16, 40, 64], "network_def::bridge_layers": 1},
    "transunet": {
        "network_def::channels": [8, 32, 32, 32],
        "network_def::residual_blocks": [1, 1, 1],
        "network_def::norm_groups": 4,
        "network_def::hidden_size": 16,
        "network_def::mlp_dim": 16,
        "network_def::num_layers": 1,
        "network_def::num_heads": 2,
        "network_def::decoder_channels": [16, 8, 8, 8, 8],
        "network_def::position_grid": 4,
    },
    "swin_unetr": {"network_def::feature_size": 12},
}
TINY_UNET3D = {"network_def::filters": [4, 8, 8, 8]}  # of the overlay unet3d.yaml, another network


def tiny_overrides(bundle: str, files: Sequence[str]) -> dict[str, Any]:
    """What makes the network tiny that some files of a bundle define."""
    if "unet3d.yaml" in files:
        return TINY_UNET3D
    stems = [Path(file).stem for file in files if file.startswith("networks/")]
    if stems or {"slices.yaml", "inference_slices.yaml"} & set(files):
        return TINY_SLICES[stems[-1] if stems else "slices"]
    return TINY[bundle]


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
