"""Per-case Dice and HD95 of an evaluation, kept on the engine and shown."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents

from monai_kd.data.case_names import case_id
from monai_kd.data.checks import GRID_TOLERANCE, grid_shift
from monai_kd.data.raster import is_raster
from monai_kd.handlers.mean_case_dice import gather_lists
from monai_kd.metrics import score_case, summarize

__all__ = ["CaseScores", "write_metrics_csv"]

_logger = logging.getLogger("monai_kd")


class CaseScores:
    """Score every case of an evaluator after its postprocessing.

    Sets ``engine.state.case_scores`` (a list, see :func:`monai_kd.metrics.score_case`, plus ``case`` and
    ``inference_s``), ``engine.state.case_summary``, and the metrics ``dice_<class>`` and ``hd95_mm_<class>``. Under
    distributed evaluation every process ends with all cases; a case that padding handed out twice counts once.

    Args:
        class_names: names of the one-hot channels, background first.
        empty: Dice of a class that prediction and label both lack; None does not count it.

    Needs in the evaluator's decollated output: ``pred`` and ``label``, one-hot ``(K, *spatial)``, the label a
    ``MetaTensor`` (its spacing is used), and ``image`` as ``MetaTensor`` (the case is named after its file).
    """

    def __init__(self, class_names: Sequence[str], empty: float | None = None) -> None:
        self.class_names = list(class_names)
        self.empty = empty
        self._cases: list[dict[str, Any]] = []
        self._started = 0.0
        self._inference_s = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_STARTED, self._start_clock)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._stop_clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _reset(self, _engine: Engine) -> None:
        self._cases = []

    def _start_clock(self, _engine: Engine) -> None:
        self._started = _clock()

    def _stop_clock(self, _engine: Engine) -> None:
        self._inference_s = _clock() - self._started

    def _score(self, engine: Engine) -> None:
        outputs = engine.state.output
        for output in outputs:  # type: ignore[union-attr]
            image, label = output["image"], output["label"]
            for key, tensor in (("image", image), ("label", label)):
                if not isinstance(tensor, MetaTensor):
                    raise TypeError(f"CaseScores needs the {key} as MetaTensor, got {type(tensor).__name__}")
            name = case_id(image.meta["filename_or_obj"])
            _check_same_grid(name, image, label)
            spacing_mm = [float(mm) for mm in label.pixdim][: label.ndim - 1]
            scores = score_case(output["pred"].as_tensor(), label.as_tensor(), self.class_names, spacing_mm, self.empty)
            self._cases.append(
                {"case": name, **scores, "inference_s": self._inference_s / len(outputs)}  # type: ignore[arg-type]
            )

    def _finish(self, engine: Engine) -> None:
        cases = {case["case"]: case for case in gather_lists(self._cases)}
        state: Any = engine.state
        state.case_scores = [cases[name] for name in sorted(cases)]
        state.case_summary = summarize(state.case_scores, self.class_names)
        for metric in ("dice", "hd95_mm"):
            for name, mean in state.case_summary[metric].items():
                if mean is not None and name != "mean":
                    state.metrics[f"{metric}_{name}"] = mean
        missed = {name: count for name, count in state.case_summary["missed"].items() if count}
        if missed:
            _logger.warning("classes missed entirely (cases): %s", missed)


def _clock() -> float:
    """Return the time in seconds after everything queued on a GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _check_same_grid(name: str, image: MetaTensor, label: MetaTensor) -> None:
    """Refuse a label whose header places it elsewhere than its image: the scores would be of another anatomy."""
    stored = image.meta.get("original_affine")
    if stored is None:
        # a photograph has no header; its file and the label's were compared before, and resizing changes its affine
        if is_raster(image.meta["filename_or_obj"]) and image.shape[1:] != label.shape[1:]:
            return
        stored = image.affine
    elif image.shape[1:] == label.shape[1:] and torch.equal(image.affine, label.affine):
        return  # both were brought to another grid, each by its own header
    shift = grid_shift(stored, label.affine, label.shape[1:])
    if not shift <= GRID_TOLERANCE:  # also where it is NaN
        raise ValueError(
            f"case '{name}': the affines of image and label differ, by up to {shift:.3g} voxels; both files must lie "
            "on the same grid with the same orientation (resample or re-save the label with the image's header)"
        )


def write_metrics_csv(path: str | Path, cases: Sequence[dict[str, Any]]) -> None:
    """Write one row per case and class: case, class, dice, hd95_mm, missed, false_positive, inference_s.

    Where :class:`~monai_kd.handlers.PixelScores` scored the images, ``pixel_<metric>`` columns follow.
    """
    pixels = list(cases[0].get("pixels", {})) if cases else []
    header = ["case", "class", "dice", "hd95_mm", "missed", "false_positive", "inference_s"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *(f"pixel_{metric}" for metric in pixels)])
        for case in cases:
            scored = [case["pixels"][metric] for metric in pixels]
            for name, dice in case["dice"].items():
                flags = [int(name in case["missed"]), int(name in case["false_positive"])]
                writer.writerow([case["case"], name, dice, case["hd95_mm"][name], *flags, case["inference_s"], *scored])
