"""MultiTeacherKL: mixtures by hand, the identities with one teacher, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from monai_kd.distillers import Distiller, Term
from monai_kd.losses import ForegroundWeighting, SoftBernoulliKL, SoftLogitKL
from monai_kd.losses.multi_teacher import MultiTeacherKL

STUDENT = torch.tensor([[[[2.0, 0.5], [-1.0, 0.3]], [[0.1, 1.5], [0.4, -0.6]], [[-0.7, 0.2], [1.2, 0.9]]]])
TEACHER = torch.tensor([[[[3.0, 0.2], [-1.5, -0.4]], [[-0.5, 2.5], [0.1, -1.0]], [[-1.2, 0.6], [2.4, 1.8]]]])
OTHER = TEACHER.flip(1)
LABEL = torch.tensor([[[0, 1], [255, 2]]])


def logits(*probabilities: float):
    return torch.tensor(probabilities).log().view(1, -1, 1)


def kl(target, student):
    return sum(q * math.log(q / s) for q, s in zip(target, student, strict=True) if q)


def test_the_mean_of_two_teachers_by_hand():
    # (0.8 + 0.4) / 2 and (0.2 + 0.6) / 2
    value = MultiTeacherKL(1.0)(logits(0.5, 0.5), [logits(0.8, 0.2), logits(0.4, 0.6)])
    assert value.item() == pytest.approx(kl((0.6, 0.4), (0.5, 0.5)), abs=1e-7)


def test_fixed_shares_by_hand():
    value = MultiTeacherKL(1.0, weights=[3, 1])(logits(0.5, 0.5), [logits(0.8, 0.2), logits(0.4, 0.6)])
    assert value.item() == pytest.approx(kl((0.7, 0.3), (0.5, 0.5)), abs=1e-7)


def test_shares_per_class_by_hand():
    # class 0 is the first teacher's, class 1 half and half: (0.8, 0.4), which sums to 1.2
    value = MultiTeacherKL(1.0, weights=[[2, 1], [0, 1]])(logits(0.5, 0.5), [logits(0.8, 0.2), logits(0.4, 0.6)])
    assert value.item() == pytest.approx(kl((2 / 3, 1 / 3), (0.5, 0.5)), abs=1e-7)


def test_confidence_by_hand():
    sure = [1 + sum(p * math.log(p) for p in pair) / math.log(2) for pair in ((0.8, 0.2), (0.4, 0.6))]
    share = sure[0] / sum(sure)
    mixture = [share * 0.8 + (1 - share) * 0.4, share * 0.2 + (1 - share) * 0.6]
    value = MultiTeacherKL(1.0, weights="confidence")(logits(0.5, 0.5), [logits(0.8, 0.2), logits(0.4, 0.6)])
    assert value.item() == pytest.approx(kl(mixture, (0.5, 0.5)), abs=1e-6)


def test_confidence_is_taken_voxel_by_voxel():
    unsure, sure = torch.zeros(1, 2, 1), torch.tensor([[[6.0], [-6.0]]])
    first, second = torch.cat([unsure, sure], dim=-1), torch.cat([sure, unsure], dim=-1)
    loss = MultiTeacherKL(2.0, weights="confidence")
    student = torch.randn(1, 2, 2)
    expected = SoftLogitKL(2.0)(student, torch.cat([sure, sure], dim=-1)).item()
    assert loss(student, [first, second]).item() == pytest.approx(expected, abs=1e-6)


def test_teachers_that_are_sure_of_nothing_count_alike():
    teachers = [torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)]
    student = torch.randn(1, 3, 4)
    loss = MultiTeacherKL(weights="confidence")(student, teachers)
    assert loss.item() == pytest.approx(SoftLogitKL()(student, teachers[0]).item(), abs=1e-7)


def test_the_temperature_softens_before_the_mixture():
    first = math.e / (math.e + 1)  # softmax of (2, 0) / 2
    target = ((first + 0.5) / 2, (1 - first + 0.5) / 2)
    value = MultiTeacherKL(2.0)(torch.zeros(1, 2, 1), [torch.tensor([[[2.0], [0.0]]]), torch.zeros(1, 2, 1)])
    assert value.item() == pytest.approx(4 * kl(target, (0.5, 0.5)), abs=1e-6)


@pytest.mark.parametrize("weights", ["mean", "confidence", [5.0], [[1.0, 2.0, 3.0]]])
@pytest.mark.parametrize("as_list", [True, False])
def test_one_teacher_is_plain_distillation_to_the_last_bit(weights, as_list):
    loss = MultiTeacherKL(3.0, weights, weighting=ForegroundWeighting(dilation=0))
    expected = SoftLogitKL(3.0, weighting=ForegroundWeighting(dilation=0))(STUDENT, TEACHER, LABEL)
    assert loss(STUDENT, [TEACHER] if as_list else TEACHER, LABEL).item() == expected.item()


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("weights", ["mean", "confidence", [1.0, 4.0, 2.0], [[1.0, 2, 3], [0, 1, 5], [2, 0, 0]]])
def test_equal_teachers_are_one(weights, sigmoid):
    expected = (SoftBernoulliKL if sigmoid else SoftLogitKL)(2.0)(STUDENT, TEACHER).item()
    value = MultiTeacherKL(2.0, weights, sigmoid)(STUDENT, [TEACHER, TEACHER.clone(), TEACHER.clone()])
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_sigmoid_mixes_each_channel_by_hand():
    student, teachers = torch.zeros(1, 1, 1), [torch.full((1, 1, 1), math.log(odds)) for odds in (4.0, 1.0)]
    value = MultiTeacherKL(1.0, sigmoid=True)(student, teachers)
    assert value.item() == pytest.approx(kl((0.65, 0.35), (0.5, 0.5)), abs=1e-7)


def test_the_gradient_is_that_of_the_weighted_sum_of_single_losses():
    student = STUDENT.double().requires_grad_()
    teachers = [TEACHER.double(), OTHER.double()]
    (mixed,) = torch.autograd.grad(MultiTeacherKL(2.0, [0.3, 0.7])(student, teachers), student)
    single = 0.3 * SoftLogitKL(2.0)(student, teachers[0]) + 0.7 * SoftLogitKL(2.0)(student, teachers[1])
    (expected,) = torch.autograd.grad(single, student)
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("weights", ["mean", "confidence", [[1.0, 2, 3], [0, 1, 5]]])
def test_gradient_of_the_student_is_exact_and_teachers_get_none(weights, sigmoid):
    student = STUDENT.double().requires_grad_()
    teachers = [TEACHER.double().requires_grad_(), OTHER.double().requires_grad_()]
    loss = MultiTeacherKL(2.0, weights, sigmoid)
    assert torch.autograd.gradcheck(lambda value: loss(value, [teacher.detach() for teacher in teachers]), student)
    loss(student, teachers).backward()
    assert all(teacher.grad is None for teacher in teachers)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("weights", ["mean", "confidence", [[1.0, 2, 3], [0, 1, 5]]])
def test_finite_at_extreme_logits(weights, sigmoid):
    student = (1e4 * STUDENT).requires_grad_()
    value = MultiTeacherKL(2.0, weights, sigmoid)(student, [-1e4 * TEACHER, 1e4 * OTHER])
    value.backward()
    assert torch.isfinite(value)
    assert value > 0
    assert student.grad.isfinite().all()


def test_a_student_that_equals_the_mixture_has_no_loss():
    teachers = [logits(0.8, 0.2), logits(0.4, 0.6)]
    assert MultiTeacherKL(1.0)(logits(0.6, 0.4), teachers).item() == pytest.approx(0.0, abs=1e-7)
    assert MultiTeacherKL(2.0)(STUDENT, [STUDENT.clone(), STUDENT.clone()]).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("spatial", [(7,), (4, 5), (3, 4, 5)])
def test_any_number_of_spatial_axes_and_a_student_on_another_grid(spatial):
    teachers = [torch.randn(2, 3, *spatial) for _ in range(3)]
    assert MultiTeacherKL()(torch.randn(2, 3, *spatial), teachers) > 0
    coarse = torch.randn(2, 3, *[2] * len(spatial))
    assert MultiTeacherKL(weights=[1, 2, 3])(coarse, teachers).ndim == 0


def test_ignored_voxels_and_reductions_are_those_of_voxel_losses():
    teachers = [TEACHER, OTHER]
    each = MultiTeacherKL(reduction="none")(STUDENT, teachers)
    assert each.shape == (1, 2, 2)
    valid = each[LABEL != 255]
    assert MultiTeacherKL()(STUDENT, teachers, LABEL).item() == pytest.approx(valid.mean().item(), rel=1e-6)
    assert MultiTeacherKL(reduction="elementmean")(STUDENT, teachers).item() == pytest.approx(
        each.mean().item() / 3, rel=1e-6
    )


def test_one_tensor_is_kept_for_backward_however_many_teachers():
    kept = []
    student = torch.randn(1, 3, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda value: kept.append(value.numel()) or value, lambda value: value
    ):
        MultiTeacherKL()(student, [torch.randn(1, 3, 64) for _ in range(5)])
    assert [count for count in kept if count > 64] == [3 * 64]


def test_float32_inside_autocast_and_any_memory_format():
    expected = MultiTeacherKL()(STUDENT, [TEACHER, OTHER])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = MultiTeacherKL()(STUDENT, [TEACHER, OTHER])
    assert inside.dtype == torch.float32
    assert inside.item() == expected.item()
    student, *teachers = (v.contiguous(memory_format=torch.channels_last) for v in (STUDENT, TEACHER, OTHER))
    assert MultiTeacherKL()(student, teachers).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_term_hands_it_the_logits_of_several_teachers():
    torch.manual_seed(0)
    networks = {name: nn.Conv2d(1, 3, 1) for name in ("student", "t1", "t2")}
    student = networks.pop("student")
    term = Term(MultiTeacherKL(2.0, [1.0, 3.0]), "student/logits", ["t1/logits", "t2/logits"])
    distiller = Distiller(student, networks, {"soft": term})
    image = torch.randn(2, 1, 4, 4)
    expected = MultiTeacherKL(2.0, [1.0, 3.0])(student(image), [networks["t1"](image), networks["t2"](image)])
    assert distiller(image).loss.item() == expected.item()
    assert list(distiller.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("median", "weights is 'median'; known: mean, confidence"),
        ([], "one number per teacher"),
        ([[1.0, 2.0], [1.0]], "one number per teacher"),
        ([1.0, -1.0], "weights is -1.0; it must be a finite number of at least 0"),
        ([0.0, 0.0], "some teacher needs a weight above 0"),
        ([[1.0, 0.0], [1.0, 0.0]], "some teacher needs a weight above 0, for every class"),
        (["1", "2"], "weights is '1'"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        MultiTeacherKL(weights=weights)


@pytest.mark.parametrize(
    ("weights", "teachers", "message"),
    [
        ("mean", [], "got no teacher"),
        ("mean", [TEACHER, TEACHER, TEACHER[:, :2]], r"teacher 3 \(1, 2, 2, 2\) and of teacher 1 \(1, 3, 2, 2\)"),
        ("mean", [TEACHER, TEACHER[..., :1]], "teacher 2"),
        ("mean", [TEACHER[:, :2]] * 2, "differ in their channels"),
        ([1.0, 2.0], [TEACHER], "weights are for 2 teachers, got 1"),
        ([[1.0, 2.0], [3.0, 4.0]], [TEACHER, OTHER], "weights are for 2 classes, logits have 3"),
    ],
)
def test_teachers_that_do_not_fit_are_named(weights, teachers, message):
    with pytest.raises(ValueError, match=message):
        MultiTeacherKL(weights=weights)(STUDENT, teachers)


def test_elementmean_with_sigmoid_is_refused():
    with pytest.raises(ValueError, match="elementmean"):
        MultiTeacherKL(sigmoid=True, reduction="elementmean")
