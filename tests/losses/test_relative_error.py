"""RelativeSquaredError: a share of the variance, whatever the scale; targets without any."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from monai_kd.losses import FeatureMimic, RelativeSquaredError

SHAPES = [(4,), (2, 3, 6), (2, 3, 4, 5), (2, 2, 3, 4, 5)]


def pair(shape=(2, 3, 4, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2)]


def test_value_by_hand():
    # variance of 0, 2, 4, 6 is 5; the squared errors are 1, 0, 4, 0
    student, teacher = torch.tensor([1.0, 2.0, 2.0, 6.0]), torch.tensor([0.0, 2.0, 4.0, 6.0])
    assert RelativeSquaredError()(student, teacher).item() == pytest.approx(5 / 4 / 5)


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_when_equal_and_one_for_the_mean(shape):
    _, teacher = pair(shape)
    assert RelativeSquaredError()(teacher.clone(), teacher).item() == 0.0
    mean = torch.full_like(teacher, teacher.mean().item())
    assert RelativeSquaredError()(mean, teacher).item() == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e6])
def test_common_scale_and_offset_do_not_matter(scale):
    student, teacher = pair(dtype=torch.float32)
    expected = RelativeSquaredError()(student, teacher).item()
    value = RelativeSquaredError()(scale * (student + 2), scale * (teacher + 2)).item()
    assert value == pytest.approx(expected, rel=1e-4)
    assert FeatureMimic()(scale * student, scale * teacher).item() != pytest.approx(expected, rel=0.1)


def test_a_constant_channel_or_sample_does_no_harm():
    student, teacher = pair()
    teacher[0], teacher[:, 1] = 0.0, 0.0
    expected = (student - teacher).square().mean() / teacher.var(correction=0)
    torch.testing.assert_close(RelativeSquaredError()(student, teacher), expected)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
def test_a_constant_target_gives_the_squared_error(level):
    student, teacher = pair((50,), torch.float32)
    teacher[:] = level
    student.requires_grad_()
    value = RelativeSquaredError()(student, teacher)
    value.backward()
    assert value.item() == pytest.approx((student - level).square().mean().item(), rel=1e-5)
    assert torch.isfinite(student.grad).all()
    assert student.grad.any()


def test_gradient_is_exact_and_reaches_the_student_only():
    student, teacher = (value.requires_grad_() for value in pair((2, 3)))
    RelativeSquaredError()(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None
    assert gradcheck(lambda value: RelativeSquaredError()(value, teacher.detach()), student)


def test_float32_inside_autocast_and_of_half_precision():
    student, teacher = pair(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = RelativeSquaredError()(student, teacher)
    assert inside.dtype == torch.float32
    assert inside.item() == RelativeSquaredError()(student, teacher).item()
    for kind in (torch.bfloat16, torch.float16):
        value = RelativeSquaredError()(student.to(kind), teacher.to(kind))
        assert value.item() == RelativeSquaredError()(student.to(kind).float(), teacher.to(kind).float()).item()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"student \(2, 3\) and teacher \(3, 2\) must have one shape"):
        RelativeSquaredError()(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"student \(0, 3\)"):
        RelativeSquaredError()(torch.ones(0, 3), torch.ones(0, 3))
