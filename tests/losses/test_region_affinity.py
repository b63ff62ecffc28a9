"""RegionAffinity: the published vector, values by hand, and its properties."""

from __future__ import annotations

import itertools

import pytest
import torch

from monai_kd.losses.region_affinity import RegionAffinity

STUDENT = torch.tensor([[[[1.0, 2.0], [0.0, -1.0]], [[0.5, -0.5], [1.5, 1.0]]]])
TEACHER = torch.tensor([[[[2.0, 1.0], [0.5, 0.0]], [[-1.0, 0.0], [1.0, 2.0]], [[0.0, 3.0], [-0.5, 1.0]]]])
LABEL = torch.tensor([[[0, 1], [2, 2]]])


def random_case(*spatial: int, batch: int = 2):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(batch, channels, *spatial, generator=generator) for channels in (3, 5))
    return student, teacher, torch.randint(0, 4, (batch, 1, *spatial), generator=generator)


def plain(student, teacher, label):
    """The textbook way for one image: one pair of classes at a time."""
    affinities = []
    for features in (student, teacher):
        means = [features[:, label == value].mean(dim=1) for value in label.unique()]
        affinities.append([torch.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(means, 2)])
    return torch.stack([(a - b) ** 2 for a, b in zip(*affinities, strict=True)]).mean().item()


def test_it_meets_the_published_vector():
    assert RegionAffinity()(STUDENT, TEACHER, LABEL).item() == pytest.approx(0.33048667, abs=1e-6)


def test_two_classes_by_hand():
    # student: orthogonal means, affinity 0; teacher: opposite ones, affinity -1
    student = torch.tensor([[[1.0, 3.0, 0.0], [0.0, 0.0, 2.0]]])
    teacher = torch.tensor([[[1.0, 2.0, -3.0]]])
    assert RegionAffinity()(student, teacher, torch.tensor([[0, 0, 1]])).item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("spatial", [(23,), (5, 6), (4, 3, 5)])
def test_it_equals_the_textbook_loops_in_any_dimension(spatial):
    student, teacher, label = random_case(*spatial)
    expected = [plain(*one) for one in zip(student, teacher, label[:, 0], strict=True)]
    assert RegionAffinity("none")(student, teacher, label).tolist() == pytest.approx(expected, abs=1e-6)
    assert RegionAffinity()(student, teacher, label).item() == pytest.approx(sum(expected) / 2, abs=1e-6)


def test_absent_classes_make_no_pair():
    student, teacher, label = random_case(12, batch=1)
    apart = torch.where(label == 1, 9, label)  # classes 1, 4 to 8 are absent
    assert RegionAffinity()(student, teacher, apart).item() == RegionAffinity()(student, teacher, label).item()


def test_the_value_does_not_grow_with_the_number_of_classes():
    two = RegionAffinity()(STUDENT, TEACHER, torch.tensor([[[0, 0], [1, 1]]])).item()
    doubled = [torch.cat([value, value], dim=-1) for value in (STUDENT, TEACHER)]
    four = torch.tensor([[[0, 0, 2, 2], [1, 1, 3, 3]]])  # pairs of equal classes add zeros, not a sum
    assert RegionAffinity()(*doubled, four).item() == pytest.approx(4 / 6 * two, rel=1e-6)


@pytest.mark.parametrize("value", [0, 3, 255])
def test_less_than_two_classes_give_exact_zero_with_a_gradient(value):
    student = STUDENT.clone().requires_grad_()
    loss = RegionAffinity()(student, TEACHER, torch.full_like(LABEL, value))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_images_without_a_pair_do_not_dilute_the_mean():
    pair = [torch.cat([value, torch.randn_like(value)]) for value in (STUDENT, TEACHER)]
    label = torch.cat([LABEL, torch.zeros_like(LABEL)])
    assert RegionAffinity()(*pair, label).item() == pytest.approx(0.33048667, abs=1e-6)
    assert RegionAffinity("none")(*pair, label).tolist() == pytest.approx([0.33048667, 0.0], abs=1e-6)


def test_voxels_to_ignore_do_not_count():
    longer = [torch.cat([value, 50 * torch.ones_like(value)], dim=-1) for value in (STUDENT, TEACHER)]
    label = torch.cat([LABEL, torch.full_like(LABEL, 255)], dim=-1)
    assert RegionAffinity()(*longer, label).item() == pytest.approx(0.33048667, abs=1e-6)
    other = torch.where(label == 255, 7, label)
    assert RegionAffinity(ignore_index=7)(*longer, other).item() == pytest.approx(0.33048667, abs=1e-6)
    assert RegionAffinity()(*longer, other).item() != pytest.approx(0.33048667, abs=1e-3)


def test_zero_for_equal_features_and_for_features_of_another_scale():
    student, _, label = random_case(4, 5)
    assert RegionAffinity()(student, student.clone(), label).item() == 0.0
    assert RegionAffinity()(student, 7 * student, label).item() == pytest.approx(0.0, abs=1e-12)


def test_sigmoid_compares_foreground_and_background():
    student, teacher, label = random_case(4, 5)
    expected = RegionAffinity()(student, teacher, (label > 0).long()).item()
    channels = torch.cat([label == 1, label >= 2], dim=1).float()
    for given in (label, channels):
        assert RegionAffinity(sigmoid=True)(student, teacher, given).item() == pytest.approx(expected, abs=1e-7)


def test_levels_are_added_and_grids_may_differ():
    student, teacher, label = random_case(4, 4)
    finer = teacher.repeat_interleave(2, -1).repeat_interleave(2, -2)
    value = RegionAffinity()([student, student], [teacher, finer], label)
    assert value.item() == pytest.approx(2 * RegionAffinity()(student, teacher, label).item(), rel=1e-6)


def test_gradient_of_the_student_is_exact_and_the_teacher_gets_none():
    student, teacher, label = random_case(3, 4)
    student, teacher = student.double().requires_grad_(), teacher.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: RegionAffinity()(value, teacher.detach(), label), student)
    RegionAffinity()(student, teacher, label).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("features", [torch.zeros(1, 2, 4), torch.ones(1, 2, 4), torch.full((1, 2, 4), 1e4)])
def test_constant_and_zero_features_stay_finite(features):
    features = features.clone().requires_grad_()
    loss = RegionAffinity()(features, torch.randn(1, 3, 4), torch.tensor([[0, 0, 1, 1]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert features.grad.isfinite().all()


def test_float32_inside_autocast_and_any_memory_format():
    student, teacher, label = random_case(4, 5)
    expected = RegionAffinity()(student, teacher, label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = RegionAffinity()(student, teacher, label)
    assert inside.dtype == torch.float32
    assert inside.item() == expected.item()
    last = [value.contiguous(memory_format=torch.channels_last) for value in (student, teacher)]
    assert RegionAffinity()(*last, label).item() == pytest.approx(expected.item(), abs=1e-7)


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction is 'sum'; known: samplemean, none"):
        RegionAffinity(reduction="sum")
