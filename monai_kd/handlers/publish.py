"""Put a finished run's best weights where consumers look, without losing what stood there."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from ignite.engine import Engine, Events

from monai_kd.handlers.files import is_main_process, write_whole

__all__ = ["PublishBest"]

_logger = logging.getLogger("monai_kd")


class PublishBest:
    """When training completes, copy the best weights and their record from the run folder to ``ckpt_dir``.

    ``ckpt_dir/model.pt`` is what MONAI Label, export and inference open; ``ckpt_dir/model.json`` says how it was
    made. Files that stood there are kept in ``ckpt_dir/previous/``. They stay in place until the new ones are
    complete, so that ``model.pt`` is never missing, also if the disk is full or the process is killed.

    Args:
        run_dir: folder of the run, with ``model.pt`` and ``run.json``.
        ckpt_dir: where consumers look, usually the bundle's ``models``.
        weights_name: file name of the weights in both folders.

    Raises:
        FileNotFoundError: the run ended without best weights (no validation ran) or without a record; nothing changed.
    """

    def __init__(self, run_dir: str, ckpt_dir: str, weights_name: str = "model.pt") -> None:
        self.run_dir = Path(run_dir)
        if self.run_dir.resolve() == Path(ckpt_dir).resolve():
            raise ValueError(f"run_dir and ckpt_dir are both '{run_dir}'; they must be two folders")
        self.ckpt_dir = Path(ckpt_dir)
        self.weights_name = weights_name

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, _engine: Engine) -> None:
        if not is_main_process():
            return
        weights = self.run_dir / self.weights_name
        if not weights.is_file():
            raise FileNotFoundError(
                f"'{weights}' was not written: no validation ran; epochs must be at least val_interval"
            )
        record = self.run_dir / "run.json"
        if not record.is_file():
            raise FileNotFoundError(f"'{record}' was not written; put TrainingRecord before PublishBest")
        published = self.ckpt_dir / self.weights_name
        targets = {weights: published, record: published.with_suffix(".json")}
        self.ckpt_dir.mkdir(parents=True, exist_ok=True)
        self._keep_earlier(list(targets.values()))
        contents = {target: source.read_bytes() for source, target in targets.items()}
        for target, content in contents.items():
            write_whole(target, content)
        _logger.info("best weights: %s", self.ckpt_dir / self.weights_name)

    def _keep_earlier(self, targets: list[Path]) -> None:
        stamp = f"{datetime.now():%Y%m%d-%H%M%S-%f}"  # to the microsecond: runs may end within one second
        for target in targets:
            if target.is_file():
                aside = self.ckpt_dir / "previous" / f"{target.stem}-{stamp}{target.suffix}"
                write_whole(aside, target.read_bytes())
                _logger.info("kept the earlier file as %s", aside)
