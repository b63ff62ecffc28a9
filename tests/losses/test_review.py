"""KnowledgeReview: values of the dossier and by hand, and its properties."""

from __future__ import annotations

import pytest
import torch

from monai_kd.losses.review import KnowledgeReview

# features of the student (2x2, 4x4, 6x6) and of the teacher, as whole tenths
STUDENT_2 = torch.tensor([[[[1.0, 2.0], [0.0, -1.0]], [[0.5, -0.5], [1.5, 1.0]]]])
TEACHER_2 = torch.tensor([[[[2.0, 1.0], [0.5, 0.0]], [[-1.0, 0.0], [1.0, 2.0]]]])
STUDENT_4 = [
    [[-5, -2, 1, 4], [2, 5, -3, 0], [-2, 1, 4, -4], [5, -3, 0, 3]],
    [[0, 3, -5, -2], [-4, -1, 2, 5], [3, -5, -2, 1], [-1, 2, 5, -3]],
]
TEACHER_4 = [
    [[-6, 3, -1, -5], [-4, 5, 1, -3], [-2, -6, 3, -1], [0, -4, 5, 1]],
    [[-2, -6, 3, -1], [0, -4, 5, 1], [2, -2, -6, 3], [4, 0, -4, 5]],
]
STUDENT_6 = [
    [
        [-5, -2, 1, 4, -4, -1],
        [2, 5, -3, 0, 3, -5],
        [-2, 1, 4, -4, -1, 2],
        [5, -3, 0, 3, -5, -2],
        [1, 4, -4, -1, 2, 5],
        [-3, 0, 3, -5, -2, 1],
    ]
]
TEACHER_6 = [
    [
        [-6, 3, -1, -5, 4, 0],
        [-4, 5, 1, -3, 6, 2],
        [-2, -6, 3, -1, -5, 4],
        [0, -4, 5, 1, -3, 6],
        [2, -2, -6, 3, -1, -5],
        [4, 0, -4, 5, 1, -3],
    ]
]


def tenths(values):
    return torch.tensor(values).unsqueeze(0) / 10


PAIRS = {
    "2x2": (STUDENT_2, TEACHER_2, 0.609375),
    "4x4": (tenths(STUDENT_4), tenths(TEACHER_4), 0.13540179),
    "6x6": (tenths(STUDENT_6), tenths(TEACHER_6), 0.14723984),
}


@pytest.mark.parametrize("grid", PAIRS)
def test_meets_the_vectors(grid):
    student, teacher, expected = PAIRS[grid]
    assert KnowledgeReview()(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_two_by_two_by_hand():
    # full: (3.25 + 3.75) / 8; pooled to 1 bin: ((.5 - .875)^2 + (.625 - .5)^2) / 2, at half the weight
    full, pooled = 7 / 8, (0.375**2 + 0.125**2) / 2
    assert KnowledgeReview()(STUDENT_2, TEACHER_2).item() == pytest.approx((full + pooled / 2) / 1.5)


def test_weights_halve_with_each_used_level():
    # on one constant difference every level's mean square is 9, so only the levels' weights could change it
    student, teacher = torch.full((1, 2, 8, 8), 3.0), torch.zeros(1, 2, 8, 8)
    assert KnowledgeReview()(student, teacher).item() == pytest.approx(9.0)
    # a checkerboard vanishes on all pooled levels, so the full level's share 1 / (1 + 1/2 + 1/4 + 1/8) is left
    sign = 1.0 - 2.0 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)
    assert KnowledgeReview()(student * sign, teacher).item() == pytest.approx(9.0 / 1.875)
    assert KnowledgeReview([])(student * sign, teacher).item() == pytest.approx(9.0)
    assert KnowledgeReview([2, 1])(student * sign, teacher).item() == pytest.approx(9.0 / 1.75)


def test_a_level_is_used_where_one_axis_shrinks():
    # (1, 2, 8): level 4 pools the last axis only; a sign that alternates along it vanishes on levels 4, 2 and 1
    student = (1.0 - 2.0 * (torch.arange(8) % 2)).expand(1, 1, 1, 2, 8)
    assert KnowledgeReview()(student, torch.zeros(1, 1, 1, 2, 8)).item() == pytest.approx(1 / 1.875)
    # (1, 1, 1): nothing to pool
    one = torch.full((1, 1, 1, 1, 1), 2.0)
    assert KnowledgeReview()(one, torch.zeros_like(one)).item() == 4.0


@pytest.mark.parametrize("grid", PAIRS)
def test_a_trailing_axis_of_one_voxel_changes_nothing(grid):
    student, teacher, expected = PAIRS[grid]
    value = KnowledgeReview()(student.unsqueeze(-1), teacher.unsqueeze(-1))
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spatial", [(9,), (6, 7), (5, 6, 7)])
class TestAnyRank:
    def test_zero_at_equality_and_above_it_otherwise(self, spatial):
        feature = torch.randn(2, 3, *spatial)
        assert KnowledgeReview()(feature, feature.clone()).item() == 0.0
        assert KnowledgeReview()(feature, feature + 0.1).item() == pytest.approx(0.01, rel=1e-4)

    def test_gradient_reaches_the_student_only(self, spatial):
        student, teacher = (torch.randn(2, 3, *spatial, requires_grad=True) for _ in range(2))
        KnowledgeReview()(student, teacher).backward()
        assert (student.grad != 0).all()
        assert teacher.grad is None

    def test_gradients_are_those_of_the_value(self, spatial):
        student = torch.randn(1, 2, *spatial, dtype=torch.float64, requires_grad=True)
        teacher = torch.randn(1, 2, *spatial, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda value: KnowledgeReview()(value, teacher), (student,))

    def test_none_keeps_the_samples_apart(self, spatial):
        student, teacher = torch.randn(3, 2, *spatial), torch.randn(3, 2, *spatial)
        values = KnowledgeReview(reduction="none")(student, teacher)
        assert values.shape == (3,)
        assert values[1].item() == pytest.approx(KnowledgeReview()(student[1:2], teacher[1:2]).item())
        assert values.mean().item() == pytest.approx(KnowledgeReview()(student, teacher).item())


def test_stages_are_summed():
    students, teachers = [PAIRS["4x4"][0], PAIRS["2x2"][0]], [PAIRS["4x4"][1], PAIRS["2x2"][1]]
    assert KnowledgeReview()(students, teachers).item() == pytest.approx(0.13540179 + 0.609375, abs=1e-6)


def test_independent_of_batch_size_and_memory_format():
    student, teacher, expected = PAIRS["6x6"]
    copies = [value.repeat(4, 3, 1, 1).to(memory_format=torch.channels_last) for value in (student, teacher)]
    assert KnowledgeReview()(*copies).item() == pytest.approx(expected, abs=1e-6)


def test_float32_inside_autocast_and_for_half_precision():
    student, teacher, expected = PAIRS["2x2"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = KnowledgeReview()(student.bfloat16(), teacher.bfloat16())  # halves are exact in bfloat16
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scale", [1e4, -1e4, 0.0])
def test_finite_on_large_and_on_constant_features(scale):
    student = torch.full((1, 2, 8, 8), scale, requires_grad=True)
    value = KnowledgeReview()(student, torch.zeros(1, 2, 8, 8))
    value.backward()
    assert value.item() == pytest.approx(scale**2)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("student", "teacher"), [((1, 2, 4, 4), (1, 3, 4, 4)), ((1, 2, 4, 4), (1, 2, 4, 8)), ((1, 2, 8, 8), (1, 2, 4, 4))]
)
def test_other_shapes_name_the_adapter(student, teacher):
    with pytest.raises(ValueError, match="ReviewFusion") as error:
        KnowledgeReview()(torch.zeros(student), torch.zeros(teacher))
    assert str(student) in str(error.value)
    assert str(teacher) in str(error.value)


def test_lists_that_do_not_pair_are_refused():
    feature = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="2 student features and 1"):
        KnowledgeReview()([feature, feature], [feature])
    with pytest.raises(ValueError, match="0 student features and 0"):
        KnowledgeReview()([], [])
    with pytest.raises(ValueError, match=r"batch sizes \[1, 2\]"):
        KnowledgeReview()([feature, feature.repeat(2, 1, 1, 1)], [feature, feature.repeat(2, 1, 1, 1)])
    with pytest.raises(ValueError, match="4 spatial axes"):
        KnowledgeReview()(torch.zeros(1, 2, 2, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2, 2))


@pytest.mark.parametrize("levels", [[1, 2, 4], [4, 4], [0], [2.5], [True], "421", 4])
def test_levels_out_of_range_are_refused(levels):
    with pytest.raises(ValueError, match="levels is"):
        KnowledgeReview(levels)


def test_unknown_reductions_are_refused():
    with pytest.raises(ValueError, match="reduction is 'pixelmean'; known: mean, none"):
        KnowledgeReview(reduction="pixelmean")
