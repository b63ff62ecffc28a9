"""Synthetic evaluation records: every number a test needs can be set, the rest is plausible and fixed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLASSES = {"1": "anterior", "2": "posterior"}
SCHEDULE, SPLIT, PROTOCOL, RECIPE, SCORING = "1" * 64, "2" * 64, "3" * 64, "6" * 64, "7" * 64
PARAMETERS = {"teacher": 4_800_000}
SECONDS = {"teacher": 0.62}
TEACHER_WEIGHTS = "aa" * 32


def make_record(
    method: str,
    seed: int | None = 0,
    dice: Sequence[float] = (0.8, 0.9),
    gap: float = 0.02,
    missed: Sequence[int] = (),
    schedule: str | None = SCHEDULE,
    split: str = SPLIT,
    protocol: str = PROTOCOL,
    protocol_name: str = "hippocampus",
    section: str = "test",
    stamp: str = "20261121-104400",
    curves: bool = True,
    bundle: str | None = None,
    parameters: int | None = None,
    recipe: str | None = RECIPE,
) -> dict[str, Any]:
    """Return a record whose case ``i`` has a mean Dice of ``dice[i]``: anterior ``+ gap / 2``, posterior ``- gap / 2``.

    ``missed`` lists the indices of cases whose posterior part was missed (Dice 0, HD95 the image diagonal).
    """
    cases = [_case(index, value, gap, index in missed) for index, value in enumerate(dice)]
    teacher = method == "teacher"
    return {
        "schema": 1,
        "kind": "evaluation",
        "run_id": f"evaluate-{method}-seed{seed}-{stamp}",
        "bundle": {"name": bundle or ("teacher" if teacher else "student"), "version": "0.1.0"},
        "method": method,
        "seed": seed,
        "protocol": {
            **{
                "name": protocol_name,
                "hash": protocol,
                "section": section,
                "split_hash": split,
                "scoring_hash": SCORING,
            },
            **{"n_train": 152, "n_validation": 16, "n_test": len(cases)},
        },
        "schedule_hash": "4" * 64 if teacher else schedule,
        "recipe_hash": recipe,
        "config_files": ["configs/train.yaml", "configs/evaluate.yaml"],
        "config_hash": "5" * 64,
        "config": {},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {"torch": "2.13.0", "monai": "1.6.1", "monai_kd": "0.1.0", "python": "3.11.7"},
        "device": {"name": "AMD EPYC", "type": "cpu", "threads": 2},
        "network": {
            "target": "DynUNet",
            "parameters": parameters or PARAMETERS.get(method, 271_234),
            "weights_sha256": TEACHER_WEIGHTS if teacher else f"{method}-{seed}",
        },
        "teacher": {"source": "live", "weights_sha256": TEACHER_WEIGHTS, "parameters": 4_800_000}
        if method not in ("teacher", "baseline")
        else {"source": "none", "weights_sha256": None, "parameters": None},
        "time": {"total_s": 12.3, "inference_s_per_case": SECONDS.get(method, 0.1)},
        "memory": {"peak_rss_mb": 900},
        "classes": dict(CLASSES),
        "cases": cases,
        "summary": _summary(cases),
        "training": _training(method, seed, schedule) if curves else None,
    }


def arm(method: str, dice_per_seed: Sequence[Sequence[float]], **settings: Any) -> list[dict[str, Any]]:
    """One record per seed, seeds counted from 0."""
    return [make_record(method, seed, dice, **settings) for seed, dice in enumerate(dice_per_seed)]


def write_record(folder: Path, record: dict[str, Any]) -> Path:
    """Write a record the way an evaluation does: ``folder/<run_id>/run.json``."""
    path = folder / record["run_id"] / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def _case(index: int, dice: float, gap: float, missed: bool) -> dict[str, Any]:
    return {
        "case": f"hippocampus_{index:03d}",
        "dice": {"anterior": dice + gap / 2, "posterior": 0.0 if missed else dice - gap / 2},
        "hd95_mm": {"anterior": 1.0, "posterior": 75.0 if missed else 1.5},
        "missed": ["posterior"] if missed else [],
        "false_positive": [],
        "inference_s": 0.1,
    }


def _summary(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mean = {
        table: {name: sum(case[table][name] for case in cases) / len(cases) for name in CLASSES.values()}
        for table in ("dice", "hd95_mm")
    }
    return {
        "dice": {**mean["dice"], "mean": sum(mean["dice"].values()) / 2},
        "hd95_mm": {**mean["hd95_mm"], "mean": sum(mean["hd95_mm"].values()) / 2},
        "missed": {name: sum(name in case["missed"] for case in cases) for name in CLASSES.values()},
    }


def _training(method: str, seed: int | None, schedule: str | None) -> dict[str, Any]:
    epochs = list(range(1, 61))
    start = {"teacher": 0.9, "baseline": 1.1, "distilled": 1.0}.get(method, 1.05) + 0.03 * (seed or 0)
    falling = [start / (1 + 0.12 * epoch) + 0.08 for epoch in epochs]
    terms = (
        {"seg": falling} if method in ("teacher", "baseline") else {"seg": falling, "soft": [v / 2 for v in falling]}
    )
    return {
        "run_id": f"train-{method}-seed{seed}-20261121-100000",
        "seed": seed,
        "schedule_hash": schedule,
        "epochs": 60,
        "best_epoch": 55,
        "time": {"total_s": 301.0 if method != "distilled" else 540.0},
        "device": {"name": "AMD EPYC", "type": "cpu", "threads": 2},
        "curves": {
            **{"epoch": epochs, "loss": [sum(values) for values in zip(*terms.values(), strict=True)], "terms": terms},
            "val_epoch": epochs[4::5],
            "val_mean_dice": [0.9 - falling[epoch - 1] / 3 for epoch in epochs[4::5]],
        },
    }
