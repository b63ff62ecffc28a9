"""What SoftLogitKL, SoftBernoulliKL and DecoupledKL share: grids, labels to ignore, reductions, exactness."""

from __future__ import annotations

import warnings

import pytest
import torch
from monai.data import MetaTensor

from monai_kd.losses import DecoupledKL, ForegroundWeighting, MultiTeacherKL, SoftBernoulliKL, SoftLogitKL

GENERATOR = torch.Generator().manual_seed(0)
STUDENT = torch.randn(2, 4, 3, 5, 4, generator=GENERATOR)
TEACHER = torch.randn(2, 4, 3, 5, 4, generator=GENERATOR)
LABEL = torch.randint(0, 4, (2, 1, 3, 5, 4), generator=GENERATOR)
KINDS = [SoftLogitKL, lambda **kw: SoftLogitKL(standardize=True, **kw), SoftBernoulliKL, DecoupledKL, MultiTeacherKL]
NAMES = ["kd", "lskd", "bernoulli", "dkd", "several"]
every = pytest.mark.parametrize("kind", KINDS, ids=NAMES)


@every
class TestEvery:
    def test_zero_when_student_equals_teacher(self, kind):
        assert kind()(TEACHER, TEACHER.clone(), LABEL).item() == 0.0

    def test_gradient_agrees_with_finite_differences(self, kind):
        student, teacher = STUDENT[:, :, :2, :2, 0].double().requires_grad_(), TEACHER[:, :, :2, :2, 0].double()
        label = LABEL[:, :, :2, :2, 0]
        assert torch.autograd.gradcheck(lambda logits: kind()(logits, teacher, label), student)

    def test_teacher_and_label_receive_no_gradient(self, kind):
        student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
        kind()(student, teacher, LABEL).backward()
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None

    def test_a_singleton_axis_changes_nothing(self, kind):
        flat = kind()(STUDENT[..., 0], TEACHER[..., 0], LABEL[..., 0])
        deep = kind()(STUDENT[..., :1], TEACHER[..., :1], LABEL[..., :1])
        assert deep.item() == pytest.approx(flat.item(), rel=1e-6)

    @pytest.mark.parametrize("spatial", [(7,), (4, 5), (3, 4, 5)])
    def test_any_number_of_spatial_axes(self, kind, spatial):
        shape = (2, 4, *spatial)
        value = kind()(torch.randn(shape), torch.randn(shape), torch.zeros(2, *spatial))
        assert value.ndim == 0
        assert value > 0

    def test_voxels_may_be_permuted(self, kind):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
        parts = [value.flatten(2)[:, :, order] for value in (STUDENT, TEACHER, LABEL)]
        assert kind()(*parts).item() == pytest.approx(kind()(STUDENT, TEACHER, LABEL).item(), rel=1e-5)

    def test_copies_of_the_batch_change_nothing(self, kind):
        copies = [value.repeat(3, 1, 1, 1, 1) for value in (STUDENT, TEACHER, LABEL)]
        assert kind()(*copies).item() == pytest.approx(kind()(STUDENT, TEACHER, LABEL).item(), rel=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
    def test_a_mask_of_ones_and_zeros_leaves_voxels_out_as_the_label_255_does(self, kind, dtype):
        mask = torch.rand(2, 1, 3, 5, 4, generator=torch.Generator().manual_seed(1)) > 0.5
        ignored = torch.where(mask, LABEL, 255)
        value = kind()(STUDENT, TEACHER, LABEL, mask.to(dtype))
        assert value.item() == pytest.approx(kind()(STUDENT, TEACHER, ignored).item(), rel=1e-6)
        assert torch.equal(value, kind()(STUDENT, TEACHER, LABEL, weight=mask.to(dtype)[:, 0]))

    def test_a_weight_map_makes_a_weighted_mean(self, kind):
        weight = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
        values = kind(reduction="none")(STUDENT, TEACHER, LABEL)
        expected = (values * weight).sum() / weight.sum()
        for scale in (1.0, 7.0):  # of the weights only their proportions count
            found = kind()(STUDENT, TEACHER, LABEL, scale * weight)
            assert found.item() == pytest.approx(expected.item(), rel=1e-5)

    @pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
    def test_a_weight_map_of_nothing_gives_0_with_a_gradient_of_0(self, kind, value):
        student = STUDENT.clone().requires_grad_()
        loss = kind()(student, TEACHER, LABEL, torch.full((2, 1, 3, 5, 4), value))
        loss.backward()
        assert loss.item() == 0.0
        assert not student.grad.any()

    def test_a_weight_map_multiplies_with_the_losss_own_and_comes_from_any_grid(self, kind):
        own = kind(weighting=ForegroundWeighting(0.1, 0))
        coarse = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1).expand(2, 1, 1, 1, 1)  # a weight for each sample
        whole = coarse.expand(2, 1, 3, 5, 4)
        values = [own(STUDENT, TEACHER, LABEL, weight).item() for weight in (coarse, whole)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)
        assert values[0] != pytest.approx(own(STUDENT, TEACHER, LABEL).item(), rel=1e-4)

    @pytest.mark.parametrize("shape", [(2, 4, 3, 5, 4), (1, 1, 3, 5, 4), (5, 4)])
    def test_a_weight_map_of_another_shape_is_named(self, kind, shape):
        with pytest.raises(ValueError, match=r"weight \(.*\) does not go with \(2, 4, 3, 5, 4\)"):
            kind()(STUDENT, TEACHER, LABEL, torch.ones(shape))

    def test_float32_inside_autocast_and_half_precision_close_by(self, kind):
        exact = kind()(STUDENT, TEACHER, LABEL).item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = kind()(STUDENT, TEACHER, LABEL)
        assert value.dtype == torch.float32
        assert value.item() == exact
        half = kind()(STUDENT.half(), TEACHER.half(), LABEL)
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(exact, abs=1e-3)

    def test_channels_last_gives_the_same_value_and_gradient(self, kind):
        found = []
        for memory_format in (torch.contiguous_format, torch.channels_last_3d):
            student = STUDENT.clone().contiguous(memory_format=memory_format).requires_grad_()
            value = kind()(student, TEACHER.contiguous(memory_format=memory_format), LABEL)
            value.backward()
            found.append((value.item(), student.grad))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
        assert torch.allclose(found[0][1], found[1][1], atol=1e-7)

    @pytest.mark.parametrize("scale", [1e2, 1e4])
    def test_finite_at_extreme_logits(self, kind, scale):
        student = (scale * STUDENT).requires_grad_()
        value = kind()(student, -scale * TEACHER, LABEL)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(student.grad).all()

    def test_finite_on_constant_maps(self, kind):
        student = torch.zeros(1, 4, 3, 3).requires_grad_()
        value = kind()(student, torch.zeros(1, 4, 3, 3), torch.zeros(1, 1, 3, 3))
        value.backward()
        assert value.item() == 0.0
        assert torch.isfinite(student.grad).all()

    def test_ignored_voxels_do_not_count(self, kind):
        label = LABEL.clone()
        label[:, :, 0] = 255
        spoiled = STUDENT.clone()
        spoiled[:, :, 0] = 1e6
        kept = [value[:, :, 1:] for value in (STUDENT, TEACHER, LABEL)]
        assert kind()(spoiled, TEACHER, label).item() == pytest.approx(kind()(*kept).item(), rel=1e-5)

    def test_what_is_not_finite_in_ignored_voxels_reaches_no_gradient(self, kind):
        label, teacher = LABEL.clone(), TEACHER.clone()
        label[:, :, 0], teacher[:, :, 0] = 255, float("nan")
        student = STUDENT.clone().requires_grad_()
        value = kind()(student, teacher, label)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(student.grad).all()

    def test_no_valid_voxel_is_exactly_zero_with_a_gradient(self, kind):
        student = STUDENT.clone().requires_grad_()
        value = kind()(student, TEACHER, torch.full_like(LABEL, 255))
        value.backward()
        assert value.item() == 0.0
        assert student.grad.abs().sum() == 0

    def test_another_ignore_index_changes_the_value(self, kind):
        values = {kind(ignore_index=index)(STUDENT, TEACHER, LABEL).item() for index in (255, 2)}
        assert len(values) == 2

    def test_reductions_are_multiples_of_each_other(self, kind):
        full = kind(reduction="none")(STUDENT, TEACHER, LABEL)
        assert full.shape == (2, 3, 5, 4)
        by = {name: kind(reduction=name)(STUDENT, TEACHER, LABEL) for name in ("pixelmean", "batchmean", "sum")}
        assert by["sum"].item() == pytest.approx(full.sum().item(), rel=1e-5)
        assert by["batchmean"].item() == pytest.approx(full.sum().item() / 2, rel=1e-5)
        assert by["pixelmean"].item() == pytest.approx(full.mean().item(), rel=1e-5)

    def test_the_students_grid_is_brought_to_the_teachers(self, kind):
        fine = torch.nn.functional.interpolate(STUDENT[..., 0], size=(6, 10), mode="bilinear")
        teacher = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(3))
        label = torch.randint(0, 4, (2, 1, 6, 10), generator=torch.Generator().manual_seed(4))
        assert kind()(STUDENT[..., 0], teacher, label).item() == pytest.approx(kind()(fine, teacher, label).item())

    def test_weights_multiply_and_normalize(self, kind):
        one, half = (kind(weighting=ForegroundWeighting(background, 0)) for background in (1.0, 0.5))
        plain = kind()(STUDENT, TEACHER, LABEL).item()
        assert one(STUDENT, TEACHER, LABEL).item() == pytest.approx(plain, rel=1e-6)
        assert half(STUDENT, TEACHER, LABEL).item() != pytest.approx(plain, rel=1e-4)

    def test_large_maps_worked_on_in_pieces_give_the_same(self, kind, monkeypatch):
        whole = kind()(STUDENT, TEACHER, LABEL).item()
        monkeypatch.setattr("monai_kd.losses.kl._CHUNK", 16)
        student = STUDENT.clone().requires_grad_()
        value = kind()(student, TEACHER, LABEL)
        value.backward()
        assert value.item() == pytest.approx(whole, rel=1e-6)
        assert torch.isfinite(student.grad).all()

    def test_unknown_reduction_is_named(self, kind):
        with pytest.raises(ValueError, match="reduction is 'mean'; known: pixelmean"):
            kind(reduction="mean")

    def test_other_classes_and_batches_are_refused_with_both_shapes(self, kind):
        with pytest.raises(ValueError, match=r"\(2, 3, 3, 5, 4\) and teacher logits \(2, 4, 3, 5, 4\) differ in their"):
            kind()(STUDENT[:, :3], TEACHER, LABEL)
        with pytest.raises(ValueError, match="same images"):
            kind()(STUDENT[:1], TEACHER, LABEL[:1])

    def test_metatensors_are_taken(self, kind):
        value = kind()(MetaTensor(STUDENT), MetaTensor(TEACHER), MetaTensor(LABEL))
        assert float(value) == pytest.approx(kind()(STUDENT, TEACHER, LABEL).item())


def test_kd_ignores_a_constant_added_to_all_classes_of_a_voxel():
    shift = torch.randn(2, 1, 3, 5, 4, generator=torch.Generator().manual_seed(2))
    for loss in (SoftLogitKL(), DecoupledKL()):
        assert loss(STUDENT + shift, TEACHER, LABEL).item() == pytest.approx(
            loss(STUDENT, TEACHER, LABEL).item(), rel=1e-5
        )


def test_lskd_ignores_the_scale_of_the_logits():
    loss = SoftLogitKL(standardize=True)
    assert loss(7 * STUDENT, TEACHER).item() == pytest.approx(loss(STUDENT, TEACHER).item(), rel=1e-5)


def test_kd_is_tckd_plus_damped_nckd():
    chance = TEACHER.double().softmax(1).gather(1, LABEL).squeeze(1)
    parts = [
        DecoupledKL(a, b, 1.0, reduction="none")(STUDENT.double(), TEACHER.double(), LABEL) for a, b in ((1, 0), (0, 1))
    ]
    whole = SoftLogitKL(1.0, reduction="none")(STUDENT.double(), TEACHER.double())
    assert torch.allclose(whole, parts[0] + (1 - chance) * parts[1], atol=1e-12)


def test_accuracy_in_float32_is_a_millionth():
    generator = torch.Generator().manual_seed(5)
    student = 3 * torch.randn(1, 9, 20000, generator=generator)
    teacher = student + torch.randn(1, 9, 20000, generator=generator)
    label = torch.randint(0, 9, (1, 20000), generator=generator)
    for loss in (SoftLogitKL(4.0, reduction="none"), DecoupledKL(1, 8, 4, reduction="none")):
        exact = loss(student.double(), teacher.double(), label)
        assert (loss(student, teacher, label) - exact).abs().max() < 2e-5
        assert (loss(student, teacher, label) - exact).abs().mean() < 1e-6


class TestDecoupledKL:
    def test_by_hand(self):
        # three classes, target 0: teacher odds 2:1:1, student odds 1:1:2
        teacher, student = torch.tensor([2.0, 1.0, 1.0]).log(), torch.tensor([1.0, 1.0, 2.0]).log()
        shaped = (student.view(1, 3, 1), teacher.view(1, 3, 1), torch.zeros(1, 1, dtype=torch.long))
        tckd = 0.5 * torch.tensor(0.5 / 0.25).log() + 0.5 * torch.tensor(0.5 / 0.75).log()
        nckd = 0.5 * torch.tensor(0.5 / (1 / 3)).log() + 0.5 * torch.tensor(0.5 / (2 / 3)).log()
        assert DecoupledKL(1, 0, 1)(*shaped).item() == pytest.approx(tckd.item(), abs=1e-6)
        assert DecoupledKL(0, 1, 1)(*shaped).item() == pytest.approx(nckd.item(), abs=1e-6)

    def test_two_classes_warn_once_and_are_plain_distillation(self):
        loss = DecoupledKL(1, 2, 4)
        with pytest.warns(UserWarning, match="NCKD is always 0"):
            value = loss(STUDENT[:, :2], TEACHER[:, :2], LABEL.clamp(max=1))
        assert value.item() == pytest.approx(SoftLogitKL(4)(STUDENT[:, :2], TEACHER[:, :2]).item(), rel=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(STUDENT[:, :2], TEACHER[:, :2], LABEL.clamp(max=1))

    @pytest.mark.filterwarnings("ignore:.*NCKD is always 0")
    def test_sigmoid_channels_are_alpha_times_the_bernoulli_loss(self):
        loss = DecoupledKL(0.5, 2, 4, sigmoid=True)
        label = (torch.rand(2, 4, 3, 5, 4) > 0.5).float()
        expected = 0.5 * SoftBernoulliKL(4)(STUDENT, TEACHER).item()
        assert loss(STUDENT, TEACHER, label).item() == pytest.approx(expected, rel=1e-6)

    def test_logits_are_brought_to_the_labels_grid(self):
        size = (6, 10, 8)
        label = torch.randint(0, 4, (2, *size), generator=torch.Generator().manual_seed(6))
        fine = [torch.nn.functional.interpolate(v, size=size, mode="trilinear") for v in (STUDENT, TEACHER)]
        assert DecoupledKL()(STUDENT, TEACHER, label).item() == pytest.approx(DecoupledKL()(*fine, label).item())

    def test_label_outside_the_classes_is_named(self):
        with pytest.raises(ValueError, match=r"label holds the classes .*7.*; the logits have 4, so 0 to 3"):
            DecoupledKL()(STUDENT, TEACHER, torch.full_like(LABEL, 7))

    def test_one_hot_label_is_refused(self):
        with pytest.raises(ValueError, match=r"label \(2, 4, 3, 5, 4\) does not go with"):
            DecoupledKL()(STUDENT, TEACHER, torch.zeros_like(STUDENT))

    @pytest.mark.parametrize(("setting", "value"), [("alpha", -1), ("beta", float("nan")), ("temperature", 0)])
    def test_a_bad_setting_is_named(self, setting, value):
        with pytest.raises(ValueError, match=f"{setting} is"):
            DecoupledKL(**{setting: value})


@pytest.mark.parametrize("classes", [1, 2])
def test_standardize_refuses_few_classes(classes):
    logits = torch.randn(1, classes, 4)
    with pytest.raises(ValueError, match=r"at least 2|3 classes or more"):
        SoftLogitKL(standardize=True)(logits, logits)


def test_a_label_that_is_not_read_may_have_any_shape():
    value = SoftLogitKL(ignore_index=None)(STUDENT, TEACHER, torch.zeros(1))
    assert value.item() == pytest.approx(SoftLogitKL()(STUDENT, TEACHER).item())


def test_the_gradient_of_lskd_is_bounded_where_logits_agree():
    student = torch.zeros(1, 4, 8, requires_grad=True)
    SoftLogitKL(standardize=True, reduction="sum")(student, torch.randn(1, 4, 8)).backward()
    assert student.grad.abs().max() < 500
