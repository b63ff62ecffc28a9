"""DistillationTrainer: MONAI's loop on a Distiller, with plain tensors and named terms in its output."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import IterationEvents, PrepareBatchExtraInput
from monai.handlers import MeanDice, from_engine
from monai.inferers import SimpleInferer
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks import one_hot
from monai.networks.nets import UNet
from monai.transforms import AsDiscreted, Compose, Lambdad
from torch import Tensor, nn

from monai_kd.distillers import Distiller, DistillOutput, Term
from monai_kd.engines import DistillationTrainer
from monai_kd.inferers import AutocastInferer
from monai_kd.losses import SoftLogitKL


def tiny_net(channels: int = 4, norm: str = "instance", seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(3, 1, 3, channels=(channels, 2 * channels), strides=(2,), num_res_units=1, norm=norm)


def voxel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """A mean over cases, so that two halves of a batch average to the whole; DiceCE does not."""
    return F.cross_entropy(logits, target[:, 0].long())


def distiller(soft_weight: float = 0.5, norm: str = "instance", seg_loss: Any = None) -> Distiller:
    terms = {
        "seg": Term(seg_loss or DiceCELoss(softmax=True, to_onehot_y=True), "student/logits", "label"),
        "soft": Term(SoftLogitKL(2.0), "student/logits", "teacher/logits", weight=soft_weight),
    }
    return Distiller(tiny_net(norm=norm), {"teacher": tiny_net(8, norm=norm, seed=1)}, terms)


class Early(Distiller):
    """Takes gradients in its forward pass, and must know what the loss will be multiplied by."""

    loss_scale = 1.0

    def views(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        self.seen = [*getattr(self, "seen", []), self.loss_scale]
        return super().views(*args, **kwargs)


def learnable_cases(count: int = 4) -> list[dict[str, Tensor]]:
    """Noise whose label is its own intensity class, so that a tiny network can learn it."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(1, 8, 8, 8, generator=generator) for _ in range(count)]
    return [{"image": image, "label": (image > -0.5).float() + (image > 0.5).float()} for image in images]


def trainer_of(network: nn.Module, batch_size: int = 2, epochs: int = 1, lr: float = 0.1, **options: Any):
    loader = DataLoader(Dataset(learnable_cases()), batch_size=batch_size)
    return DistillationTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=lr),
        prepare_batch=PrepareBatchExtraInput(extra_keys={"label": "label"}),
        **options,
    )


def outputs_after_the_loss(trainer: Engine) -> list[dict[str, Any]]:
    """Collect ``state.output`` of every iteration, as metrics and handlers of the whole batch see it."""
    seen: list[dict[str, Any]] = []
    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, lambda engine: seen.append(dict(engine.state.output)))
    return seen


def test_output_holds_prediction_loss_and_every_term_unweighted():
    network = distiller(soft_weight=0.5)
    trainer = trainer_of(network, lr=0.0)
    seen = outputs_after_the_loss(trainer)
    trainer.run()
    assert len(seen) == 2
    for output, first in zip(seen, (0, 2), strict=True):
        assert set(output) == {"image", "label", "pred", "loss", "seg", "soft", "weighted/seg", "weighted/soft"}
        assert isinstance(output["pred"], Tensor)
        assert output["pred"].shape == (2, 3, 8, 8, 8)
        batch = learnable_cases()[first : first + 2]
        image, label = (torch.stack([case[key] for case in batch]) for key in ("image", "label"))
        with torch.no_grad():
            student, teacher = network.student(image), network.frozen_teachers["teacher"](image)
            seg = DiceCELoss(softmax=True, to_onehot_y=True)(student, label).item()
            soft = SoftLogitKL(2.0)(student, teacher).item()
        assert soft > 0
        assert output["seg"].item() == pytest.approx(seg, rel=1e-5)
        assert output["soft"].item() == pytest.approx(soft, rel=1e-5)
        assert output["weighted/soft"].item() == pytest.approx(0.5 * soft, rel=1e-5)
        assert output["loss"].item() == pytest.approx(seg + 0.5 * soft, rel=1e-5)


def test_decollated_output_keeps_one_record_per_case_with_the_terms():
    trainer = trainer_of(distiller())
    trainer.run()
    records = trainer.state.output
    assert [type(record) for record in records] == [dict, dict]
    for record in records:
        assert record["pred"].shape == (3, 8, 8, 8)
        assert record["loss"] == pytest.approx(record["seg"] + 0.5 * record["soft"], rel=1e-5)


def test_an_epoch_changes_the_student_and_not_one_bit_of_the_teacher():
    network = distiller(norm="batch")  # running statistics would move in training mode
    teacher = network.frozen_teachers["teacher"]
    teacher_before, student_before = copy.deepcopy(teacher.state_dict()), copy.deepcopy(network.student.state_dict())
    assert any("running_mean" in key for key in teacher_before)
    trainer_of(network).run()
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, teacher_before[key]), key
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    moved = {key: not torch.equal(value, student_before[key]) for key, value in network.student.state_dict().items()}
    # a bias in front of a batch norm has no gradient
    assert all(moved[key] for key in moved if not key.endswith("conv.bias"))
    assert sum(moved.values()) > 10


def test_loss_decreases_with_training():
    trainer = trainer_of(distiller(), epochs=8, lr=0.3)
    seen = outputs_after_the_loss(trainer)
    trainer.run()
    losses = [output["loss"].item() for output in seen]
    assert len(losses) == 16
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])


def test_a_loss_function_is_refused():
    with pytest.raises(TypeError, match="takes no loss_function: give the Distiller a Term with that loss"):
        trainer_of(distiller(), loss_function=nn.MSELoss())


def test_a_network_that_is_no_distiller_is_refused():
    with pytest.raises(TypeError, match="needs a Distiller as its network, got UNet"):
        trainer_of(tiny_net())


def weights_after_an_epoch(batch_size: int, accumulation_steps: int) -> list[Tensor]:
    network = distiller(seg_loss=voxel_cross_entropy)
    trainer_of(network, batch_size=batch_size, accumulation_steps=accumulation_steps).run()
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_accumulating_two_batches_equals_one_batch_of_twice_the_size():
    accumulated, whole, apart = (weights_after_an_epoch(*sizes) for sizes in ((1, 2), (2, 1), (1, 1)))
    for ours, theirs in zip(accumulated, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    # four steps instead of two: the comparison can tell schedules apart
    assert max((a - b).abs().max().item() for a, b in zip(accumulated, apart, strict=True)) > 1e-3


def test_runs_under_bfloat16_autocast_with_terms_close_to_float32():
    seen = {}
    for enabled in (False, True):
        inferer = AutocastInferer(SimpleInferer(), enabled=enabled)
        trainer = trainer_of(distiller(), inferer=inferer)
        seen[enabled] = outputs_after_the_loss(trainer)
        trainer.run()
    exact, cast = seen[False][0], seen[True][0]
    assert exact["pred"].dtype == torch.float32
    assert cast["pred"].dtype == torch.bfloat16
    assert cast["loss"].dtype == torch.float32
    for name in ("loss", "seg", "soft"):
        assert cast[name].item() != exact[name].item()
        assert cast[name].item() == pytest.approx(exact[name].item(), rel=0.05)


def test_training_postprocessing_and_metrics_see_tensors_not_the_record():
    network = distiller()
    seen = []

    def note(value: Any) -> Any:
        seen.append(value)
        return value

    steps = Compose(
        [Lambdad(keys="pred", func=note), AsDiscreted(keys=["pred", "label"], argmax=(True, False), to_onehot=3)]
    )
    metric = MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
    trainer = trainer_of(network, lr=0.0, postprocessing=steps, key_train_metric={"train_mean_dice": metric})
    trainer.run()
    assert len(seen) == 4
    assert all(isinstance(value, Tensor) and value.shape == (3, 8, 8, 8) for value in seen)
    assert not any(isinstance(value, DistillOutput) for value in seen)
    image, label = (torch.stack([case[key] for case in learnable_cases()]) for key in ("image", "label"))
    with torch.no_grad():
        classes = network.student(image).argmax(1, keepdim=True)
    by_hand = compute_dice(one_hot(classes, 3), one_hot(label, 3), include_background=False).mean().item()
    assert trainer.state.metrics["train_mean_dice"] == pytest.approx(by_hand, rel=1e-5)


class Wrapped(nn.Module):
    """What DistributedDataParallel looks like from outside: the module under ``module``, its forward passed on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Tensor, **kwargs: Tensor) -> DistillOutput:
        return self.module(*args, **kwargs)


def test_a_distiller_wrapped_for_distributed_training_trains_the_same():
    bare, wrapped = distiller(), Wrapped(distiller())
    trainer_of(bare).run()
    trainer_of(wrapped).run()
    for ours, theirs in zip(wrapped.module.parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(TypeError, match="needs a Distiller as its network, got Wrapped"):
        trainer_of(Wrapped(tiny_net()))


def test_handlers_of_monai_and_ignite_fire_as_in_any_trainer():
    trainer = trainer_of(distiller(), epochs=2)
    counts = dict.fromkeys((Events.EPOCH_COMPLETED, Events.ITERATION_COMPLETED, IterationEvents.MODEL_COMPLETED), 0)

    def count(_engine: Engine, event: Any) -> None:
        counts[event] += 1

    for event in counts:
        trainer.add_event_handler(event, count, event)
    trainer.run()
    assert list(counts.values()) == [2, 4, 4]


def test_a_distiller_that_takes_gradients_early_is_told_the_loss_scale_of_each_iteration():
    network = Early(tiny_net(), terms={"seg": Term(voxel_cross_entropy)})
    trainer = trainer_of(network)
    trainer.run()
    assert network.seen == [1.0, 1.0]
    scales = iter((512.0, 256.0))
    trainer = trainer_of(network)
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine, "scaler", _Scaler(scales)))
    network.seen = []
    trainer.run()
    assert network.seen == [512.0, 256.0]


class _Scaler:
    """What AMP's scaler tells; without CUDA there is none."""

    def __init__(self, scales: Any) -> None:
        self.scales = scales

    def get_scale(self) -> float:
        return next(self.scales)
