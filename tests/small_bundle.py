"""A copy of the student bundle with a tiny network, random weights and a small window."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import nn

__all__ = ["SMALL_WINDOW", "make_small_bundle", "small_network"]

SMALL_WINDOW = (24, 32, 24)


def make_small_bundle(student: Path, target: Path) -> Path:
    """Copy the student bundle's configuration and give it a network that runs in milliseconds."""
    (target / "models").mkdir(parents=True)
    shutil.copytree(student / "configs", target / "configs")
    for name in ("inference.yaml", "train.yaml"):
        path = target / "configs" / name
        text = path.read_text()
        for old, new in (
            ("channels: [16, 32, 64]", "channels: [4, 4, 8]"),
            ("roi_size: [40, 56, 40]", f"roi_size: {list(SMALL_WINDOW)}"),
        ):
            assert text.count(old) == 1
            text = text.replace(old, new)
        path.write_text(text)
    definition = json.loads((target / "configs" / "infer.json").read_text())
    definition["network_def"]["channels"] = [4, 4, 8]
    (target / "configs" / "infer.json").write_text(json.dumps(definition))
    torch.manual_seed(0)
    torch.save(small_network(target).state_dict(), target / "models" / "model.pt")
    return target


def small_network(bundle: Path) -> nn.Module:
    """Build the bundle's network with new random weights."""
    parser = ConfigParser(json.loads((bundle / "configs" / "infer.json").read_text()))
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, nn.Module)
    return network.eval()
