"""The documents of a materialized bundle: a model card from the run's record, and the terms of its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["data_terms", "model_card"]


def model_card(metadata: Mapping[str, Any], record: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    """Return a model card in Markdown; every number in it comes from the record.

    Args:
        metadata: of the new bundle.
        record: ``run.json`` of the training.
        changes: ``::`` id to value of what the run changed in the base bundle's train.yaml.
    """
    classes = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    sections = [
        f"# Model overview\n\n{metadata['description']}.\n\nResearch use only. Not a medical device.",
        f"## Data\n\n{_data(record, classes)}",
        f"## Network\n\n{_network(metadata, record)}",
        f"## Training configuration\n\n{_training(record, changes)}",
        f"## Performance\n\n{_performance(record)}",
        _commands(record),
        "## Limits\n\nThe scores are those of the cases that selected the epoch. Score unseen cases before you rely on "
        "them, and write down here what was not tried.",
        "## License\n\nSee `LICENSE`. Data: see [data_license.txt](data_license.txt).",
    ]
    return "\n\n".join(sections) + "\n"


def _data(record: Mapping[str, Any], classes: Mapping[str, str]) -> str:
    protocol = record["protocol"]
    sizes = [
        f"{protocol[f'n_{name}']} for {name}" for name in ("train", "validation", "test") if f"n_{name}" in protocol
    ]
    return (
        f"Protocol `{protocol['name']}`: cases {', '.join(sizes)}. Classes: "
        + ", ".join(f"{channel} {name}" for channel, name in classes.items())
        + ". Terms: [data_license.txt](data_license.txt)."
    )


def _network(metadata: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    formats = metadata["network_data_format"]
    inputs, outputs = formats["inputs"]["image"], formats["outputs"]["pred"]
    return (
        f"`{record['network']['target']}` with {record['network']['parameters']:,} parameters; `network_def` in "
        f"`configs/train.yaml`.\n\n### Input\n\n`image`: {inputs['num_channels']} channels: "
        f"{', '.join(inputs['channel_def'].values())}.\n\n### Output\n\n`pred`: {outputs['num_channels']} channels of "
        f"logits: {', '.join(outputs['channel_def'].values())}."
    )


def _training(record: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    teacher = record["teacher"]
    networks = teacher.get("networks", {}).values()
    taught = ", ".join(f"{network['target']} ({network['parameters']:,} parameters)" for network in networks)
    rows = {
        "method": record["method"],
        "from": f"{record['bundle']['name']} {record['bundle']['version']}, run {record['run_id']}",
        "teacher": f"{taught}, {teacher['source']}" if taught else teacher["source"],
        "epochs": f"{record['epochs']}, best {record['best_epoch']}",
        "seed": record["seed"],
        "time": f"{record['time']['total_s'] / 60:.1f} minutes on {record['device']['name']}",
    }
    lines = ["`configs/train.yaml` is the source.", "", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "Changed against the base bundle:" if changes else "Nothing was changed against the base bundle."]
    return "\n".join([*lines, "", *[f"- `{name}`: {_value(value)}" for name, value in changes.items()]]).rstrip()


def _value(value: Any) -> str:
    text = json.dumps(value)
    return "removed" if value is None else f"`{text}`" if len(text) <= 80 else "see the file"


def _performance(record: Mapping[str, Any]) -> str:
    validation = record.get("validation")
    if not validation:
        return "No validation scores are in the record."
    lines = [f"Mean over {validation['n_cases']} validation cases, which also selected the epoch.", ""]
    lines += ["| class | Dice | HD95 (mm) |", "|---|---:|---:|"]
    for name in [*record["classes"].values(), "mean"]:
        dice, distance = validation["dice"].get(name), validation["hd95_mm"].get(name)
        lines.append(f"| {name} | {_shown(dice, '.4f')} | {_shown(distance, '.2f')} |")
    return "\n".join(lines)


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _commands(record: Mapping[str, Any]) -> str:
    evaluate = "\"['configs/train.yaml','configs/evaluate.yaml']\""
    own = "--dataset_dir DIR --split_file \"''\""
    run = "python -m monai.bundle run --bundle_root . --config_file"
    return (
        "## Commands\n\nRun them in this folder, with `monai_kd` installed; inference needs MONAI alone.\n\n```bash\n"
        f"{run} configs/inference.yaml --dataset_dir DIR --output_dir OUT\n{run} configs/train.yaml {own}\n"
        f"{run} {evaluate} {own}\n```"
    )


def data_terms(name: str, base: Path, own_data: bool) -> str:
    """Return ``data_license.txt``: the base bundle's terms, and a line that must be completed if other data was used.

    Args:
        name: of the new bundle.
        base: folder of the bundle that was trained.
        own_data: whether the run named a data folder of its own.
    """
    source = base / "docs" / "data_license.txt"
    text = source.read_text(encoding="utf-8") if source.is_file() else "The base bundle states no terms.\n"
    head = f'Data terms of the bundle "{name}", materialized from a run of the bundle "{base.name}"\n\n'
    if own_data:
        head += (
            "The run named a data folder of its own (--dataset_dir). Unless that was the data set below, state here\n"
            "its source and terms before you share these weights.\n\n"
        )
    return f'{head}Terms of the base bundle "{base.name}":\n\n{text}'
