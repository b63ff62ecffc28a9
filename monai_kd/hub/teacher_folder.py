"""Turn a finished run into the small bundle folder that a student keeps as ``models/teacher``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from monai_kd.handlers.provenance import file_sha256, write_json
from monai_kd.hub.plain_network import plain_network

__all__ = ["make_teacher", "output_classes", "provenance"]

_DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"


def make_teacher(run_dir: str | Path, bundle_root: str | Path, out: str | Path) -> Path:
    """Write ``out/configs/{metadata,infer}.json``, ``out/models/model.pt`` from a training run.

    The network definition is the executed one of the run, so overrides on the command line are kept, with its
    references to other ids written out; the metadata is
    that of the run's bundle, with a ``provenance`` entry that names run, commit, weights and validation score.

    Args:
        run_dir: folder with ``run.json`` and ``model.pt`` of a finished training (or a bundle's ``models`` folder,
            where the record is ``model.json``).
        bundle_root: the bundle that was trained, for its metadata.
        out: folder to write; an existing teacher there is replaced file by file.

    Raises:
        FileNotFoundError: run record, weights or metadata missing.
        ValueError: the record is not of a finished training, or does not name these weights, or an
            argument of the network is no plain value.
    """
    run, target = Path(run_dir), Path(out)
    record = _read_record(run)
    weights = run / "model.pt"
    if not weights.is_file():
        raise FileNotFoundError(f"'{run}' has no model.pt; give the folder of a finished training")
    if record.get("kind") != "training" or record["network"].get("weights_sha256") != file_sha256(weights):
        raise ValueError(f"the record in '{run}' is not of the training that wrote its model.pt; train again")
    metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text(encoding="utf-8"))
    metadata["provenance"] = provenance(record)
    network_def = plain_network(record["config"], f"'{run}'")
    classes = output_classes(record)
    metadata["network_data_format"]["outputs"]["pred"].update(num_channels=len(classes), channel_def=classes)
    (target / "models").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, target / "models" / "model.pt")
    write_json(target / "configs" / "metadata.json", metadata)
    write_json(
        target / "configs" / "infer.json",
        {"bundle_root": ".", "device": _DEVICE, "network_def": network_def},
    )
    return target


def _read_record(run: Path) -> dict[str, Any]:
    for name in ("run.json", "model.json"):
        if (run / name).is_file():
            record: dict[str, Any] = json.loads((run / name).read_text(encoding="utf-8"))
            return record
    raise FileNotFoundError(f"'{run}' has no run.json (or model.json); give the folder of a finished training")


def output_classes(record: dict[str, Any]) -> dict[str, str]:
    """Return what each output channel of a run's network means.

    The record's own ``classes`` are what was scored, which may be unions of the network's classes.
    """
    names = record["config"].get("class_names")
    if not isinstance(names, list):
        return {"0": "background", **record["classes"]}
    return {str(channel): name for channel, name in enumerate(names)}


def provenance(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a training record says of its weights, for the metadata of a bundle that carries them on."""
    names = ("run_id", "bundle", "method", "seed", "commit", "network", "best_epoch", "best_metric")
    return {name: record[name] for name in names}
