"""run.json: what trainings and evaluations record alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_kd.handlers.files import is_main_process
from monai_kd.handlers.provenance import (
    config_hash,
    environment,
    executed_config,
    network_facts,
    peak_memory_mb,
    write_json,
)

__all__ = ["INFERENCE_IDS", "PLACE_IDS", "RunRecord", "without_inferer"]

_SCHEMA = 1
# Where things lie: no part of what a run is.
PLACE_IDS = (
    "bundle_root",
    "dataset_dir",
    "split_file",
    "run_name",
    "run_dir",
    "ckpt_dir",
    "ckpt_path",
    "device",
    "resume",
)
# How a network goes through a volume: windows and chunks fit the network, and are no part of what is learned or scored.
INFERENCE_IDS = ("roi_size", "overlap", "chunk")


def without_inferer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration without the inferer that takes the network through volumes to be scored."""
    validate = config.get("validate")
    if not isinstance(validate, dict):
        return dict(config)
    return {**config, "validate": {name: step for name, step in validate.items() if name != "inferer"}}


class RunRecord:
    """What trainings and evaluations record alike: identity, configuration, environment, clock.

    Args:
        run_dir: folder of this run.
        bundle: the bundle's metadata; ``name`` and ``version`` are read.
        method: name of the arm in tables, e.g. ``teacher``, ``baseline``, ``distilled``.
        protocol: name of the task protocol.
        class_names: background first.
        device: where it runs.
        network: the network that is trained or scored.
        bundle_root: folder whose git commit is recorded.
    """

    kind = ""

    def __init__(
        self,
        run_dir: str,
        bundle: Mapping[str, Any],
        method: str,
        protocol: str,
        class_names: Sequence[str],
        device: str | torch.device,
        network: nn.Module,
        bundle_root: str = ".",
    ) -> None:
        self.run_dir = Path(run_dir)
        self.network = network
        self.class_names = list(class_names)
        self.config, files = executed_config()
        self._started = time.perf_counter()
        self.content: dict[str, Any] = {
            "schema": _SCHEMA,
            "kind": self.kind,
            "status": "running",
            "run_id": self.run_dir.name,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "bundle": {"name": bundle.get("name"), "version": bundle.get("version")},
            "method": method,
            "protocol": {"name": protocol},
            "classes": {str(channel): name for channel, name in enumerate(class_names) if channel},
            "config_files": files,
            "config_hash": config_hash(self.config, PLACE_IDS),
            "config": self.config,
            **environment(device, bundle_root),
            "network": network_facts(network),
        }

    def write(self) -> None:
        if not is_main_process():
            return
        self.content["time"] = {**self.content.get("time", {}), "total_s": time.perf_counter() - self._started}
        self.content["memory"] = {"peak_rss_mb": peak_memory_mb()}
        write_json(self.run_dir / "run.json", self.content)
