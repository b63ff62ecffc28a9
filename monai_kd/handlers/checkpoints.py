"""Write the best weights, and all a training needs to go on after a crash."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.utils import set_determinism
from torch import nn

from monai_kd.handlers.files import is_main_process, write_whole
from monai_kd.handlers.provenance import file_sha256
from monai_kd.handlers.run_dir import STATE_DIR, require_free_space
from monai_kd.handlers.training_record import RECORD_KEY, refuse_other_run

__all__ = ["ResumableTraining", "SaveBest"]

_logger = logging.getLogger("monai_kd")
_SPARE_BYTES = 20_000_000  # curves, records, logs


class SaveBest:
    """Write the network's weights whenever an evaluator's key metric is the best so far.

    The file is a plain state dict of bare keys, written to a temporary name and renamed, so a crash never leaves half
    a file. The best before it stays as ``model_before.pt``, for a resume from a state before the newest best.

    Args:
        run_dir: folder of the run.
        network: the network to save.
        weights_name: file name of the weights.
    """

    def __init__(self, run_dir: str, network: nn.Module, weights_name: str = "model.pt") -> None:
        self.path = Path(run_dir) / weights_name
        self.before = self.path.with_name(f"{self.path.stem}_before{self.path.suffix}")
        self.network = network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        state: Any = engine.state
        if state.best_metric_epoch != state.epoch:  # MONAI numbers a validator's epochs by the trainer's
            return
        if not is_main_process():
            return
        if self.path.is_file():
            shutil.copyfile(self.path, self.before)
        content = _serialized(self.network.state_dict())
        write_whole(self.path, content)
        state.best_weights_sha256 = hashlib.sha256(content).hexdigest()
        _logger.info("best weights so far: %s", self.path)


class ResumableTraining:
    """Make a training resumable: seed each epoch, write its state after each, and restore it when asked to.

    All randomness of an epoch (order of cases, augmentation, dropout) follows from ``seed``, the epoch's number and
    the process, so that the state after an epoch holds no generators and a resumed training on a CPU has bit-equal
    weights. The state holds what is in ``objects``, the trainer's epoch and record, the best validation score, and
    the CUDA gradient scaler. Two states are kept in ``<run_dir>/state``; their names hold the sha256 of their bytes,
    and a damaged one is passed over with a warning. The last epoch needs none: the run is complete then.

    Put it last in ``train_handlers``, so that validation and record of an epoch belong to its state.

    Args:
        run_dir: folder of the run.
        seed: the training seed.
        objects: named parts with ``state_dict`` and ``load_state_dict``: network, optimizer, lr_scheduler.
        dataset: training dataset whose random transforms are seeded.
        evaluator: validation engine, whose best score is restored.
        resume: go on from the newest state in ``run_dir``; without a state the training starts at epoch 1.
        interval: epochs between two states.
        weights_name: file name of the best weights in ``run_dir``.

    Raises:
        ValueError: ``interval`` is not a positive number, no state in ``run_dir`` can be read, the interrupted run had
            other settings, there are no epochs, or the loader keeps its workers over epochs (``persistent_workers``).
        OSError: the disk has no room for weights and states.
    """

    def __init__(
        self,
        run_dir: str,
        seed: int,
        objects: Mapping[str, Any],
        dataset: Any,
        evaluator: Engine,
        resume: bool = False,
        interval: int = 1,
        weights_name: str = "model.pt",
    ) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f"state interval is {interval!r}; it must be a number of epochs, 1 or more")
        self.folder = Path(run_dir) / STATE_DIR
        self.best_weights = Path(run_dir) / weights_name
        self.seed = seed
        self.objects = dict(objects)
        self.dataset = dataset
        self.evaluator = evaluator
        self.resume = resume
        self.interval = interval
        self._scaler_state: dict[str, Any] | None = None

    def attach(self, engine: Engine) -> None:
        if getattr(getattr(engine, "data_loader", None), "persistent_workers", False):
            raise ValueError(
                "persistent_workers is True: such workers keep their random state over epochs, so that a resumed "
                "training would differ; set train::dataloader::persistent_workers False"
            )
        if not engine.state.max_epochs or engine.state.max_epochs < 1:
            raise ValueError(f"epochs is {engine.state.max_epochs}; a training has 1 or more")
        require_free_space(self.folder, _expected_bytes(self.objects))
        if self.resume:
            self._restore(engine)
        engine.add_event_handler(Events.STARTED, self._restore_scaler)
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._write)

    def _seed_epoch(self, engine: Engine) -> None:
        seed = _epoch_seed(self.seed, engine.state.epoch)
        set_determinism(seed)
        set_rnd(self.dataset, seed)

    # ---- writing -------------------------------------------------------------------------------------------------

    def _write(self, engine: Engine) -> None:
        if engine.state.epoch == engine.state.max_epochs or not is_main_process():
            return
        scaler = getattr(engine, "scaler", None)
        best: Any = self.evaluator.state
        content = _serialized(
            {
                "trainer": dict(engine.state_dict()),
                "objects": {name: part.state_dict() for name, part in self.objects.items()},
                "best": {name: getattr(best, name, None) for name in _BEST},
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(content).hexdigest()[:16]
        write_whole(self.folder / f"epoch{engine.state.epoch:06d}-{digest}.pt", content)
        for outdated in self._states()[2:]:
            outdated.unlink()

    def _states(self) -> list[Path]:
        """All states, newest first."""
        return sorted(self.folder.glob("epoch*.pt"), reverse=True)

    # ---- restoring -----------------------------------------------------------------------------------------------

    def _restore(self, engine: Engine) -> None:
        states = self._states()
        if not states:
            _logger.warning("resume: '%s' was stopped before its first state; it starts at epoch 1", self.folder.parent)
            return
        path, content = self._newest_whole(states)
        earlier, now = content["trainer"].get(RECORD_KEY), getattr(engine.state, RECORD_KEY, None)
        if earlier and now:
            refuse_other_run(earlier, now, self.folder.parent)
        _wait_for_all()  # nobody renames a file that another process still reads
        for name, part in self.objects.items():
            part.load_state_dict(content["objects"][name])
        engine.load_state_dict(content["trainer"])
        for name, value in content["best"].items():
            setattr(self.evaluator.state, name, value)
        self._scaler_state = content["scaler"]
        self._restore_best_weights(content["best"]["best_weights_sha256"])
        if is_main_process():
            for later in states[: states.index(path)]:
                later.rename(later.with_suffix(".damaged"))
        state = engine.state
        _logger.warning("resume: going on after epoch %d of %d, from %s", state.epoch, state.max_epochs, path)

    def _newest_whole(self, states: list[Path]) -> tuple[Path, dict[str, Any]]:
        for path in states:
            if file_sha256(path).startswith(path.stem.rpartition("-")[2]):
                return path, torch.load(path, map_location="cpu", weights_only=True)
            _logger.warning("resume: '%s' is damaged (its bytes do not match its name), the one before is used", path)
        raise ValueError(f"--resume True: no state in '{self.folder}' is whole; start without --resume")

    def _restore_best_weights(self, sha256: str | None) -> None:
        """Put back the best weights that belong to the state: validation may have run once more after it."""
        if sha256 is None:
            return
        before = self.best_weights.with_name(f"{self.best_weights.stem}_before{self.best_weights.suffix}")
        for path in (self.best_weights, before):
            if path.is_file() and file_sha256(path) == sha256:
                _wait_for_all()
                if path == before and is_main_process():
                    write_whole(self.best_weights, before.read_bytes())
                return
        _wait_for_all()
        _logger.warning("resume: the best weights so far are not in '%s'; the next validation writes anew", self.folder)
        best: Any = self.evaluator.state
        best.best_metric = best.best_metric_epoch = -1

    def _restore_scaler(self, engine: Engine) -> None:
        scaler = getattr(engine, "scaler", None)  # MONAI makes it when the run starts
        if scaler is not None and self._scaler_state:
            scaler.load_state_dict(self._scaler_state)


_BEST = ("best_metric", "best_metric_epoch", "best_weights_sha256")


def _wait_for_all() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def _epoch_seed(seed: int, epoch: int) -> int:
    """A seed below 2**31 for each epoch of each process; neighbouring seeds share nothing."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return int(hashlib.sha256(f"{seed}/{epoch}/{rank}".encode()).hexdigest()[:8], 16) % 2**31


def _serialized(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _expected_bytes(objects: Mapping[str, Any]) -> int:
    """Weights (best, before, published, set aside) and three states, each with two moments a parameter."""
    tensors = [item for part in objects.values() if isinstance(part, nn.Module) for item in part.state_dict().values()]
    weights = sum(item.numel() * item.element_size() for item in tensors if isinstance(item, torch.Tensor))
    return 4 * weights + 3 * 3 * weights + _SPARE_BYTES
