"""SoftLogitKL and SoftBernoulliKL: values by hand and from independent implementations, and their properties."""

from __future__ import annotations

import math

import pytest
import torch

from monai_kd.losses import SoftBernoulliKL, SoftLogitKL

STUDENT = torch.tensor([[[[2.0, 0.5], [-1.0, 0.3]], [[0.1, 1.5], [0.4, -0.6]], [[-0.7, 0.2], [1.2, 0.9]]]])
TEACHER = torch.tensor([[[[3.0, 0.2], [-1.5, -0.4]], [[-0.5, 2.5], [0.1, -1.0]], [[-1.2, 0.6], [2.4, 1.8]]]])
STUDENT_ONE = torch.tensor([[[[1.2, -0.4], [0.3, -2.0]]]])
TEACHER_ONE = torch.tensor([[[[2.5, -1.0], [-0.2, -3.0]]]])
STUDENT_TWO = torch.tensor([[[[0.5, -0.3], [1.0, 0.2]], [[-0.5, 0.9], [0.4, -1.1]]]])
TEACHER_TWO = torch.tensor([[[[1.5, -1.3], [0.2, 0.6]], [[-1.0, 1.9], [0.9, -2.1]]]])


@pytest.mark.parametrize(("temperature", "expected"), [(1, 0.135270), (2, 0.233319), (4, 0.257247)])
def test_soft_logit_kl_meets_the_published_vectors(temperature, expected):
    assert SoftLogitKL(temperature)(STUDENT, TEACHER).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(2, 0.238440), (4, 0.288269)])
def test_two_classes_meet_the_published_vectors(temperature, expected):
    assert SoftLogitKL(temperature)(STUDENT_TWO, TEACHER_TWO).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(1, 0.046553), (2, 0.080044)])
def test_one_sigmoid_channel_meets_the_published_vectors(temperature, expected):
    assert SoftBernoulliKL(temperature)(STUDENT_ONE, TEACHER_ONE).item() == pytest.approx(expected, abs=1e-6)


def test_multilabel_meets_the_published_vector():
    assert SoftBernoulliKL(2.0)(STUDENT, TEACHER).item() == pytest.approx(0.052538, abs=1e-6)


def test_one_voxel_by_hand():
    # teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2)
    teacher, student = torch.tensor([[[math.log(3.0)], [0.0]]]), torch.zeros(1, 2, 1)
    assert SoftLogitKL(1.0)(student, teacher).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_one_channel_equals_two_logits_with_a_zero():
    pair = [torch.cat([torch.zeros_like(logit), logit], dim=1) for logit in (STUDENT_ONE, TEACHER_ONE)]
    expected = SoftLogitKL(3.0)(*pair).item()
    assert SoftBernoulliKL(3.0)(STUDENT_ONE, TEACHER_ONE).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [SoftLogitKL(2.0), SoftBernoulliKL(2.0)])
class TestBoth:
    def test_zero_when_student_equals_teacher(self, loss):
        logits = torch.randn(2, 3, 4, 5, 6)
        assert loss(logits, logits.clone()).item() == 0.0

    def test_teacher_receives_no_gradient(self, loss):
        student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
        loss(student, teacher).backward()
        assert student.grad is not None
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None

    @pytest.mark.parametrize("spatial", [(7,), (4, 5), (3, 4, 5)])
    def test_any_number_of_spatial_axes(self, loss, spatial):
        value = loss(torch.randn(2, 3, *spatial), torch.randn(2, 3, *spatial))
        assert value.ndim == 0
        assert value > 0

    def test_independent_of_resolution_and_batch_size(self, loss):
        bigger = [logits.repeat(3, 1, 2, 4) for logits in (STUDENT, TEACHER)]
        assert loss(*bigger).item() == pytest.approx(loss(STUDENT, TEACHER).item(), rel=1e-6)

    def test_float32_inside_autocast(self, loss):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(STUDENT, TEACHER)
        assert value.dtype == torch.float32
        assert value.item() == loss(STUDENT, TEACHER).item()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_logits_are_computed_in_float32(self, loss, dtype):
        value = loss(STUDENT.to(dtype), TEACHER.to(dtype))
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss(STUDENT, TEACHER).item(), rel=2e-2)

    def test_finite_at_extreme_logits(self, loss):
        student, teacher = (1e4 * STUDENT).requires_grad_(), -1e4 * TEACHER
        value = loss(student, teacher)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(student.grad).all()

    def test_channels_last_gives_the_same_value(self, loss):
        student, teacher = (t.contiguous(memory_format=torch.channels_last) for t in (STUDENT, TEACHER))
        assert loss(student, teacher).item() == pytest.approx(loss(STUDENT, TEACHER).item(), rel=1e-6)

    def test_shape_mismatch_names_both_shapes(self, loss):
        with pytest.raises(ValueError, match=r"\(1, 3, 2, 2\) and teacher logits \(1, 2, 2, 2\)"):
            loss(STUDENT, TEACHER_TWO)


@pytest.mark.parametrize("kind", [SoftLogitKL, SoftBernoulliKL])
@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), float("nan"), "2", True])
def test_bad_temperature_is_refused_by_name(kind, temperature):
    with pytest.raises(ValueError, match="temperature is"):
        kind(temperature)


@pytest.mark.parametrize("kind", [SoftLogitKL, SoftBernoulliKL])
def test_temperature_changes_the_value(kind):
    values = {kind(temperature)(STUDENT, TEACHER).item() for temperature in (1.0, 2.0, 4.0)}
    assert len(values) == 3


def test_one_class_softmax_is_refused_and_points_to_the_bernoulli_loss():
    with pytest.raises(ValueError, match="SoftBernoulliKL"):
        SoftLogitKL(2.0)(STUDENT_ONE, TEACHER_ONE)


def test_gradient_scale_hardly_depends_on_the_temperature():
    norms = []
    for temperature in (4.0, 8.0):
        student = STUDENT.clone().requires_grad_()
        SoftLogitKL(temperature)(student, TEACHER).backward()
        norms.append(student.grad.norm().item())
    assert norms[1] / norms[0] == pytest.approx(1.0, abs=0.1)
