"""PerformanceWeights: the teachers' Dice on training batches, by hand, and where they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from monai.engines import PrepareBatchExtraInput, SupervisedEvaluator
from monai.utils import set_determinism
from reading_teachers import NAMES, REGIONS, make_case, make_distiller
from torch import nn

from monai_kd.distillers import Distiller, Term
from monai_kd.engines import DistillationTrainer
from monai_kd.handlers import PerformanceWeights, ResumableTraining, TermSchedules
from monai_kd.losses import DiceJaccardCE

LABEL = [0, 0, 1, 1, 2, 2]
RIGHT = make_case(LABEL, LABEL, LABEL)
# flair: tumor 2 * 3 / (4 + 3), core 2 * 1 / (2 + 1); t2: tumor 2 * 4 / (4 + 6), core 0
HALF = make_case(LABEL, [0, 0, 0, 1, 1, 2], [1, 1, 1, 1, 1, 1])
EXPECTED = torch.tensor([[6 / 7, 2 / 3], [8 / 10, 0.0]])


def train(distiller: Any, batches: list[dict], epochs: int = 1, **settings: Any) -> DistillationTrainer:
    handler = PerformanceWeights(distiller, **settings)
    trainer = DistillationTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=batches,
        network=distiller,
        optimizer=torch.optim.SGD([p for p in distiller.parameters() if p.requires_grad], lr=0.01),
        prepare_batch=PrepareBatchExtraInput(extra_keys={"label": "label", "available": "available"}),
        train_handlers=[handler],
        decollate=False,
    )
    trainer.run()
    return trainer


def dice(distiller: Any) -> torch.Tensor:
    return distiller.terms["kd"].loss.dice


# ---- what is measured -----------------------------------------------------------------------------------------------


def test_the_first_dice_is_taken_as_it_is():
    distiller = make_distiller()
    train(distiller, [HALF])
    torch.testing.assert_close(dice(distiller), EXPECTED)


def test_later_ones_move_an_average():
    distiller = make_distiller()
    train(distiller, [HALF, RIGHT], decay=0.8)
    # a core that was never found starts from what is found first
    expected = torch.tensor([[0.8 * 6 / 7 + 0.2, 0.8 * 2 / 3 + 0.2], [0.8 * 0.8 + 0.2, 1.0]])
    torch.testing.assert_close(dice(distiller), expected)
    again = make_distiller()
    train(again, [HALF, RIGHT], decay=0.0)
    torch.testing.assert_close(dice(again), torch.ones(2, 2))


def test_dice_are_of_the_whole_batch_and_not_a_mean_over_samples():
    small = make_case([0, 0, 0, 0, 0, 1], [0] * 6, [0] * 6)
    batch = {key: torch.cat([HALF[key], small[key]]) for key in HALF}
    distiller = make_distiller()
    train(distiller, [batch])
    torch.testing.assert_close(dice(distiller)[:, 0], torch.tensor([2 * 3 / (5 + 3), 2 * 4 / (5 + 6)]))


def test_a_region_that_neither_has_moves_nothing():
    no_core = make_case([0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1])
    distiller = make_distiller()
    train(distiller, [HALF, no_core], decay=0.5)
    torch.testing.assert_close(dice(distiller)[0, 1], EXPECTED[0, 1])
    torch.testing.assert_close(dice(distiller)[:, 0], torch.tensor([0.5 * 6 / 7 + 0.5, 0.5 * 0.8 + 0.5 * 4 / 6]))


def test_a_sample_without_the_modality_does_not_count():
    missing = make_case([2] * 6, [0] * 6, [2] * 6, available=(0, 1, 1))  # of which flair knows nothing
    batch = {key: torch.cat([HALF[key], missing[key]]) for key in HALF}
    distiller = make_distiller()
    train(distiller, [batch])
    torch.testing.assert_close(dice(distiller)[0], EXPECTED[0])
    # t2 has 4 + 6 of 6 + 6 and 4 + 6 voxels right
    torch.testing.assert_close(dice(distiller)[1], torch.tensor([2 * 10 / (12 + 10), 2 * 6 / (6 + 8)]))
    alone = make_distiller()
    train(alone, [missing])
    assert dice(alone).tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_classes_of_no_region_and_ignored_voxels_are_told_apart():
    case = make_case([1, 1, 2, 0, 255, 255], [1, 2, 1, 2, 1, 2], [1, 1, 1, 1, 1, 1])
    distiller = make_distiller(regions={"edema": [1]})
    PerformanceWeights(distiller)
    views = distiller.views(case["image"], case["label"], available=case["available"])
    assert views["teachers/flair"].shape == (1, 3, 1, 6)
    PerformanceWeights(distiller)(None)
    # flair: 1 of the 2 labeled found, 2 predicted where the label is known; t2: 2 of 2 found, 4 predicted
    torch.testing.assert_close(dice(distiller), torch.tensor([[2 * 1 / (2 + 2)], [2 * 2 / (2 + 4)]]))
    everything = make_distiller(regions={"edema": [1]}, ignore_index=None)
    everything.views(case["image"], case["label"])
    PerformanceWeights(everything)(None)
    # 255 is a class like others then
    torch.testing.assert_close(dice(everything), torch.tensor([[2 * 1 / (2 + 3)], [2 * 2 / (2 + 6)]]))


def test_it_is_the_prediction_before_the_update():
    distiller = make_distiller()
    with torch.no_grad():
        distiller.group.networks["flair"].network.scale.fill_(-1e-4)  # one step makes it right
    handler = PerformanceWeights(distiller)
    seen = []
    trainer = DistillationTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[RIGHT],
        network=distiller,
        optimizer=torch.optim.SGD(distiller.parameters(), lr=1.0),
        prepare_batch=PrepareBatchExtraInput(extra_keys={"label": "label", "available": "available"}),
        train_handlers=[handler],
        decollate=False,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: seen.append(dice(distiller)[0, 0].item()))
    trainer.run()
    assert distiller.group.networks["flair"].network.scale > 0
    assert seen[0] < 1


# ---- where it goes --------------------------------------------------------------------------------------------------


def test_the_loss_weighs_the_better_teacher_more_from_then_on():
    distiller = make_distiller(mode="linear")
    loss = distiller.terms["kd"].loss
    even = loss.voxel_shares(torch.zeros(1, 3, 2, 2), None).flatten()
    assert even.tolist() == [0.5, 0.5]
    train(distiller, [HALF])
    shares = loss.voxel_shares(torch.zeros(1, 3, 2, 2), None).flatten()
    torch.testing.assert_close(shares, EXPECTED[:, 0] / EXPECTED[:, 0].sum())


def test_dice_are_metrics_and_curves_of_each_epoch():
    distiller = make_distiller()
    handler = PerformanceWeights(distiller, decay=0.0)
    trainer = train(distiller, [HALF])
    names = [f"dice_{name}_{region}" for name in NAMES for region in REGIONS]
    assert [trainer.state.metrics[name] for name in names] == pytest.approx(EXPECTED.flatten().tolist())
    trainer.state.run_record = {"curves": {"epoch": [1]}}
    handler._report(trainer)
    handler._report(trainer)
    curves = trainer.state.run_record["curves"]["teacher_dice"]
    assert set(curves) == {"flair/tumor", "flair/core", "t2/tumor", "t2/core"}
    assert curves["flair/tumor"] == pytest.approx([6 / 7, 6 / 7])


def test_from_validation_the_training_moves_nothing():
    distiller = make_distiller()
    trainer = train(distiller, [HALF], source="validation")
    assert not dice(distiller).any()
    assert trainer.state.metrics["dice_t2_core"] == 0  # still reported
    handler = PerformanceWeights(distiller, source="validation")
    assert handler.waits_for_validation
    assert not PerformanceWeights(distiller).waits_for_validation
    handler.set(EXPECTED)
    torch.testing.assert_close(dice(distiller), EXPECTED)


def test_a_distiller_without_the_term_needs_no_weights():
    plain = Distiller(nn.Conv2d(3, 3, 1), terms={"seg": Term(DiceJaccardCE())})
    handler = PerformanceWeights(plain)
    assert not handler.waits_for_validation
    trainer = DistillationTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[RIGHT],
        network=plain,
        optimizer=torch.optim.SGD(plain.parameters(), lr=0.01),
        prepare_batch=PrepareBatchExtraInput(extra_keys={"label": "label"}),
        train_handlers=[handler],
        decollate=False,
    )
    trainer.run()
    assert not any(name.startswith("dice_") for name in trainer.state.metrics)


class Wrapped(nn.Module):
    """What DistributedDataParallel looks like from outside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_wrapped_distiller_is_unwrapped():
    distiller = make_distiller()
    assert PerformanceWeights(Wrapped(distiller)).loss is distiller.terms["kd"].loss


# ---- state ----------------------------------------------------------------------------------------------------------


def resumable(run_dir: Path, stop_in_epoch: int = 0, **arguments: Any) -> Any:
    set_determinism(0)
    distiller = make_distiller(mode="region")
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=0.01)
    items = [{key: value[0] for key, value in case.items()} for case in (HALF, RIGHT, HALF, HALF)]
    dataset = CacheDataset(items, progress=False)
    handlers = [
        TermSchedules(distiller, {"kd": {"ramp": 0.5}}),
        PerformanceWeights(distiller),
        ResumableTraining(
            str(run_dir),
            0,
            {"network": distiller, "optimizer": optimizer},
            dataset,
            SupervisedEvaluator(torch.device("cpu"), items[:1], nn.Identity()),
            **arguments,
        ),
    ]
    trainer = DistillationTrainer(
        device="cpu",
        max_epochs=4,
        train_data_loader=DataLoader(dataset, batch_size=1, shuffle=True),
        network=distiller,
        optimizer=optimizer,
        prepare_batch=PrepareBatchExtraInput(extra_keys={"label": "label", "available": "available"}),
        train_handlers=handlers,
        decollate=False,
    )

    @trainer.on(Events.ITERATION_COMPLETED)
    def fail(engine: Any) -> None:
        if engine.state.epoch == stop_in_epoch and engine.state.iteration % 4 == 2:
            raise ConnectionError("power cut")

    if stop_in_epoch:
        with pytest.raises(ConnectionError):
            trainer.run()
    else:
        trainer.run()
    return distiller


def test_the_dice_are_part_of_a_resumed_training(tmp_path):
    whole = resumable(tmp_path / "whole")
    resumable(tmp_path / "run", stop_in_epoch=3)
    resumed = resumable(tmp_path / "run", resume=True)
    assert torch.equal(dice(resumed), dice(whole))
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key]), key


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, "decay is 1.0; it must be a number from 0 to below 1"),
        ({"decay": True}, "decay is True"),
        ({"source": "test"}, "source is 'test'; known: training, validation"),
        ({"term": "seg"}, "term 'seg' has the loss DiceJaccardCE, which weighs no teachers"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PerformanceWeights(make_distiller(), **settings)


def test_what_is_no_cooperative_distiller_is_refused():
    with pytest.raises(TypeError, match="needs a CooperativeDistiller, got Conv2d"):
        PerformanceWeights(nn.Conv2d(1, 1, 1))
    plain = Distiller(nn.Conv2d(3, 3, 1), terms={"kd": Term(DiceJaccardCE())})
    with pytest.raises(TypeError, match="needs a CooperativeDistiller, got Distiller"):
        PerformanceWeights(plain)
