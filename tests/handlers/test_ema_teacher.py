"""EMATeacher: when the average moves, and by how much."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import PrepareBatchExtraInput
from torch import nn

from monai_kd.distillers import Distiller, Term
from monai_kd.distillers.self_distiller import SelfDistiller
from monai_kd.engines import DistillationTrainer
from monai_kd.handlers.ema_teacher import EMATeacher


def tiny_distiller(weight: float = 1.0) -> SelfDistiller:
    network = nn.Conv1d(1, 1, 1, bias=False)
    network.weight.data.fill_(weight)
    terms = {
        "seg": Term(nn.MSELoss(), "student/logits", "label"),
        "self": Term(nn.MSELoss(), "student/logits", "ema/logits", weight=0.0),
    }
    return SelfDistiller(network, terms)


def value(network: nn.Module) -> float:
    return network.weight.item()


def tiny_trainer(distiller: SelfDistiller, handler: EMATeacher, epochs: int = 2, steps: int = 1) -> DistillationTrainer:
    data = [{"image": torch.ones(1, 1, 4), "label": torch.full((1, 1, 4), 3.0)} for _ in range(3)]
    return DistillationTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=data,
        network=distiller,
        optimizer=torch.optim.SGD(distiller.parameters(), lr=0.1),
        prepare_batch=PrepareBatchExtraInput(extra_keys={"label": "label"}),
        train_handlers=[handler],
        accumulation_steps=steps,
        decollate=False,
    )


def test_the_average_follows_each_step_by_hand():
    distiller = tiny_distiller()
    tiny_trainer(distiller, EMATeacher(distiller, 0.5)).run()
    student = average = 1.0
    for _ in range(6):
        student -= 0.1 * 2 * (student - 3)
        average = 0.5 * average + 0.5 * student
    assert value(distiller.student) == pytest.approx(student, rel=1e-6)
    assert value(distiller.ema) == pytest.approx(average, rel=1e-6)


def test_the_momentum_goes_from_first_to_last_over_the_training():
    distiller = tiny_distiller()
    momenta = []
    distiller.update = momenta.append
    tiny_trainer(distiller, EMATeacher(distiller, [0.5, 1.0])).run()
    assert momenta == pytest.approx([0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])  # the first one copies the student


def test_gradient_accumulation_moves_the_average_only_when_the_student_moves():
    distiller = tiny_distiller()
    moved = []
    update, students = distiller.update, []

    def record(momentum: float) -> None:
        students.append(value(distiller.student))
        moved.append(momentum)
        update(momentum)

    distiller.update = record
    tiny_trainer(distiller, EMATeacher(distiller, [0.5, 1.0]), steps=2).run()
    # of epochs of 3 iterations, 2 and 3 end with a step
    assert moved == pytest.approx([0.0, 0.6, 0.7, 0.9, 1.0])
    assert len(set(students)) == len(students)


def test_a_training_starts_from_the_student_as_it_is_then():
    distiller = tiny_distiller()
    distiller.student.weight.data.fill_(3.0)  # weights loaded after construction, at the optimum
    tiny_trainer(distiller, EMATeacher(distiller, 0.9), epochs=1).run()
    assert value(distiller.ema) == pytest.approx(3.0)


def test_a_resumed_training_ends_with_the_same_average():
    whole = tiny_distiller()
    tiny_trainer(whole, EMATeacher(whole, [0.5, 0.9]), epochs=4).run()
    first = tiny_distiller()
    trainer = tiny_trainer(first, EMATeacher(first, [0.5, 0.9]), epochs=4)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda engine: engine.terminate())
    trainer.run()
    second = tiny_distiller(7.0)
    second.load_state_dict(first.state_dict())
    resumed = tiny_trainer(second, EMATeacher(second, [0.5, 0.9]), epochs=4)
    resumed.load_state_dict({"epoch": 2, "max_epochs": 4, "epoch_length": 3})
    resumed.run()
    for key, tensor in second.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[key]), key


def test_it_works_with_any_engine_that_knows_its_length():
    distiller = tiny_distiller()
    engine = Engine(lambda _engine, _batch: distiller.student.weight.data.add_(1.0))
    EMATeacher(distiller, 0.5).attach(engine)
    engine.run([0, 0], max_epochs=1)
    assert value(distiller.ema) == pytest.approx(2.25)  # 1, then (1 + 2) / 2, then (1.5 + 3) / 2
    endless = Engine(lambda _engine, _batch: None)
    EMATeacher(distiller, 0.5).attach(endless)
    with pytest.raises(ValueError, match="give the trainer an epoch_length"):
        endless.run(iter([0, 0]), max_epochs=1)


@pytest.mark.parametrize("momentum", [1.5, -0.1, [0.9, 1.1], [], [0.1, 0.2, 0.3], "0.9", True, [0.9, None]])
def test_bad_momentum_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum is"):
        EMATeacher(tiny_distiller(), momentum)


def test_a_distiller_without_an_average_is_refused():
    plain = Distiller(nn.Conv1d(1, 1, 1), terms={"seg": Term(nn.MSELoss(), "student/logits", "label")})
    with pytest.raises(TypeError, match="EMATeacher needs a SelfDistiller, got Distiller"):
        EMATeacher(plain)
