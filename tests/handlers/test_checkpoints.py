"""Best weights and training states: written whole, restored exactly, damaged ones passed over."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from monai.transforms import Compose, EnsureTyped, RandGaussianNoised
from monai.utils import set_determinism
from torch import nn

from monai_kd.handlers import ResumableTraining, SaveBest
from monai_kd.handlers.provenance import file_sha256

EPOCHS = 5


class Run:
    """A small training with dropout, shuffling and random noise; ``scores`` are the validation scores by epoch."""

    def __init__(self, run_dir: Path, scores: tuple[float, ...] = (), epochs: int = EPOCHS, **arguments: Any) -> None:
        set_determinism(0)
        self.run_dir = run_dir
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        items = [{"image": torch.full((4,), float(number)), "label": torch.ones(1)} for number in range(6)]
        transform = Compose([EnsureTyped(["image"]), RandGaussianNoised(["image"], prob=1.0)])
        self.dataset = CacheDataset(items, transform, progress=False)
        self.evaluator = SupervisedEvaluator(torch.device("cpu"), [items[0]], self.network)
        if scores:
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._score, scores)
        SaveBest(str(run_dir), self.network).attach(self.evaluator)
        parts = {"network": self.network, "optimizer": optimizer, "lr_scheduler": scheduler}
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=DataLoader(self.dataset, batch_size=2, shuffle=True),
            network=self.network,
            optimizer=optimizer,
            loss_function=nn.MSELoss(),
            train_handlers=[ValidationHandler(1, self.evaluator)] if scores else [],
        )
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: scheduler.step())
        handler = ResumableTraining(
            str(run_dir), arguments.pop("seed", 0), parts, self.dataset, self.evaluator, **arguments
        )
        handler.attach(self.trainer)

    @staticmethod
    def _score(engine: Any, scores: tuple[float, ...]) -> None:
        score = scores[engine.state.epoch - 1]
        if engine.state.best_metric_epoch == -1 or score > engine.state.best_metric:
            engine.state.best_metric, engine.state.best_metric_epoch = score, engine.state.epoch

    def go(self, stop_in_epoch: int = 0) -> Run:
        """Train to the end, or until a failure in the second batch of an epoch."""

        def fail(engine: Any) -> None:
            if engine.state.epoch == stop_in_epoch and engine.state.iteration % engine.state.epoch_length == 2:
                raise ConnectionError("power cut")

        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, fail)
        if stop_in_epoch:
            with pytest.raises(ConnectionError):
                self.trainer.run()
        else:
            self.trainer.run()
        return self

    @property
    def weights(self) -> list[float]:
        return torch.cat([value.ravel() for value in self.network.state_dict().values()]).tolist()


def states(run_dir: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (run_dir / "state").glob("*.pt"))


@pytest.fixture
def whole(tmp_path) -> Run:
    """A run that nothing interrupts."""
    return Run(tmp_path / "whole").go()


@pytest.mark.parametrize("stop_in_epoch", [1, 2, 4, 5])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path, whole, stop_in_epoch, caplog):
    Run(tmp_path / "run").go(stop_in_epoch)
    resumed = Run(tmp_path / "run", resume=True)
    assert resumed.trainer.state.epoch == stop_in_epoch - 1
    assert resumed.go().weights == whole.weights
    if stop_in_epoch > 1:
        assert f"resume: going on after epoch {stop_in_epoch - 1} of 5, from" in caplog.text
    else:
        assert "was stopped before its first state; it starts at epoch 1" in caplog.text


def test_the_seed_changes_the_weights_and_the_same_seed_repeats_them(tmp_path, whole):
    assert Run(tmp_path / "again").go().weights == whole.weights
    assert Run(tmp_path / "other", seed=1).go().weights != whole.weights


def test_two_states_are_kept_and_the_last_epoch_needs_none(tmp_path):
    Run(tmp_path / "run").go()
    assert states(tmp_path / "run") == ["epoch000003", "epoch000004"]


def test_the_interval_thins_the_states(tmp_path):
    Run(tmp_path / "run", epochs=8, interval=3).go()
    assert states(tmp_path / "run") == ["epoch000003", "epoch000006"]
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="it must be a number of epochs, 1 or more"):
            Run(tmp_path / "run", interval=wrong)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_state_is_passed_over_with_a_warning(tmp_path, whole, damage, caplog):
    Run(tmp_path / "run").go(stop_in_epoch=4)
    last = max((tmp_path / "run" / "state").glob("*.pt"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes({"truncated": content[:100], "flipped": content, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        resumed = Run(tmp_path / "run", resume=True)
    assert f"'{last}' is damaged" in caplog.text
    assert resumed.trainer.state.epoch == 2
    assert resumed.go().weights == whole.weights
    assert last.with_suffix(".damaged").exists() or last.exists()


def test_two_damaged_states_are_an_error_that_leaves_them(tmp_path):
    Run(tmp_path / "run").go(stop_in_epoch=4)
    paths = list((tmp_path / "run" / "state").glob("*.pt"))
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no state in .* is whole; start without --resume"):
        Run(tmp_path / "run", resume=True)
    assert all(path.is_file() for path in paths)


def test_states_are_readable_without_running_code(tmp_path):
    Run(tmp_path / "run", scores=(0.1,) * EPOCHS).go(stop_in_epoch=3)
    for path in (tmp_path / "run" / "state").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        assert set(content["objects"]) == {"network", "optimizer", "lr_scheduler"}


# ---- best weights ----------------------------------------------------------------------------------------------------


def test_the_best_epoch_is_kept_whole_and_bare(tmp_path):
    run = Run(tmp_path / "run", scores=(0.1, 0.5, 0.3, 0.2, 0.4)).go()
    assert run.evaluator.state.best_metric_epoch == 2
    saved = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert list(saved) == list(run.network.state_dict())
    assert saved["0.weight"].ravel().tolist() != run.weights[:32], "not the last epoch's"
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_resumed_run_does_not_replace_better_weights(tmp_path):
    scores = (0.1, 0.5, 0.3, 0.2, 0.4)
    Run(tmp_path / "run", scores).go(stop_in_epoch=4)
    best = file_sha256(tmp_path / "run" / "model.pt")
    resumed = Run(tmp_path / "run", scores, resume=True)
    assert (resumed.evaluator.state.best_metric, resumed.evaluator.state.best_metric_epoch) == (0.5, 2)
    resumed.go()
    assert file_sha256(tmp_path / "run" / "model.pt") == best


def test_weights_that_are_newer_than_the_state_give_way_to_those_that_belong_to_it(tmp_path):
    """A crash between an epoch's validation and its state: the epoch is trained again, perhaps with another score."""
    run = Run(tmp_path / "run", scores=(0.1, 0.2, 0.3, 0.4, 0.5)).go(stop_in_epoch=4)
    best = file_sha256(tmp_path / "run" / "model.pt")
    run.evaluator.run(global_epoch=4)  # its score is better: model.pt is replaced, the state is not
    assert file_sha256(tmp_path / "run" / "model.pt") != best
    resumed = Run(tmp_path / "run", scores=(0.1, 0.2, 0.3, 0.0, 0.0), resume=True)
    assert file_sha256(tmp_path / "run" / "model.pt") == best
    resumed.go()
    assert file_sha256(tmp_path / "run" / "model.pt") == best


def test_lost_best_weights_are_replaced_by_the_next_validation(tmp_path, caplog):
    scores = (0.1, 0.5, 0.3, 0.2, 0.4)
    Run(tmp_path / "run", scores).go(stop_in_epoch=4)
    for path in (tmp_path / "run").glob("model*.pt"):
        path.unlink()
    Run(tmp_path / "run", scores, resume=True).go()
    assert "the best weights so far are not in" in caplog.text
    assert (tmp_path / "run" / "model.pt").is_file()


def test_workers_that_live_on_are_refused(tmp_path):
    run = Run(tmp_path)
    run.trainer.data_loader = DataLoader(run.dataset, num_workers=1, persistent_workers=True)
    handler = ResumableTraining(str(tmp_path), 0, {}, run.dataset, run.evaluator)
    with pytest.raises(ValueError, match=r"persistent_workers is True: .* set train::dataloader::persistent_workers"):
        handler.attach(run.trainer)


def test_a_full_disk_is_said_at_the_start(tmp_path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1, 1, 0))
    with pytest.raises(OSError, match="make room, or choose another disk by --run_dir"):
        Run(tmp_path / "run")


def test_a_write_that_fails_leaves_the_file_before_it(tmp_path, monkeypatch):
    Run(tmp_path / "run", scores=(0.1,) * EPOCHS).go()
    before = (tmp_path / "run" / "model.pt").read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    run = Run(tmp_path / "run", scores=(0.1,) * EPOCHS)
    with pytest.raises(OSError, match="No space left"):
        run.trainer.run()
    assert (tmp_path / "run" / "model.pt").read_bytes() == before
    assert not list((tmp_path / "run").rglob(".*.tmp"))
