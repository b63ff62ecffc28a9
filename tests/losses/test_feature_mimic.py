"""FeatureMimic: values of independent implementations, values by hand, and its properties."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from monai_kd.losses.feature_mimic import FeatureMimic

STUDENT = torch.tensor([[[[1.0, 2.0], [0.0, -1.0]], [[0.5, -0.5], [1.5, 1.0]]]])
TEACHER = torch.tensor([[[[2.0, 1.0], [0.5, 0.0]], [[-1.0, 0.0], [1.0, 2.0]], [[0.0, 3.0], [-0.5, 1.0]]]])
STUDENT_BATCH = torch.cat([STUDENT, torch.tensor([[[[0.2, -1.0], [0.7, 0.4]], [[1.1, 0.3], [-0.8, 0.9]]]])])
TEACHER_BATCH = torch.cat([TEACHER[:, :2], torch.tensor([[[[1.0, -2.0], [0.5, 1.5]], [[0.4, 0.8], [-1.2, 0.3]]]])])
SPATIAL = [(7,), (4, 5), (3, 4, 5)]
BOTH = [FeatureMimic(), FeatureMimic(standardize=True)]


def textbook(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """PKD as published, but for the 1e-6 in the denominator."""
    axes = [0, *range(2, student.ndim)]
    maps = [
        (value - value.mean(dim=axes, keepdim=True)) / value.std(dim=axes, keepdim=True) for value in (student, teacher)
    ]
    return F.mse_loss(*maps) / 2


def gradient(loss, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    student = student.clone().requires_grad_()
    loss(student, teacher).backward()
    return student.grad


def test_aligned_features_meet_the_published_vector():
    align = torch.nn.Conv2d(2, 3, 1)
    with torch.no_grad():
        align.weight.copy_(torch.tensor([[0.5, -0.25], [0.1, 0.3], [-0.4, 0.2]])[..., None, None])
        align.bias.copy_(torch.tensor([0.1, -0.2, 0.0]))
    value = FeatureMimic()(align(STUDENT), TEACHER)
    value.backward()
    assert value.item() == pytest.approx(2.09890625, abs=1e-6)
    assert align.weight.grad.abs().sum() > 0


def test_standardized_features_meet_the_published_vector():
    value = FeatureMimic(standardize=True)(STUDENT_BATCH, TEACHER_BATCH)
    assert value.item() == pytest.approx(0.29265903, abs=1e-6)


def test_two_positions_by_hand():
    student, teacher = torch.tensor([[[1.0, 4.0]]]), torch.tensor([[[3.0, 5.0]]])
    assert FeatureMimic()(student, teacher).item() == pytest.approx((4 + 1) / 2)
    # standardized, both are (-1, 1) / sqrt(2), and the student reversed differs by sqrt(2) twice: 2 / 2
    assert FeatureMimic(standardize=True)(student, teacher).item() == pytest.approx(0.0, abs=1e-6)
    assert FeatureMimic(standardize=True)(student.flip(2), teacher).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_standardized_value_and_gradient_are_the_textbook_formula_s(spatial):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, *spatial) + 5, 3 * torch.randn(2, 3, *spatial)
    loss = FeatureMimic(standardize=True)
    assert loss(student, teacher).item() == pytest.approx(textbook(student, teacher).item(), abs=1e-6)
    expected = gradient(textbook, student, teacher)
    torch.testing.assert_close(gradient(loss, student, teacher), expected, atol=1e-6, rtol=1e-4)


def test_standardized_value_is_one_minus_the_correlation():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 1, 50), torch.randn(1, 1, 50)
    correlation = torch.corrcoef(torch.cat([student[0], teacher[0]]))[0, 1].item()
    value = FeatureMimic(standardize=True)(student, teacher).item()
    assert value == pytest.approx(49 / 50 * (1 - correlation), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-8, 0.3, 1e8])
def test_standardized_value_depends_on_neither_scale_nor_offset_of_a_channel(scale):
    loss = FeatureMimic(standardize=True)
    factor = torch.tensor([1.0, scale])[None, :, None, None]
    expected = pytest.approx(0.29265903, abs=1e-6)
    assert loss(factor * STUDENT_BATCH, TEACHER_BATCH).item() == expected
    assert loss(STUDENT_BATCH, factor * (TEACHER_BATCH + 2)).item() == expected


def test_plain_value_depends_on_the_scale():
    assert FeatureMimic()(2 * STUDENT_BATCH, TEACHER_BATCH) != FeatureMimic()(STUDENT_BATCH, TEACHER_BATCH)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
def test_constant_channels_are_equal_whatever_their_value_and_give_no_gradient(level):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 30, 30), torch.randn(2, 2, 30, 30)
    student[:, 1], teacher[:, 1] = level, -7.3
    loss = FeatureMimic(standardize=True)
    expected = loss(student[:, :1], teacher[:, :1]).item() / 2
    assert loss(student, teacher).item() == pytest.approx(expected, abs=1e-6)
    found = gradient(loss, student, teacher)
    assert torch.isfinite(found).all()
    assert found[:, 1].abs().sum() == 0


def test_a_constant_student_channel_costs_half_and_gives_a_finite_gradient():
    student, teacher = torch.zeros(1, 1, 10, 10), torch.randn(1, 1, 10, 10)
    loss = FeatureMimic(standardize=True)
    assert loss(student, teacher).item() == pytest.approx(99 / 100 / 2, abs=1e-6)
    assert gradient(loss, student, teacher).abs().sum() == 0


@pytest.mark.parametrize("spatial", [(5,), (2, 3), (2, 2, 2)])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("reduction", ["elementmean", "batchmean", "none"])
def test_gradient_is_exact(spatial, standardize, reduction):
    torch.manual_seed(0)
    student = torch.randn(2, 3, *spatial, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, *spatial, dtype=torch.float64)
    assert gradcheck(FeatureMimic(standardize, reduction), (student, teacher))


@pytest.mark.parametrize("loss", BOTH)
class TestBoth:
    @pytest.mark.parametrize("spatial", SPATIAL)
    def test_zero_when_student_equals_teacher(self, loss, spatial):
        feature = torch.randn(2, 3, *spatial)
        assert loss(feature, feature.clone()).item() == 0.0

    def test_teacher_receives_no_gradient(self, loss):
        student, teacher = STUDENT_BATCH.clone().requires_grad_(), TEACHER_BATCH.clone().requires_grad_()
        loss(student, teacher).backward()
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None

    def test_each_axis_is_pooled_to_its_smaller_size(self, loss):
        student, teacher = torch.randn(1, 2, 8, 3), torch.randn(1, 2, 4, 6)
        pooled = F.adaptive_avg_pool2d(student, (4, 3)), F.adaptive_avg_pool2d(teacher, (4, 3))
        assert loss(student, teacher).item() == pytest.approx(loss(*pooled).item(), abs=1e-6)

    def test_three_axes_with_a_singleton_equal_two(self, loss):
        expected = loss(STUDENT_BATCH, TEACHER_BATCH).item()
        for axis in (2, 3, 4):
            value = loss(STUDENT_BATCH.unsqueeze(axis), TEACHER_BATCH.unsqueeze(axis)).item()
            assert value == pytest.approx(expected, abs=1e-6)

    def test_common_order_of_positions_does_not_matter(self, loss):
        value = loss(STUDENT_BATCH.flip(2, 3), TEACHER_BATCH.flip(2, 3)).item()
        assert value == pytest.approx(loss(STUDENT_BATCH, TEACHER_BATCH).item(), abs=1e-6)

    def test_float32_inside_autocast(self, loss):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(STUDENT_BATCH, TEACHER_BATCH)
        assert value.dtype == torch.float32
        assert value.item() == loss(STUDENT_BATCH, TEACHER_BATCH).item()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_features_are_computed_in_float32(self, loss, dtype):
        student, teacher = STUDENT_BATCH.to(dtype), TEACHER_BATCH.to(dtype)
        assert loss(student, teacher).item() == loss(student.float(), teacher.float()).item()

    @pytest.mark.parametrize("scale", [1e4, 1e-6, 0.0])
    def test_finite_at_extreme_features(self, loss, scale):
        student, teacher = scale * STUDENT_BATCH, -scale * TEACHER_BATCH
        assert torch.isfinite(loss(student, teacher))
        assert torch.isfinite(gradient(loss, student, teacher)).all()

    @pytest.mark.parametrize(
        ("shape", "form"), [((2, 4, 6, 5), torch.channels_last), ((2, 4, 3, 6, 5), torch.channels_last_3d)]
    )
    def test_memory_format_changes_nothing(self, loss, shape, form):
        student, teacher = torch.randn(shape), torch.randn(shape)
        other = [value.contiguous(memory_format=form) for value in (student, teacher)]
        assert loss(*other).item() == pytest.approx(loss(student, teacher).item(), rel=1e-5)
        torch.testing.assert_close(gradient(loss, *other), gradient(loss, student, teacher))

    def test_reductions_are_means_and_sums_of_the_same_values(self, loss):
        values = FeatureMimic(loss.standardize, "none")(STUDENT_BATCH, TEACHER_BATCH)
        expected = loss(STUDENT_BATCH, TEACHER_BATCH).item()
        assert values.shape == (2,)
        assert values.mean().item() == pytest.approx(expected, abs=1e-6)
        total = FeatureMimic(loss.standardize, "batchmean")(STUDENT_BATCH, TEACHER_BATCH).item()
        assert total == pytest.approx(8 * expected, abs=1e-5)

    def test_levels_are_added(self, loss):
        pair = STUDENT, TEACHER[:, 1:]
        both = loss([STUDENT_BATCH, pair[0]], [TEACHER_BATCH, pair[1]])
        torch.testing.assert_close(both, loss(STUDENT_BATCH, TEACHER_BATCH) + loss(*pair))

    def test_other_channels_and_numbers_of_levels_are_refused(self, loss):
        with pytest.raises(ValueError, match="differ in their channels; features need an adapter"):
            loss(STUDENT, TEACHER)
        with pytest.raises(ValueError, match="got 1 student features and 2 of the teacher"):
            loss([STUDENT], [STUDENT, STUDENT])


def test_repeating_samples_changes_the_standardized_value_by_n_minus_1_only():
    loss = FeatureMimic(standardize=True)
    repeated = loss(STUDENT_BATCH.repeat(3, 1, 1, 1), TEACHER_BATCH.repeat(3, 1, 1, 1)).item()
    assert repeated == pytest.approx(0.29265903 * (23 / 24) / (7 / 8), abs=1e-6)


def test_one_value_per_channel_cannot_be_standardized():
    with pytest.raises(ValueError, match=r"\(1, 5, 1\) have one value per channel"):
        FeatureMimic(standardize=True)(torch.randn(1, 5, 1), torch.randn(1, 5, 1))


def test_unknown_reductions_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="elementmean, batchmean, none"):
        FeatureMimic(reduction="mean")


def test_settings_are_shown():
    assert str(FeatureMimic(standardize=True)) == "FeatureMimic(standardize=True, reduction='elementmean')"
