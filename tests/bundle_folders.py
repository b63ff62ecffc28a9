"""A bundle as packing and fetching see it: the files are there, and the weights are any bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

__all__ = ["command_line", "make_bundle", "tree"]


def make_bundle(root: Path, version: str = "0.1.0", seed: int = 0, weights: int = 200_000, **metadata: Any) -> Path:
    """Write a bundle folder; its weights are ``weights`` bytes that follow from the seed."""
    facts = {"version": version, "monai_version": "1.6.1", "name": root.name, **metadata}
    files = {
        "LICENSE": b"Apache License, Version 2.0\n",
        "configs/metadata.json": json.dumps(facts).encode(),
        "configs/inference.yaml": b"network_def: {}\n",
        "docs/README.md": b"# A small bundle\n",
        "models/model.pt": random.Random(seed).randbytes(weights),
        "models/teacher/configs/metadata.json": b'{"version": "0.1.0"}',
        "models/teacher/models/model.pt": random.Random(seed + 1).randbytes(1000),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones too, and every empty folder as ``name/``."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = path.read_bytes()
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def command_line(monkeypatch: Any, *words: object) -> int:
    """Run ``python -m monai_kd WORDS`` in this process; return its exit code."""
    from monai_kd.__main__ import main

    monkeypatch.setattr("sys.argv", ["monai_kd", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
