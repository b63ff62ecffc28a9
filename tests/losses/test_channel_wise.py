"""ChannelWiseKL: values and gradients of independent implementations, values by hand, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from monai_kd.losses.channel_wise import ChannelWiseKL

STUDENT = torch.tensor([[[[2.0, 0.5], [-1.0, 0.3]], [[0.1, 1.5], [0.4, -0.6]], [[-0.7, 0.2], [1.2, 0.9]]]])
TEACHER = torch.tensor([[[[3.0, 0.2], [-1.5, -0.4]], [[-0.5, 2.5], [0.1, -1.0]], [[-1.2, 0.6], [2.4, 1.8]]]])
STUDENT_BATCH = torch.cat(
    [STUDENT, torch.tensor([[[[0.6, -0.2], [1.1, 0.0]], [[-0.9, 0.8], [0.2, 1.4]], [[0.3, 0.7], [-1.3, 0.5]]]])]
)
TEACHER_BATCH = torch.cat(
    [TEACHER, torch.tensor([[[[1.6, -1.0], [2.0, -0.3]], [[-1.4, 1.3], [0.5, 2.2]], [[0.2, 0.4], [-2.1, 0.1]]]])]
)
STUDENT_ONE = torch.tensor([[[[1.2, -0.4], [0.3, -2.0]]]])
TEACHER_ONE = torch.tensor([[[[2.5, -1.0], [-0.2, -3.0]]]])
GRADIENT = torch.tensor(  # at temperature 4
    [
        [
            [[-0.11902955, 0.03126974], [0.03136114, 0.05639866]],
            [[0.0491428, -0.11056084], [0.03128331, 0.03013472]],
            [[0.06250763, 0.01931202], [-0.05840431, -0.02341534]],
        ]
    ]
)
SPATIAL = [(7,), (4, 5), (3, 4, 5)]


def textbook(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    logs = [torch.log_softmax(value.flatten(2) / temperature, dim=2) for value in (student, teacher)]
    return temperature**2 * F.kl_div(*logs, reduction="sum", log_target=True) / student.shape[:2].numel()


def gradient(loss, *tensors: torch.Tensor) -> torch.Tensor:
    student = tensors[0].clone().requires_grad_()
    loss(student, *tensors[1:]).backward()
    return student.grad


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "expected"),
    [
        (STUDENT, TEACHER, 1.0, 0.12312537),
        (STUDENT, TEACHER, 4.0, 0.23051069),
        (STUDENT_BATCH, TEACHER_BATCH, 4.0, 0.17994422),
        (STUDENT_ONE, TEACHER_ONE, 4.0, 0.47033698),
        (STUDENT[..., None], TEACHER[..., None], 4.0, 0.23051069),
    ],
)
def test_value_meets_the_published_vectors(student, teacher, temperature, expected):
    assert ChannelWiseKL(temperature)(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_value_without_background_meets_the_published_vector():
    loss = ChannelWiseKL(4.0, include_background=False)
    assert loss(STUDENT, TEACHER).item() == pytest.approx(0.20675683, abs=1e-6)


def test_features_behind_an_adapter_meet_the_published_vector():
    student = torch.tensor([[[[1.0, 2.0], [0.0, -1.0]], [[0.5, -0.5], [1.5, 1.0]]]])
    teacher = torch.tensor([[[[2.0, 1.0], [0.5, 0.0]], [[-1.0, 0.0], [1.0, 2.0]], [[0.0, 3.0], [-0.5, 1.0]]]])
    weight = torch.tensor([[0.5, -0.25], [0.1, 0.3], [-0.4, 0.2]])[..., None, None]
    aligned = F.conv2d(student, weight, torch.tensor([0.1, -0.2, 0.0]))
    assert ChannelWiseKL(1.0)(aligned, teacher).item() == pytest.approx(0.74434601, abs=1e-6)


def test_gradient_meets_the_published_vector():
    torch.testing.assert_close(gradient(ChannelWiseKL(4.0), STUDENT, TEACHER), GRADIENT, atol=1e-6, rtol=0)


def test_two_positions_by_hand():
    # the channel of the teacher is (3/4, 1/4) over space, the student's (1/2, 1/2)
    teacher, student = torch.tensor([[[math.log(3.0), 0.0]]]), torch.zeros(1, 1, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert ChannelWiseKL(1.0)(student, teacher).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_value_and_gradient_are_the_textbook_formula_s(spatial):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, *spatial), torch.randn(2, 3, *spatial)
    loss = ChannelWiseKL(2.0)
    assert loss(student, teacher).item() == pytest.approx(textbook(student, teacher, 2.0).item(), abs=1e-6)
    expected = gradient(lambda s, t: textbook(s, t, 2.0), student, teacher)
    torch.testing.assert_close(gradient(loss, student, teacher), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_pieces_of_a_large_map_give_the_value_and_gradient_of_the_whole(temperature):
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 5, 40, 41, 43), 3 * torch.randn(2, 5, 40, 41, 43)
    loss = ChannelWiseKL(temperature)
    expected = textbook(student.double(), teacher.double(), temperature).item()
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    own = gradient(lambda s, t: textbook(s, t, temperature), student.double(), teacher.double())
    torch.testing.assert_close(gradient(loss, student, teacher).double(), own, atol=1e-9, rtol=1e-4)


@pytest.mark.parametrize("spatial", SPATIAL)
def test_zero_when_student_equals_teacher(spatial):
    maps = torch.randn(2, 3, *spatial)
    assert ChannelWiseKL()(maps, maps.clone()).item() == 0.0


@pytest.mark.parametrize("spatial", SPATIAL)
def test_a_constant_per_channel_changes_nothing(spatial):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, *spatial), torch.randn(2, 3, *spatial)
    constant = torch.randn(2, 3, *[1] * len(spatial))
    expected = ChannelWiseKL()(student, teacher).item()
    assert ChannelWiseKL()(student + 5 * constant, teacher - constant).item() == pytest.approx(expected, abs=2e-6)


def test_common_order_of_positions_does_not_matter():
    value = ChannelWiseKL()(STUDENT.flip(2, 3), TEACHER.flip(2, 3))
    assert value.item() == pytest.approx(0.23051069, abs=1e-6)


def test_repeating_samples_changes_nothing():
    repeated = [maps.repeat(3, 1, 1, 1) for maps in (STUDENT_BATCH, TEACHER_BATCH)]
    assert ChannelWiseKL()(*repeated).item() == pytest.approx(0.17994422, abs=1e-6)


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("spatial", [(3,), (2, 3), (2, 2, 2)])
def test_gradient_is_exact(spatial, include_background):
    torch.manual_seed(0)
    student = torch.randn(2, 3, *spatial, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, *spatial, dtype=torch.float64)
    assert gradcheck(ChannelWiseKL(2.0, include_background), (student, teacher))


def test_gradient_is_exact_with_a_label_and_another_grid():
    torch.manual_seed(0)
    student = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    label = torch.tensor([0, 1, 255]).repeat(2, 1, 8, 2)
    assert gradcheck(ChannelWiseKL(2.0, present_only=True), (student, teacher, label))


def test_a_student_on_another_grid_is_interpolated_before_the_softmax():
    teacher = torch.randn(1, 3, 5, 4)
    finer = F.interpolate(STUDENT, size=(5, 4), mode="bilinear", align_corners=False)
    assert ChannelWiseKL()(STUDENT, teacher).item() == ChannelWiseKL()(finer, teacher).item()


def test_teacher_receives_no_gradient():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    ChannelWiseKL()(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_background_receives_no_gradient_where_it_does_not_count():
    found = gradient(ChannelWiseKL(include_background=False), STUDENT, TEACHER)
    assert found[:, 0].abs().sum() == 0
    assert found[:, 1:].abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 4, 5), (1, 3, 4, 5, 6)])
def test_finite_at_extreme_and_at_constant_maps(shape):
    for student, teacher in [
        (1e4 * torch.randn(shape), -1e4 * torch.randn(shape)),
        (torch.zeros(shape), 1e4 * torch.randn(shape)),
        (torch.full(shape, 1e4), torch.zeros(shape)),
    ]:
        assert torch.isfinite(ChannelWiseKL()(student, teacher))
        assert torch.isfinite(gradient(ChannelWiseKL(), student, teacher)).all()


def test_float32_inside_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ChannelWiseKL()(STUDENT, TEACHER)
    assert value.dtype == torch.float32
    assert value.item() == ChannelWiseKL()(STUDENT, TEACHER).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_computed_in_float32(dtype):
    student, teacher = STUDENT.to(dtype), TEACHER.to(dtype)
    assert ChannelWiseKL()(student, teacher).item() == ChannelWiseKL()(student.float(), teacher.float()).item()


@pytest.mark.parametrize(
    ("shape", "form"), [((2, 4, 6, 5), torch.channels_last), ((2, 4, 3, 6, 5), torch.channels_last_3d)]
)
def test_memory_format_changes_nothing(shape, form):
    student, teacher = torch.randn(shape), torch.randn(shape)
    other = [maps.contiguous(memory_format=form) for maps in (student, teacher)]
    assert ChannelWiseKL()(*other).item() == pytest.approx(ChannelWiseKL()(student, teacher).item(), rel=1e-5)
    torch.testing.assert_close(gradient(ChannelWiseKL(), *other), gradient(ChannelWiseKL(), student, teacher))


def test_reductions_are_sums_and_means_of_the_channels():
    values = ChannelWiseKL(reduction="none")(STUDENT_BATCH, TEACHER_BATCH)
    assert values.shape == (2, 3)
    assert values.mean().item() == pytest.approx(0.17994422, abs=1e-6)
    assert ChannelWiseKL(reduction="sum")(STUDENT_BATCH, TEACHER_BATCH).item() == pytest.approx(values.sum().item())
    assert ChannelWiseKL(include_background=False, reduction="none")(STUDENT, TEACHER).shape == (1, 2)


class TestLabel:
    label = torch.tensor([[[[0, 2], [2, 0]]], [[[1, 1], [255, 1]]]])

    def test_present_only_is_the_mean_over_the_classes_of_each_sample(self):
        # 255 in the second sample: its fourth position is out, too
        values = ChannelWiseKL(reduction="none")(STUDENT_BATCH, TEACHER_BATCH, self.label)
        expected = (values[0, 0] + values[0, 2] + values[1, 1]) / 3
        found = ChannelWiseKL(present_only=True)(STUDENT_BATCH, TEACHER_BATCH, self.label)
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)

    def test_present_only_without_background(self):
        values = ChannelWiseKL(reduction="none")(STUDENT_BATCH, TEACHER_BATCH, self.label)
        loss = ChannelWiseKL(present_only=True, include_background=False)
        found = loss(STUDENT_BATCH, TEACHER_BATCH, self.label)
        assert found.item() == pytest.approx(((values[0, 2] + values[1, 1]) / 2).item(), rel=1e-6)

    def test_label_may_lack_the_channel_axis_and_be_on_another_grid(self):
        loss = ChannelWiseKL(present_only=True)
        expected = loss(STUDENT_BATCH, TEACHER_BATCH, self.label).item()
        assert loss(STUDENT_BATCH, TEACHER_BATCH, self.label[:, 0]).item() == expected
        finer = self.label.repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert loss(STUDENT_BATCH, TEACHER_BATCH, finer).item() == expected

    def test_ignored_positions_take_no_part(self):
        label = torch.tensor([[[[0, 1], [2, 255]]]])
        kept = [maps.flatten(2)[:, :, :3] for maps in (STUDENT, TEACHER)]
        found = ChannelWiseKL()(STUDENT, TEACHER, label).item()
        assert found == pytest.approx(ChannelWiseKL()(*kept).item(), abs=1e-6)
        assert gradient(ChannelWiseKL(), STUDENT, TEACHER, label)[..., 1, 1].abs().sum() == 0
        assert ChannelWiseKL(ignore_index=None)(STUDENT, TEACHER, label).item() == pytest.approx(0.23051069, abs=1e-6)

    def test_a_nan_where_the_label_is_ignored_does_not_spread(self):
        student = STUDENT.clone()
        student[..., 1, 1] = torch.nan
        found = gradient(ChannelWiseKL(), student, TEACHER, torch.tensor([[[[0, 1], [2, 255]]]]))
        assert torch.isfinite(found).all()

    @pytest.mark.parametrize("present_only", [True, False])
    def test_nothing_to_count_is_zero_with_a_gradient(self, present_only):
        student = STUDENT_BATCH.clone().requires_grad_()
        label = torch.full((2, 1, 2, 2), 255)
        value = ChannelWiseKL(present_only=present_only)(student, TEACHER_BATCH, label)
        value.backward()
        assert value.item() == 0.0
        assert student.grad.abs().sum() == 0

    def test_a_sample_without_valid_positions_does_not_lower_the_mean(self):
        label = torch.tensor([[[[0, 1], [2, 0]]], [[[255, 255], [255, 255]]]])
        assert ChannelWiseKL()(STUDENT_BATCH, TEACHER_BATCH, label).item() == pytest.approx(0.23051069, abs=1e-6)

    def test_present_only_needs_a_label(self):
        with pytest.raises(ValueError, match="got no label"):
            ChannelWiseKL(present_only=True)(STUDENT, TEACHER)

    def test_a_one_hot_label_is_refused(self):
        with pytest.raises(ValueError, match="class indices"):
            ChannelWiseKL(present_only=True)(STUDENT, TEACHER, torch.zeros(1, 3, 2, 2))


def test_one_channel_without_background_is_refused():
    with pytest.raises(ValueError, match="include_background=False leaves none"):
        ChannelWiseKL(include_background=False)(STUDENT_ONE, TEACHER_ONE)


def test_other_channels_are_refused_with_both_shapes():
    with pytest.raises(
        ValueError, match=r"\(1, 3, 2, 2\) and teacher features \(1, 1, 2, 2\) differ in their channels"
    ):
        ChannelWiseKL()(STUDENT, TEACHER_ONE)


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), "2", True])
def test_bad_temperatures_are_refused_by_name(temperature):
    with pytest.raises(ValueError, match="temperature is"):
        ChannelWiseKL(temperature)


def test_unknown_reductions_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="channelmean, sum, none"):
        ChannelWiseKL(reduction="mean")


def test_settings_are_shown():
    assert "temperature=4.0, include_background=True, present_only=False" in str(ChannelWiseKL())


def test_several_stages_are_summed():
    generator = torch.Generator().manual_seed(9)
    shapes = ((2, 3, 4, 4), (2, 5, 2, 2))
    student, teacher = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    expected = sum(ChannelWiseKL()(ours, theirs).item() for ours, theirs in zip(student, teacher, strict=True))
    assert ChannelWiseKL()(student, teacher).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="'none' has no one map for 2 stages"):
        ChannelWiseKL(reduction="none")(student, teacher)
