"""IntraClassVariation: the published vector, a value by hand, and its properties."""

from __future__ import annotations

import pytest
import torch

from monai_kd.losses.class_prototypes import class_means
from monai_kd.losses.intra_class import IntraClassVariation

STUDENT = torch.tensor([[[[1.0, 2.0], [0.0, -1.0]], [[0.5, -0.5], [1.5, 1.0]]]])
TEACHER = torch.tensor([[[[2.0, 1.0], [0.5, 0.0]], [[-1.0, 0.0], [1.0, 2.0]], [[0.0, 3.0], [-0.5, 1.0]]]])
LABEL = torch.tensor([[[0, 1], [2, 2]]])


def random_case(*spatial: int, batch: int = 2):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(batch, channels, *spatial, generator=generator) for channels in (3, 5))
    return student, teacher, torch.randint(0, 3, (batch, 1, *spatial), generator=generator)


def plain(student, teacher, label):
    """The textbook way: one image, one class, one voxel at a time."""
    maps = []
    for features in (student, teacher):
        similarity = torch.zeros(label.shape[0], *label.shape[2:])
        for image, classes, out in zip(features, label[:, 0], similarity, strict=True):
            for value in classes.unique():
                mean = image[:, classes == value].mean(dim=1)
                out[classes == value] = torch.cosine_similarity(image[:, classes == value], mean[:, None], dim=0)
        maps.append(similarity)
    return (maps[0] - maps[1]).square()


def test_it_meets_the_published_vector():
    assert IntraClassVariation()(STUDENT, TEACHER, LABEL).item() == pytest.approx(0.00461644, abs=1e-6)


def test_one_class_of_two_voxels_by_hand():
    # student (1, 0) and (0, 1): both at 45 degrees from their mean; teacher: both along it
    student = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[2.0, 3.0]]])
    value = IntraClassVariation()(student, teacher, torch.zeros(1, 1, 2))
    assert value.item() == pytest.approx((1 - 2**-0.5) ** 2, rel=1e-6)


@pytest.mark.parametrize("spatial", [(11,), (5, 4), (4, 3, 5)])
def test_it_equals_the_textbook_loops_in_any_dimension(spatial):
    case = random_case(*spatial)
    assert IntraClassVariation()(*case).item() == pytest.approx(plain(*case).mean().item(), abs=1e-6)


def test_none_gives_the_mean_of_each_sample():
    case = random_case(4, 5)
    torch.testing.assert_close(IntraClassVariation("none")(*case), plain(*case).flatten(1).mean(1), atol=1e-6, rtol=0)


def test_voxels_to_ignore_count_neither_in_means_nor_in_the_loss():
    student, teacher, label = random_case(6, batch=1)
    longer = [torch.cat([value, 50 * torch.ones_like(value[..., :2])], dim=-1) for value in (student, teacher)]
    ignored = torch.cat([label, torch.full_like(label[..., :2], 255)], dim=-1)
    expected = IntraClassVariation()(student, teacher, label).item()
    assert IntraClassVariation()(*longer, ignored).item() == pytest.approx(expected, abs=1e-6)
    assert IntraClassVariation(ignore_index=None)(*longer, ignored).item() != pytest.approx(expected, abs=1e-3)


def test_no_valid_voxel_gives_exact_zero_with_a_gradient():
    student, teacher, label = random_case(6)
    student.requires_grad_()
    loss = IntraClassVariation()(student, teacher, torch.full_like(label, 255))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_zero_for_equal_features_and_for_features_of_another_scale():
    student, _, label = random_case(4, 5)
    assert IntraClassVariation()(student, student.clone(), label).item() == 0.0
    assert IntraClassVariation()(student, 7 * student, label).item() == pytest.approx(0.0, abs=1e-12)


def test_levels_are_added():
    first, second = random_case(6), random_case(4)
    label = first[2]
    value = IntraClassVariation()([first[0], second[0]], [first[1], second[1]], label)
    expected = sum(IntraClassVariation()(case[0], case[1], label).item() for case in (first, second))
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("finer", ["student", "teacher"])
def test_the_finer_features_are_averaged_and_the_label_follows_the_coarser_grid(finer):
    case = dict(zip(("student", "teacher", "label"), random_case(4, 4), strict=True))
    expected = IntraClassVariation()(**case).item()
    case[finer] = case[finer].repeat_interleave(2, -1).repeat_interleave(2, -2)
    case["label"] = case["label"].repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert IntraClassVariation()(**case).item() == pytest.approx(expected, abs=1e-6)


def test_sigmoid_joins_all_foregrounds_of_either_kind_of_label():
    student, teacher, label = random_case(4, 5)
    loss = IntraClassVariation(sigmoid=True)
    expected = IntraClassVariation()(student, teacher, (label > 0).long()).item()
    channels = torch.cat([label == 1, label == 2], dim=1).float()
    for given in (label, label[:, 0], channels):
        assert loss(student, teacher, given).item() == pytest.approx(expected, abs=1e-7)


def test_gradient_of_the_student_is_exact_and_the_teacher_gets_none():
    student, teacher, label = random_case(3, 3)
    student, teacher = student.double().requires_grad_(), teacher.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: IntraClassVariation()(value, teacher.detach(), label), student)
    IntraClassVariation()(student, teacher, label).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("features", [torch.zeros(1, 2, 4), torch.ones(1, 2, 4), torch.full((1, 2, 4), 1e4)])
def test_constant_and_zero_features_stay_finite(features):
    features = features.clone().requires_grad_()
    loss = IntraClassVariation()(features, torch.randn(1, 3, 4), torch.tensor([[0, 0, 1, 1]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert features.grad.isfinite().all()
    assert features.grad.abs().max() < 10


def test_float32_inside_autocast_and_any_memory_format():
    student, teacher, label = random_case(4, 5)
    expected = IntraClassVariation()(student, teacher, label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = IntraClassVariation()(student, teacher, label)
    assert inside.dtype == torch.float32
    assert inside.item() == expected.item()
    last = [value.contiguous(memory_format=torch.channels_last) for value in (student, teacher)]
    assert IntraClassVariation()(*last, label).item() == pytest.approx(expected.item(), abs=1e-7)


def test_means_of_large_maps_keep_their_digits():
    features = torch.full((1, 1, 128**3), 0.1)
    means, counts = class_means(features, torch.zeros(1, 128**3, dtype=torch.long), 1)
    assert means.item() == pytest.approx(0.1, rel=1e-5)  # one running sum gives 0.0983
    assert counts.item() == 128**3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student": torch.zeros(2, 2, 4)}, "differ in the batch"),
        ({"student": torch.zeros(1, 2, 4, 4)}, "as many spatial axes"),
        ({"label": torch.zeros(1, 3, 4)}, r"label \(1, 3, 4\)"),
        ({"label": torch.full((1, 4), -1)}, "label holds -1"),
        ({"student": [torch.zeros(1, 2, 4)] * 2}, "2 student features and 1 of the teacher"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    fitting = {"student": torch.zeros(1, 2, 4), "teacher": torch.zeros(1, 3, 4), "label": torch.zeros(1, 4)}
    with pytest.raises(ValueError, match=message):
        IntraClassVariation()(**{**fitting, **arguments})


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction is 'mean'; known: pixelmean, none"):
        IntraClassVariation(reduction="mean")
