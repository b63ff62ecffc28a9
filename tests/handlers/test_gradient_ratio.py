"""GradientRatios: the pull of each term while a training runs, which is the same training with and without it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.engines import IterationEvents, PrepareBatchExtraInput
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from monai_kd.distillers import Distiller, Term
from monai_kd.distillers.gradients import term_gradient_norms
from monai_kd.engines import DistillationTrainer
from monai_kd.handlers.gradient_ratio import GradientRatios
from monai_kd.handlers.schedules import TermSchedules
from monai_kd.inferers import AutocastInferer
from monai_kd.losses import SoftLogitKL


def net(channels: int = 4, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(2, 1, 3, (channels, 2 * channels), (2,), num_res_units=1, norm="batch", dropout=0.2)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, label[:, 0].long())


def distiller() -> Distiller:
    terms = {
        "seg": Term(cross_entropy, weight=2.0),
        "soft": Term(SoftLogitKL(2.0), target="teacher/logits", weight=0.5),
    }
    return Distiller(net(), {"teacher": net(8, seed=1)}, terms)


def trainer_of(network: Distiller, handlers: list[Any], epochs: int = 2, **options: Any) -> DistillationTrainer:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(1, 8, 8, generator=generator) for _ in range(6)]
    cases = [{"image": image, "label": (image > 0).float() + (image > 0.7).float()} for image in images]
    return DistillationTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(cases), batch_size=2),  # 3 batches an epoch
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        prepare_batch=PrepareBatchExtraInput(extra_keys={"label": "label"}),
        train_handlers=handlers,
        **options,
    )


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(item.step, item.value) for item in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_ratios_go_to_the_log_and_to_tensorboard_every_interval(tmp_path, caplog):
    network = distiller()
    handler = GradientRatios(network, interval=2, log_dir=str(tmp_path))
    with caplog.at_level(logging.INFO, "monai_kd"):
        trainer_of(network, [handler]).run()
    lines = [record.getMessage() for record in caplog.records if "gradient" in record.getMessage()]
    assert [line.split(":")[0] for line in lines] == [f"iteration {i}, gradient relative to seg" for i in (2, 4, 6)]
    assert lines[-1].endswith(f": soft {handler.ratios['soft']:.3g}")
    found = curves(tmp_path)
    assert set(found) == {"gradient/seg", "gradient/soft"}
    assert found["gradient/seg"] == [(2, 1.0), (4, 1.0), (6, 1.0)]
    assert [step for step, _ in found["gradient/soft"]] == [2, 4, 6]
    assert found["gradient/soft"][-1][1] == pytest.approx(handler.ratios["soft"])
    assert handler.ratios["soft"] > 0


def test_a_training_that_is_measured_ends_with_the_same_bits(tmp_path):
    ends = []
    for measured in (True, False):
        network = distiller()
        torch.manual_seed(3)
        handlers = [GradientRatios(network, interval=1, log_dir=str(tmp_path))] if measured else []
        trainer_of(network, handlers, accumulation_steps=2).run()
        ends.append({key: value.clone() for key, value in network.state_dict().items()})
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_the_ratio_is_that_of_the_batch_and_the_weights_before_the_step():
    network = distiller()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    handler, by_hand = GradientRatios(network, interval=1), []
    trainer = trainer_of(network, [TermSchedules(network, {"soft": {"ramp": 1.0}}), handler])

    def measure(engine: Engine) -> None:
        assert network.training
        norms = term_gradient_norms(network, engine.state.output["image"], engine.state.output["label"])
        by_hand.append(norms["soft"] / norms["seg"])

    seen = []
    trainer.add_event_handler(IterationEvents.FORWARD_COMPLETED, measure)
    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda _: seen.append(handler.ratios["soft"]))
    trainer.run()
    assert len(seen) == 6
    assert seen == pytest.approx(by_hand, rel=1e-5)
    assert seen[-1] > 3 * seen[0]  # the ramp is in it


def test_the_trainers_own_autocast_is_used():
    ratios = []
    for enabled in (False, True):
        network = distiller()
        torch.manual_seed(3)
        handler = GradientRatios(network, interval=1)
        trainer_of(network, [handler], epochs=1, inferer=AutocastInferer(SimpleInferer(), enabled=enabled)).run()
        ratios.append(handler.ratios["soft"])
    assert ratios[0] != ratios[1]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.1)


def test_a_ratio_to_a_reference_without_gradient_is_nan():
    network = distiller()
    handler = GradientRatios(network, interval=1)
    trainer_of(network, [TermSchedules(network, {"seg": {"stop": 0}}), handler], epochs=1).run()
    assert all(math.isnan(ratio) for ratio in handler.ratios.values())


class Wrapped(nn.Module):
    """What DistributedDataParallel looks like from outside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_distiller_wrapped_for_distributed_training_is_measured():
    network = distiller()
    handler = GradientRatios(Wrapped(network), interval=3)
    trainer_of(network, [handler], epochs=1).run()
    assert set(handler.ratios) == {"seg", "soft"}


def test_only_the_first_of_several_processes_logs(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("monai_kd.handlers.gradient_ratio.is_main_process", lambda: False)
    network = distiller()
    handler = GradientRatios(network, interval=3, log_dir=str(tmp_path))
    with caplog.at_level(logging.INFO, "monai_kd"):
        trainer_of(network, [handler], epochs=1).run()
    assert set(handler.ratios) == {"seg", "soft"}, "all processes measure: a loss may talk to the others"
    assert not [record for record in caplog.records if "gradient" in record.getMessage()]
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_named():
    network = distiller()
    with pytest.raises(ValueError, match="the reference 'sgm' is no term of this distiller; known: seg, soft"):
        GradientRatios(network, "sgm")
    for interval in (0, -1, 1.5, True, "50"):
        with pytest.raises(ValueError, match=r"interval is .*; give a whole number of iterations, at least 1"):
            GradientRatios(network, interval=interval)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="GradientRatios needs a Distiller, got Linear"):
        GradientRatios(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="GradientRatios belongs to a trainer, got Engine"):
        GradientRatios(network).attach(Engine(lambda *_: None))
    network.terms["seg"].weight = 0.0
    with pytest.raises(ValueError, match="the reference term 'seg' has weight 0"):
        GradientRatios(network)
