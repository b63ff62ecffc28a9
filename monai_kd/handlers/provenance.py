"""Where a run's numbers come from: executed configuration, code, versions, device, weights."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ignite
import monai
import numpy
import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_kd import __version__
from monai_kd.handlers.files import write_whole

__all__ = [
    "config_hash",
    "environment",
    "executed_config",
    "file_sha256",
    "network_facts",
    "peak_memory_mb",
    "write_json",
]


def executed_config() -> tuple[dict[str, Any], list[str]]:
    """Return the merged configuration that built the caller, and the names of its files.

    MONAI gives a component no way to ask for the configuration it stands in, so this looks up the call stack for the
    ``ConfigParser`` that is instantiating it. That holds for the command line, MONAI Label and federated clients alike.

    Returns:
        The raw configuration (expressions unevaluated, overrides applied, metadata left out) and the configuration
        files as given on the command line; ``({}, [])`` when no ``ConfigParser`` is at work.
    """
    config: dict[str, Any] = {}
    files: list[str] = []
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if not config and isinstance(owner, ConfigParser):
            merged: Any = owner.config
            config = {key: value for key, value in merged.items() if key != "_meta_"}
        if not files and frame.f_globals.get("__name__") == "monai.bundle.scripts":
            given = frame.f_locals.get("config_file")
            files = [given] if isinstance(given, str) else list(given or [])
        frame = frame.f_back
    return json.loads(json.dumps(config, default=str)), [str(name) for name in files]


def config_hash(config: Mapping[str, Any], without: Iterable[str] = ()) -> str:
    """Return the sha256 of a configuration, leaving out the named top-level ids."""
    kept = {key: value for key, value in config.items() if key not in set(without)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def network_facts(network: nn.Module) -> dict[str, Any]:
    """Return class name and number of parameters."""
    return {"target": type(network).__name__, "parameters": sum(p.numel() for p in network.parameters())}


def environment(device: str | torch.device, code_dir: str | os.PathLike[str] = ".") -> dict[str, Any]:
    """Return commit, versions and device of this run."""
    kind = torch.device(device).type
    return {
        "commit": _commit(code_dir),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # a TorchVersion is no plain text to torch.load
            "monai": monai.__version__,
            "ignite": ignite.__version__,
            "numpy": numpy.__version__,
            "monai_kd": __version__,
        },
        "device": {
            "type": kind,
            "name": torch.cuda.get_device_name(torch.device(device)) if kind == "cuda" else _cpu_name(),
            "threads": torch.get_num_threads(),
        },
    }


def peak_memory_mb() -> float | None:
    """Return the largest resident size of this process so far, in MB (10**6 bytes); None on Windows."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Linux counts in KiB, macOS in bytes
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _commit(code_dir: str | os.PathLike[str]) -> str | None:
    """Return the git commit, with ``+changes`` if tracked files differ; None outside a git checkout."""
    git = ["git", "-C", os.fspath(code_dir)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if dirty else commit


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
