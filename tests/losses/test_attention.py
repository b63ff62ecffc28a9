"""AttentionTransfer: values of independent implementations, values by hand, and its properties."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from monai_kd.losses.attention import AttentionTransfer

STUDENT = torch.tensor([[[[1.0, 2.0], [0.0, -1.0]], [[0.5, -0.5], [1.5, 1.0]]]])
TEACHER = torch.tensor([[[[2.0, 1.0], [0.5, 0.0]], [[-1.0, 0.0], [1.0, 2.0]], [[0.0, 3.0], [-0.5, 1.0]]]])
STUDENT_BATCH = torch.cat([STUDENT, torch.tensor([[[[0.2, -1.0], [0.7, 0.4]], [[1.1, 0.3], [-0.8, 0.9]]]])])
TEACHER_BATCH = torch.cat(
    [TEACHER, torch.tensor([[[[1.0, -2.0], [0.5, 1.5]], [[0.4, 0.8], [-1.2, 0.3]], [[-0.6, 0.9], [2.1, -0.4]]]])]
)
STUDENT_FINE = torch.tensor(
    [
        [
            [[-0.5, -0.2, 0.1, 0.4], [0.2, 0.5, -0.3, 0.0], [-0.2, 0.1, 0.4, -0.4], [0.5, -0.3, 0.0, 0.3]],
            [[0.0, 0.3, -0.5, -0.2], [-0.4, -0.1, 0.2, 0.5], [0.3, -0.5, -0.2, 0.1], [-0.1, 0.2, 0.5, -0.3]],
        ]
    ]
)
SPATIAL = [(7,), (4, 5), (3, 4, 5)]


def textbook(student: torch.Tensor, teacher: torch.Tensor, p: float) -> torch.Tensor:
    """The published formula, with the sum over positions; equal grids."""
    maps = [F.normalize(value.abs().pow(p).mean(dim=1).flatten(1), dim=1) for value in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(dim=1).mean()


def gradient(loss, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    student = student.clone().requires_grad_()
    loss(student, teacher).backward()
    return student.grad


def test_sample_mean_meets_the_published_vector():
    assert AttentionTransfer()(STUDENT, TEACHER).item() == pytest.approx(0.11994136, abs=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"), [(STUDENT, TEACHER, 0.02998534), (STUDENT_BATCH, TEACHER_BATCH, 0.04347135)]
)
def test_element_mean_meets_the_published_vectors(student, teacher, expected):
    loss = AttentionTransfer(reduction="elementmean")
    assert loss(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_map_of_a_finer_grid_is_pooled_to_the_coarser_one_as_published():
    assert AttentionTransfer()(STUDENT_FINE, TEACHER).item() == pytest.approx(0.2338377, abs=1e-6)


def test_exponent_4_meets_the_published_importance_map():
    assert AttentionTransfer(p=4)(STUDENT, TEACHER).item() == pytest.approx(0.106491, abs=1e-6)


def test_two_positions_by_hand():
    # maps (9, 16) and (1, 0) of one channel: (9, 16) / sqrt(337) against (1, 0)
    student, teacher = torch.tensor([[[3.0, -4.0]]]), torch.tensor([[[5.0, 0.0]]])
    expected = (9 / 337**0.5 - 1) ** 2 + 256 / 337
    assert AttentionTransfer()(student, teacher).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("p", [1, 1.5, 2, 4])
@pytest.mark.parametrize("spatial", SPATIAL)
def test_value_and_gradient_are_the_textbook_formula_s(spatial, p):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, *spatial), torch.randn(2, 5, *spatial)
    ours = gradient(AttentionTransfer(p), student, teacher)
    assert AttentionTransfer(p)(student, teacher).item() == pytest.approx(
        textbook(student, teacher, p).item(), abs=1e-6
    )
    torch.testing.assert_close(ours, gradient(lambda s, t: textbook(s, t, p), student, teacher), atol=1e-6, rtol=1e-5)


def test_pieces_of_a_large_map_give_the_value_of_the_whole():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 16, 200, 200), torch.randn(1, 8, 200, 200)
    assert AttentionTransfer()(student, teacher).item() == pytest.approx(textbook(student, teacher, 2).item(), abs=1e-6)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_zero_when_student_equals_teacher(spatial):
    feature = torch.randn(2, 3, *spatial)
    assert AttentionTransfer()(feature, feature.clone()).item() == 0.0


@pytest.mark.parametrize("p", [1, 1.5, 2, 4])
@pytest.mark.parametrize(("ours", "theirs"), [((3,), (3,)), ((3, 2), (2, 3)), ((2, 3, 2), (2, 2, 4))])
def test_gradient_is_exact_on_equal_and_other_grids(p, ours, theirs):
    torch.manual_seed(1)
    student = torch.randn(2, 3, *ours, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 2, *theirs, dtype=torch.float64)
    assert gradcheck(AttentionTransfer(p), (student, teacher))


@pytest.mark.parametrize("scale", [1e-8, 0.3, 50.0, 1e8])
def test_positive_scaling_of_a_feature_changes_nothing(scale):
    expected = AttentionTransfer()(STUDENT, TEACHER).item()
    assert AttentionTransfer()(scale * STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-5)
    assert AttentionTransfer()(STUDENT, scale * TEACHER).item() == pytest.approx(expected, rel=1e-5)


def test_order_of_channels_and_common_order_of_positions_do_not_matter():
    expected = AttentionTransfer()(STUDENT, TEACHER).item()
    assert AttentionTransfer()(STUDENT.flip(1), TEACHER).item() == pytest.approx(expected, abs=1e-6)
    assert AttentionTransfer()(STUDENT.flip(2, 3), TEACHER.flip(2, 3)).item() == pytest.approx(expected, abs=1e-6)


def test_repeating_samples_changes_nothing():
    expected = AttentionTransfer()(STUDENT_BATCH, TEACHER_BATCH).item()
    repeated = [value.repeat(3, 1, 1, 1) for value in (STUDENT_BATCH, TEACHER_BATCH)]
    assert AttentionTransfer()(*repeated).item() == pytest.approx(expected, rel=1e-6)


def test_default_does_not_fade_with_the_resolution():
    finer = [F.interpolate(value, scale_factor=8) for value in (STUDENT, TEACHER)]
    assert AttentionTransfer()(*finer).item() == pytest.approx(AttentionTransfer()(STUDENT, TEACHER).item(), rel=1e-5)


def test_each_axis_is_pooled_to_its_smaller_size():
    student, teacher = torch.randn(1, 2, 8, 3), torch.randn(1, 2, 4, 6)
    energies = [value.square().mean(dim=1, keepdim=True) for value in (student, teacher)]
    pooled = [F.adaptive_avg_pool2d(energy, (4, 3)).sqrt() for energy in energies]
    expected = AttentionTransfer()(*pooled).item()
    assert AttentionTransfer()(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_three_axes_with_a_singleton_equal_two():
    for axis in (2, 3, 4):
        value = AttentionTransfer()(STUDENT_FINE.unsqueeze(axis), TEACHER.unsqueeze(axis))
        assert value.item() == pytest.approx(0.2338377, abs=1e-6)


def test_teacher_receives_no_gradient():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    AttentionTransfer()(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_all_zero_features_give_zero_and_a_zero_gradient():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = AttentionTransfer()(student, torch.zeros(2, 5, 4, 4))
    value.backward()
    assert value.item() == 0.0
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("p", [1, 2, 4])
def test_an_all_zero_student_gives_one_and_a_finite_gradient(p):
    student = torch.zeros(1, 3, 4, 4, requires_grad=True)
    value = AttentionTransfer(p)(student, torch.randn(1, 5, 4, 4))
    value.backward()
    assert value.item() == pytest.approx(1.0, abs=1e-6)  # the length of the teacher's map
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("scale", [1e4, 1e-6])
def test_finite_and_exact_at_extreme_features(p, scale):
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    assert torch.isfinite(gradient(AttentionTransfer(p), scale * student, -scale * teacher)).all()
    expected = AttentionTransfer(p)(student, teacher).item()
    assert AttentionTransfer(p)(scale * student, -scale * teacher).item() == pytest.approx(expected, abs=1e-5)


def test_constant_features_agree_whatever_their_value():
    student, teacher = torch.full((1, 2, 3, 3), 4.0), torch.full((1, 7, 3, 3), -0.1)
    assert AttentionTransfer()(student, teacher).item() == pytest.approx(0.0, abs=1e-6)


def test_float32_inside_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = AttentionTransfer()(STUDENT, TEACHER)
    assert value.dtype == torch.float32
    assert value.item() == AttentionTransfer()(STUDENT, TEACHER).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_computed_in_float32(dtype):
    student = (1000 * STUDENT).to(dtype).requires_grad_()  # their squares are beyond float16
    value = AttentionTransfer()(student, TEACHER.to(dtype))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == AttentionTransfer()(student.float(), TEACHER.to(dtype).float()).item()
    assert student.grad.dtype == dtype


@pytest.mark.parametrize(
    ("shape", "form"), [((2, 4, 6, 5), torch.channels_last), ((2, 4, 3, 6, 5), torch.channels_last_3d)]
)
def test_memory_format_changes_nothing(shape, form):
    student, teacher = torch.randn(shape), torch.randn(shape)
    other = [value.contiguous(memory_format=form) for value in (student, teacher)]
    loss = AttentionTransfer()
    assert loss(*other).item() == pytest.approx(loss(student, teacher).item(), rel=1e-5)
    torch.testing.assert_close(gradient(loss, *other), gradient(loss, student, teacher))


def test_none_returns_one_value_per_sample_whose_mean_is_the_loss():
    values = AttentionTransfer(reduction="none")(STUDENT_BATCH, TEACHER_BATCH)
    assert values.shape == (2,)
    assert values[0].item() == pytest.approx(0.11994136, abs=1e-6)
    assert values.mean().item() == pytest.approx(4 * 0.04347135, abs=4e-6)


@pytest.mark.parametrize("reduction", ["samplemean", "elementmean", "none"])
def test_levels_are_added(reduction):
    loss = AttentionTransfer(reduction=reduction)
    both = loss([STUDENT, STUDENT_FINE], [TEACHER, TEACHER])
    torch.testing.assert_close(both, loss(STUDENT, TEACHER) + loss(STUDENT_FINE, TEACHER))


def test_other_numbers_of_levels_are_refused():
    with pytest.raises(ValueError, match="got 2 student features and 1 of the teacher"):
        AttentionTransfer()([STUDENT, STUDENT], [TEACHER])
    with pytest.raises(ValueError, match="got 0 student features"):
        AttentionTransfer()([], [])


def test_other_batches_and_ranks_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(1, 2, 2, 2\) and teacher features \(2, 3, 2, 2\) differ in the batch"):
        AttentionTransfer()(STUDENT, TEACHER_BATCH)
    with pytest.raises(ValueError, match="spatial axes"):
        AttentionTransfer()(STUDENT, TEACHER.unsqueeze(2))


def test_four_axes_need_equal_grids():
    feature = torch.randn(1, 2, 4, 4, 4, 4)
    assert AttentionTransfer()(feature, feature).item() == 0.0
    with pytest.raises(ValueError, match="1 to 3 spatial axes can"):
        AttentionTransfer()(feature, feature[..., :2])


@pytest.mark.parametrize("p", [0, 0.5, float("nan"), "2", True])
def test_bad_exponents_are_refused_by_name(p):
    with pytest.raises(ValueError, match="p is"):
        AttentionTransfer(p)


def test_unknown_reductions_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="samplemean, elementmean, none"):
        AttentionTransfer(reduction="mean")


def test_settings_are_shown():
    assert str(AttentionTransfer(p=4)) == "AttentionTransfer(p=4, reduction='samplemean')"


def test_an_all_zero_feature_gets_no_gradient_at_any_exponent():
    for p in (1, 2, 3):
        student = torch.zeros(1, 3, 4, 4, requires_grad=True)
        AttentionTransfer(p=p)(student, torch.rand(1, 3, 4, 4)).backward()
        assert student.grad.abs().max() == 0
