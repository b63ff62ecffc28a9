"""Weight maps: each by hand, and each changes what a loss returns."""

from __future__ import annotations

import math

import pytest
import torch

from monai_kd.losses import BoundaryWeighting, ClassBalance, ForegroundWeighting, SoftLogitKL, TeacherErrorGate


def logits_of(index: torch.Tensor, classes: int = 3, sharpness: float = 5.0) -> torch.Tensor:
    """Logits whose largest is at the given class."""
    return sharpness * torch.nn.functional.one_hot(index, classes).movedim(-1, 1).float()


def test_foreground_is_the_union_of_label_and_teacher_grown_by_a_box():
    label = torch.zeros(1, 9, dtype=torch.long)
    label[0, 1] = 1
    teacher = torch.zeros(1, 9, dtype=torch.long)
    teacher[0, 6] = 2
    found = ForegroundWeighting(0.25, dilation=1)(logits_of(teacher), label, True)
    assert found.tolist() == [[1, 1, 1, 0.25, 0.25, 1, 1, 1, 0.25]]
    without = ForegroundWeighting(0.25, dilation=0)(logits_of(teacher), None, True)
    assert without.tolist() == [[0.25] * 6 + [1] + [0.25] * 2]


def test_foreground_of_sigmoid_channels_is_any_positive_logit():
    logits = torch.tensor([[[1.0, -1.0, -1.0], [-2.0, -2.0, 3.0]]])
    assert ForegroundWeighting(0.5, 0)(logits, None, False).tolist() == [[1, 0.5, 1]]


def test_boundary_weight_decays_with_the_exact_distance():
    label = torch.zeros(1, 12, 12, dtype=torch.long)
    label[0, 4:8, 5:9] = 1
    found = BoundaryWeighting(strength=3.0, width=1.5)(logits_of(label), label, True)
    edge = torch.zeros(12, 12, dtype=torch.bool)
    for i in range(12):
        for j in range(12):
            for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if 0 <= a < 12 and 0 <= b < 12 and label[0, a, b] != label[0, i, j]:
                    edge[i, j] = True
    places = edge.nonzero().double()
    for i in range(12):
        for j in range(12):
            distance = min((places - torch.tensor([i, j])).norm(dim=1).min().item(), 4.5)
            assert found[0, i, j].item() == pytest.approx(1 + 3 * math.exp(-distance / 1.5), rel=1e-5)


def test_spacing_stretches_the_boundary_weight():
    label = torch.zeros(1, 10, 10, dtype=torch.long)
    label[0, 5:] = 1
    near = BoundaryWeighting(4.0, 2.0)(logits_of(label), label, True)
    far = BoundaryWeighting(4.0, 2.0, spacing=[3.0, 1.0])(logits_of(label), label, True)
    assert near[0, 4, 0].item() == far[0, 4, 0].item() == 5.0
    assert near[0, 3, 0].item() == pytest.approx(1 + 4 * math.exp(-0.5))
    assert far[0, 3, 0].item() == pytest.approx(1 + 4 * math.exp(-1.5))


def test_boundary_of_the_teacher_needs_no_label():
    label = torch.zeros(1, 8, dtype=torch.long)
    teacher = label.clone()
    teacher[0, 4:] = 1
    by_teacher = BoundaryWeighting(of="teacher")(logits_of(teacher), None, True)
    assert torch.equal(by_teacher, BoundaryWeighting()(logits_of(label), teacher, True))
    with pytest.raises(ValueError, match="got no label"):
        BoundaryWeighting()(logits_of(teacher), None, True)


def test_without_a_boundary_all_voxels_weigh_nearly_alike():
    label = torch.zeros(1, 8, dtype=torch.long)
    found = BoundaryWeighting(4.0, 2.0)(logits_of(label), label, True)
    assert torch.allclose(found, torch.full((1, 8), 1 + 4 * math.exp(-3.0)))


def test_class_balance_is_the_mean_of_the_classes_means():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 3, 10, generator=generator) for _ in range(2))
    label = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1, 1, 2]])
    voxels = SoftLogitKL(2.0, reduction="none")(student, teacher)[0]
    expected = (voxels[:7].mean() + voxels[7:9].mean() + voxels[9]) / 3
    assert SoftLogitKL(2.0, weighting=ClassBalance())(student, teacher, label).item() == pytest.approx(expected.item())


def test_class_balance_does_not_count_ignored_voxels():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 3, 10, generator=generator) for _ in range(2))
    label = torch.tensor([[0, 0, 1, 1, 1, 255, 255, 255, 255, 255]])
    loss = SoftLogitKL(2.0, weighting=ClassBalance())
    kept = loss(student[..., :5], teacher[..., :5], label[..., :5])
    assert loss(student, teacher, label).item() == pytest.approx(kept.item())


def test_gate_by_label_leaves_out_the_teachers_errors():
    teacher = logits_of(torch.tensor([[0, 1, 2, 2]]))
    assert TeacherErrorGate()(teacher, torch.tensor([[0, 2, 2, -1]]), True).tolist() == [[1, 0, 1, 0]]


def test_gate_by_confidence_runs_from_uniform_to_certain():
    logits = torch.tensor([[[0.0, 1e4], [0.0, 0.0], [0.0, 0.0]]])
    assert TeacherErrorGate("confidence")(logits, None, True).tolist() == [[pytest.approx(0, abs=1e-6), 1]]
    sigmoid = torch.tensor([[[0.0, 1e4, -1e4]]])
    assert TeacherErrorGate("confidence")(sigmoid, None, False).tolist() == [[pytest.approx(0, abs=1e-6), 1, 1]]


def test_several_weights_multiply():
    teacher = logits_of(torch.tensor([[0, 1, 2, 2]]))
    student = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([[0, 2, 2, 2]])
    both = SoftLogitKL(1.0, weighting=[ForegroundWeighting(0.5, 0), TeacherErrorGate()])
    voxels = SoftLogitKL(1.0, reduction="none")(student, teacher)[0]
    expected = (0.5 * voxels[0] + voxels[2] + voxels[3]) / 2.5
    assert both(student, teacher, label).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ForegroundWeighting(background_weight=-1), "background_weight is -1"),
        (lambda: ForegroundWeighting(background_weight=2), "0 to 1"),
        (lambda: ForegroundWeighting(dilation=1.5), "whole voxels"),
        (lambda: BoundaryWeighting(width=0), "width is 0"),
        (lambda: BoundaryWeighting(strength=-1), "strength is -1"),
        (lambda: BoundaryWeighting(of="student"), "of is 'student'; known: label, teacher"),
        (lambda: BoundaryWeighting(spacing=[1, 0]), "spacing is 0"),
        (lambda: TeacherErrorGate("entropy"), "by is 'entropy'; known: label, confidence"),
        (lambda: SoftLogitKL(weighting=3), "give weight maps such as ForegroundWeighting"),
    ],
)
def test_a_bad_setting_is_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_spacing_of_another_dimension_is_named():
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="spacing has 3 numbers, the label 2 spatial axes"):
        BoundaryWeighting(spacing=[1, 1, 1])(logits_of(label), label, True)


def test_the_edge_of_an_ignored_region_is_no_boundary():
    label = torch.tensor([[-1, -1, -1, 0, 0, 0]])
    found = BoundaryWeighting(4.0, 2.0)(logits_of(torch.zeros_like(label)), label, True)
    assert torch.allclose(found, torch.full((1, 6), 1 + 4 * math.exp(-3.0)))


def test_gate_of_sigmoid_channels_compares_foreground():
    logits = torch.tensor([[[-1.0, -1.0, 2.0, -1.0], [-1.0, 2.0, -1.0, -1.0]]])
    assert TeacherErrorGate()(logits, torch.tensor([[0, 2, 0, 1]]), False).tolist() == [[1, 1, 0, 0]]
