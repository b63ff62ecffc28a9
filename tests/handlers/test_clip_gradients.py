"""ClipGradients: a norm for each network, before the optimizer's step and no other time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.engines import IterationEvents, PrepareBatchExtraInput, SupervisedTrainer
from torch import nn

from monai_kd.distillers import Distiller, Term
from monai_kd.engines import DistillationTrainer
from monai_kd.handlers import ClipGradients


def scalar_network(weight: float = 1.0) -> nn.Conv1d:
    network = nn.Conv1d(1, 1, 1, bias=False)
    network.weight.data.fill_(weight)
    return network


def norm(module: nn.Module) -> float:
    return sum(p.grad.square().sum().item() for p in module.parameters() if p.grad is not None) ** 0.5


def trained(max_norm: float, teacher_weight: float = 1.0, steps: int = 1, iterations: int = 1) -> tuple[list, float]:
    """Co-train two scalar networks on ones and threes; return the norms before each step, and the student."""
    student, teacher = scalar_network(), scalar_network(2.0)
    terms = {
        "seg": Term(nn.MSELoss(), "student/logits", "label"),  # gradient 2 (w - 3) = -4
        "teacher": Term(nn.MSELoss(), "teacher/logits", "label", weight=teacher_weight),  # -2 times the weight
    }
    distiller = Distiller(student, {"teacher": teacher}, terms, freeze=False)
    found: list[tuple[float, float]] = []
    trainer = DistillationTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(1, 1, 4), "label": torch.full((1, 1, 4), 3.0)}] * iterations,
        network=distiller,
        optimizer=torch.optim.SGD(distiller.parameters(), lr=0.1),
        prepare_batch=PrepareBatchExtraInput(extra_keys={"label": "label"}),
        train_handlers=[ClipGradients({"student": student, "teachers": teacher}, max_norm)],
        accumulation_steps=steps,
        decollate=False,
    )
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED, lambda _engine: found.append((norm(student), norm(teacher)))
    )
    trainer.run()
    return found, student.weight.item()


def test_each_network_has_a_norm_of_its_own():
    found, student = trained(max_norm=3.0)
    assert found == [pytest.approx((3.0, 2.0), rel=1e-5)]
    assert student == pytest.approx(1.3, rel=1e-5)  # one step of 0.1 * 3


@pytest.mark.parametrize("teacher_weight", [0.0, 1.0, 1e4])
def test_the_students_step_does_not_depend_on_the_teachers_gradient(teacher_weight):
    found, student = trained(3.0, teacher_weight)
    assert found[0][1] == pytest.approx(min(3.0, 2.0 * teacher_weight), rel=1e-5)
    assert student == trained(3.0)[1]


def test_a_gradient_below_the_norm_stays_as_it_is():
    found, student = trained(max_norm=12.0)
    assert found == [(4.0, 2.0)]
    assert student == pytest.approx(1.4)


def test_with_gradient_accumulation_it_acts_on_what_has_come_together():
    # each iteration brings half of -4; the first waits, the second completes the step
    found, student = trained(3.0, steps=2, iterations=2)
    assert found == [pytest.approx((2.0, 1.0), rel=1e-5), pytest.approx((3.0, 2.0), rel=1e-5)]
    assert student == pytest.approx(1.3, rel=1e-5)


def test_the_direction_is_kept_over_all_weights_of_a_module():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    module(torch.full((2, 3), 5.0)).sum().backward()
    before = [p.grad.clone() for p in module.parameters()]
    scale = 0.5 / norm(module)
    handler = ClipGradients({"all": module}, 0.5)

    class Engine:
        pass

    handler(Engine())
    for parameter, gradient in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad, scale * gradient)


def test_modules_without_gradients_are_passed_over():
    frozen, network = scalar_network().requires_grad_(False), scalar_network()
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(1, 1, 4), "label": torch.full((1, 1, 4), 3.0)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=nn.MSELoss(),
        train_handlers=[ClipGradients({"student": network, "teachers": frozen, "nothing": nn.Identity()}, 1.0)],
        decollate=False,
    )
    trainer.run()
    assert network.weight.item() == pytest.approx(1.1)


def test_gradients_are_unscaled_before_they_are_measured():
    network = scalar_network()
    network(torch.ones(1, 1, 1)).sum().backward()

    class Scaler:
        def unscale_(self, optimizer: Any) -> None:
            assert optimizer == "optimizer"
            network.weight.grad.div_(8.0)

    class Engine:
        scaler, optimizer = Scaler(), "optimizer"

    network.weight.grad.fill_(16.0)
    ClipGradients({"student": network}, 12.0)(Engine())
    assert network.weight.grad.item() == 2.0  # below the norm, once it is in its own scale


@pytest.mark.parametrize("max_norm", [0, -1.0, True, "12", None])
def test_a_norm_out_of_range_is_refused(max_norm):
    with pytest.raises(ValueError, match="it must be a number above 0"):
        ClipGradients({"student": scalar_network()}, max_norm)


def test_no_module_is_refused():
    with pytest.raises(ValueError, match="modules is empty"):
        ClipGradients({})
