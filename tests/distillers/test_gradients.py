"""term_gradient_norms: the norms by hand and by backward, and a distiller that looks as if nothing had happened."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn

from monai_kd.distillers import Distiller, Term
from monai_kd.distillers.gradients import term_gradient_norms
from monai_kd.inferers import AutocastInferer
from monai_kd.losses import SoftLogitKL


def net(channels: int = 4, seed: int = 0, dropout: float = 0.2) -> UNet:
    torch.manual_seed(seed)
    return UNet(2, 1, 3, (channels, 2 * channels), (2,), num_res_units=1, norm="batch", dropout=dropout)


def distiller(**kwargs: Any) -> Distiller:
    adapter = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16))
    terms = {
        "seg": Term(DiceCELoss(softmax=True, to_onehot_y=True), "student/logits", "label"),
        "soft": Term(SoftLogitKL(2.0), "student/logits", "teacher/logits", weight=-0.5),
        "hint": Term(nn.MSELoss(), "student/bottleneck", "teacher/bottleneck", weight=3.0, adapter=adapter),
    }
    return Distiller(net(), {"teacher": net(8, seed=1)}, terms, **kwargs)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, 16, 16, generator=generator)
    return image, (image > 0).float() + (image > 0.7).float()


class LinearStudent(nn.Module):
    """Logits ``w * x`` of a batch of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0, 5.0]))
        self.frozen = nn.Parameter(torch.tensor(1.0), requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.frozen * self.w * image


def test_the_norms_of_a_linear_student_are_those_computed_by_hand():
    terms = {
        "square": Term(lambda student, target: ((student - target) ** 2).sum(), weight=0.5),
        "sum": Term(lambda student, target: student.sum() + 0 * target.sum(), weight=-2.0),
        "constant": Term(lambda student, target: target.sum() * 0),
    }
    linear = Distiller(LinearStudent(), terms=terms)
    linear.terms["square"].factor = 0.1
    image, label = torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    # logits (6, 5), residuals (6, 4): gradient 2 * r on logits, times x on w
    on_logits = {"square": 0.05 * 2 * math.hypot(6, 4), "sum": 2 * math.sqrt(2), "constant": 0.0}
    on_weights = {"square": 0.05 * 2 * math.hypot(6 * 3, 4), "sum": 2 * math.hypot(3, 1), "constant": 0.0}
    assert term_gradient_norms(linear, image, label, wrt="logits") == pytest.approx(on_logits)
    assert term_gradient_norms(linear, image, label) == pytest.approx(on_weights)
    plain = term_gradient_norms(linear, image, label, weighted=False)
    assert plain == pytest.approx({"square": 2 * math.hypot(18, 4), "sum": math.hypot(3, 1), "constant": 0.0})


def test_each_norm_is_that_of_a_backward_pass_on_the_term_alone(batch):
    network = distiller()
    norms = term_gradient_norms(network, *batch)
    assert list(norms) == ["seg", "soft", "hint"]
    for name, norm in norms.items():
        alone = copy.deepcopy(network)
        for other, term in alone.terms.items():
            term.factor = float(other == name)
        with torch.random.fork_rng():
            alone(*batch).loss.backward()
        grads = [parameter.grad.flatten() for parameter in alone.student.parameters() if parameter.grad is not None]
        assert norm == pytest.approx(torch.cat(grads).norm().item(), rel=1e-4), name
        assert norm > 0


def test_the_norm_is_linear_in_weight_and_factor(batch):
    network = distiller()
    before = term_gradient_norms(network, *batch)
    network.terms["hint"].weight *= 2
    network.terms["soft"].factor = 0.25
    after = term_gradient_norms(network, *batch)
    expected = {"seg": before["seg"], "soft": 0.25 * before["soft"], "hint": 2 * before["hint"]}
    assert after == pytest.approx(expected, rel=1e-6)


def everything(network: Distiller) -> dict[str, Tensor]:
    parts = {"distiller": network, "teacher": network.frozen_teachers["teacher"]}
    return {f"{part}/{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed(batch, training):
    network = distiller().train(training)
    network(*batch).loss.backward()
    before = {key: value.clone() for key, value in everything(network).items()}
    buffers = dict(network.named_buffers())
    grads = [parameter.grad if parameter.grad is None else parameter.grad.clone() for parameter in network.parameters()]
    generator = torch.get_rng_state()
    term_gradient_norms(network, *batch)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[key]) for key, value in everything(network).items())
    assert all(buffer is buffers[key] for key, buffer in network.named_buffers())
    assert sum("running_mean" in key for key in buffers) > 2
    for parameter, grad in zip(network.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    assert network.training is training


def test_nothing_is_changed_by_an_error_either(batch):
    network = distiller()
    buffers, generator = dict(network.named_buffers()), torch.get_rng_state()
    network.terms["hint"].loss = nn.Bilinear(3, 3, 1)  # shapes that do not fit
    torch.set_rng_state(generator)
    with pytest.raises(RuntimeError):
        term_gradient_norms(network, *batch)
    assert all(buffer is buffers[key] for key, buffer in network.named_buffers())
    assert torch.equal(torch.get_rng_state(), generator)


class Centering(nn.Module):
    """A loss that assigns its buffer anew and counts its calls in a second place of the same buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(1))
        self.inner = nn.Module()
        self.inner.register_buffer("same", self.center)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        self.inner.same += 1  # type: ignore[operator]
        assert self.center is self.inner.same
        self.center = self.center + student.detach().mean()
        return (student - self.center).square().mean()


def test_buffers_that_are_shared_or_assigned_anew_come_back(batch):
    loss = Centering()
    center = loss.center
    term_gradient_norms(Distiller(net(), terms={"seg": Term(loss)}), *batch)
    assert loss.center is center
    assert loss.inner.same is center
    assert center.item() == 0.0


def test_a_measurement_works_where_gradients_are_off(batch):
    network = distiller()
    expected = term_gradient_norms(network, *batch)
    with torch.no_grad():
        assert term_gradient_norms(network, *batch) == expected


def test_dropout_draws_the_mask_that_the_next_forward_pass_draws(batch):
    network = distiller()
    first = term_gradient_norms(network, *batch)
    assert term_gradient_norms(network, *batch) == first
    torch.rand(1)
    assert term_gradient_norms(network, *batch) != first


def test_terms_on_features_do_not_reach_the_logits(batch):
    norms = term_gradient_norms(distiller(), *batch, wrt="logits")
    assert norms["hint"] == 0.0
    assert norms["soft"] > 0


def test_adapters_and_co_trained_teachers_do_not_count(batch):
    network = distiller(freeze=False)
    terms = {**dict(network.terms.items()), "own": Term(nn.MSELoss(), "teacher/logits", "student/logits")}
    co_trained = Distiller(network.student, {"teacher": network.trained_teachers["teacher"]}, terms, freeze=False)
    expected = term_gradient_norms(network, *batch)
    assert term_gradient_norms(co_trained, *batch) == pytest.approx({**expected, "own": 0.0})
    for module in (network.terms["hint"].adapter, network.trained_teachers["teacher"]):
        for parameter in module.parameters():
            parameter.requires_grad = False
    assert term_gradient_norms(network, *batch) == pytest.approx(expected)


def test_metatensors_and_cached_views_are_taken(batch):
    image, label = batch
    live = Distiller(net(), {"teacher": net(8, seed=1)}, {"soft": Term(SoftLogitKL(2.0), target="teacher/logits")})
    with torch.no_grad():
        logits = live.frozen_teachers["teacher"](image)
    cached = Distiller(
        live.student, terms={"soft": Term(SoftLogitKL(2.0), target="teacher/logits")}, cached={"t": "teacher/logits"}
    )
    expected = term_gradient_norms(live, MetaTensor(image), MetaTensor(label))
    assert term_gradient_norms(cached, image, label, t=logits) == pytest.approx(expected)


def test_the_inferer_opens_autocast_for_the_forward_pass(batch):
    network = distiller()
    exact = term_gradient_norms(network, *batch)
    cast = term_gradient_norms(network, *batch, inferer=AutocastInferer(SimpleInferer()))
    for name in exact:
        assert cast[name] != exact[name]
        assert cast[name] == pytest.approx(exact[name], rel=0.05)


def test_a_scale_keeps_gradients_that_float16_would_lose(batch):
    terms = {"tiny": Term(lambda student, target: 1e-7 * student.square().mean())}
    network = Distiller(net(dropout=0.0), terms=terms)
    half = AutocastInferer(SimpleInferer(), dtype="float16")
    exact = term_gradient_norms(network, *batch)["tiny"]
    assert exact > 0
    assert term_gradient_norms(network, *batch, inferer=half)["tiny"] < 0.5 * exact
    scaled = term_gradient_norms(network, *batch, inferer=half, scale=2.0**16)["tiny"]
    assert scaled == pytest.approx(exact, rel=0.05)


def test_a_scale_that_overflows_is_lowered(batch):
    network = Distiller(net(dropout=0.0), terms={"seg": Term(lambda student, target: 10 * student.square().mean())})
    half = AutocastInferer(SimpleInferer(), dtype="float16")
    exact = term_gradient_norms(network, *batch)["seg"]
    scaled = term_gradient_norms(network, *batch, inferer=half, scale=2.0**40)["seg"]
    assert scaled == pytest.approx(exact, rel=0.05)


def test_a_gradient_that_is_not_finite_is_handed_back_as_it_is(batch):
    network = Distiller(net(), terms={"seg": Term(lambda student, target: student.mean() * math.nan)})
    assert math.isnan(term_gradient_norms(network, *batch, scale=4.0)["seg"])


def test_an_unknown_place_and_a_student_that_does_not_train_are_refused(batch):
    network = distiller()
    with pytest.raises(ValueError, match="wrt is 'weights'; known: parameters, logits"):
        term_gradient_norms(network, *batch, wrt="weights")
    for parameter in network.student.parameters():
        parameter.requires_grad = False
    with pytest.raises(ValueError, match="no parameter of the student trains"):
        term_gradient_norms(network, *batch)
