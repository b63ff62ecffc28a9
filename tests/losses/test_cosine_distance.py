"""CosineDistance: values by hand, and what a cosine does not see."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from monai_kd.losses import CosineDistance

SHAPES = [(2, 7), (3, 8, 16), (2, 3, 4, 5), (2, 2, 3, 4, 5)]


def pair(shape=(3, 8, 16), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2)]


def test_angles_by_hand():
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    teacher = torch.tensor([[5.0, 0.0], [2.0, 2.0], [0.0, 3.0], [-4.0, 0.0]])
    each = [0.0, 1 - math.sqrt(0.5), 1.0, 2.0]
    for row, expected in enumerate(each):
        value = CosineDistance()(student[row : row + 1], teacher[row : row + 1])
        assert value.item() == pytest.approx(expected, abs=1e-6)
    assert CosineDistance()(student, teacher).item() == pytest.approx(sum(each) / 4, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_one_minus_the_cosine_of_each_flattened_sample(shape):
    student, teacher = pair(shape)
    expected = (1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1))).mean()
    torch.testing.assert_close(CosineDistance()(student, teacher), expected)


def test_zero_when_student_equals_teacher():
    student, _ = pair(dtype=torch.float32)
    assert CosineDistance()(student, student.clone()).item() == 0.0


def test_factors_do_not_matter_signs_do():
    student, teacher = pair()
    value = CosineDistance()(student, teacher)
    torch.testing.assert_close(CosineDistance()(1e4 * student, 1e-3 * teacher), value)
    torch.testing.assert_close(CosineDistance()(-student, teacher), 2 - value)


def test_small_angles_keep_their_digits_in_float32():
    angle = 1e-4
    value = CosineDistance()(torch.tensor([[math.cos(angle), math.sin(angle)]]), torch.tensor([[1.0, 0.0]]))
    assert value.item() == pytest.approx(angle**2 / 2, rel=1e-3)


def test_gradient_is_exact_and_reaches_the_student_only():
    student, teacher = (value.requires_grad_() for value in pair((2, 3, 2)))
    CosineDistance()(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None
    assert gradcheck(lambda value: CosineDistance()(value, teacher.detach()), student)


def test_zero_vectors_are_finite_and_get_no_gradient():
    student, teacher = pair()
    student[0] = 0.0
    teacher[:2] = 0.0
    value = CosineDistance()(student.requires_grad_(), teacher)
    value.backward()
    expected = (0.0 + 0.5 + CosineDistance()(student[2:], teacher[2:]).item()) / 3
    assert value.item() == pytest.approx(expected)
    assert not student.grad[0].any()
    assert torch.isfinite(student.grad).all()


def test_float32_inside_autocast_and_of_half_precision():
    student, teacher = pair(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = CosineDistance()(student, teacher)
    assert inside.dtype == torch.float32
    assert inside.item() == CosineDistance()(student, teacher).item()
    for kind in (torch.bfloat16, torch.float16):
        value = CosineDistance()(student.to(kind), teacher.to(kind))
        assert value.item() == CosineDistance()(student.to(kind).float(), teacher.to(kind).float()).item()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"student \(2, 3\) and teacher \(2, 4\) must have one shape \(batch, ...\)"):
        CosineDistance()(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"student \(3,\)"):
        CosineDistance()(torch.ones(3), torch.ones(3))
