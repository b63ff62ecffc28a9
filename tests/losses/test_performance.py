"""PerformanceKL: weights by Dice, one divergence in place of one per teacher, regions, and missing modalities."""

from __future__ import annotations

import math

import pytest
import torch

from monai_kd.losses import ForegroundWeighting, MultiTeacherKL, PerformanceKL, SoftLogitKL, performance_weights

REGIONS = {"whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]}
PUBLISHED = torch.tensor([0.887, 0.8897, 0.8372], dtype=torch.float64)
DICE = torch.tensor([[0.9, 0.4, 0.1], [0.8, 0.5, 0.2], [0.6, 0.7, 0.6]], dtype=torch.float64)  # 3 teachers, 3 regions
MODES = ("uniform", "linear", "softmax", "region")


def make_loss(mode="region", dice=DICE, **settings):
    loss = PerformanceKL(len(dice), REGIONS, mode=mode, **settings).double()
    loss.dice.copy_(dice)
    return loss


def make_batch(batch=2, size=(4, 3, 2), teachers=3, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(batch, classes, *size, generator=generator, dtype=dtype)
    others = [3 * torch.randn(batch, classes, *size, generator=generator, dtype=dtype) for _ in range(teachers)]
    label = torch.randint(0, classes, (batch, 1, *size), generator=generator)
    return student, others, label


def gradient(value, student):
    return torch.autograd.grad(value, student)[0]


def kl_of_each_voxel(student, teacher, temperature=4.0):
    """Literally ``T^2 sum q (log q - log p)``, ``(B, 1, *spatial)``."""
    q, p = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
    return temperature**2 * (q * (q.log() - p.log())).sum(dim=1, keepdim=True)


# ---- weights --------------------------------------------------------------------------------------------------------


def test_published_dice_give_the_published_weights():
    weights = performance_weights(PUBLISHED, "linear", total=0.15)
    torch.testing.assert_close(weights, torch.tensor([0.05090, 0.05106, 0.04804]).double(), atol=1e-4, rtol=0)
    # to the last digit given they are 0.15 * (.887, .8897, .8372) / 2.6139
    torch.testing.assert_close(weights, 0.15 * PUBLISHED / 2.6139, atol=1e-12, rtol=0)


def test_softmax_weights_by_hand():
    # a lead of 0.1 at tau 0.1 is a factor of e
    weights = performance_weights(torch.tensor([0.8, 0.7]), "softmax", tau=0.1)
    assert weights.tolist() == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)], abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
class TestEveryMode:
    def test_weights_sum_to_the_total(self, mode):
        sums = performance_weights(DICE, mode, total=0.15).sum(dim=0)
        torch.testing.assert_close(sums, torch.full((3,), 0.15).double())

    def test_permuted_teachers_have_permuted_weights(self, mode):
        order = [2, 0, 1]
        torch.testing.assert_close(performance_weights(DICE[order], mode), performance_weights(DICE, mode)[order])

    def test_equal_teachers_count_alike(self, mode):
        weights = performance_weights(torch.full((3,), 0.7), mode, total=0.15)
        assert weights.tolist() == pytest.approx([0.05] * 3)

    def test_teachers_that_can_nothing_count_alike(self, mode):
        for dice in (torch.zeros(3), torch.full((3,), 1e-7)):
            assert performance_weights(dice, mode, 0.15).tolist() == pytest.approx([0.05] * 3)

    def test_one_teacher_has_it_all(self, mode):
        assert performance_weights(torch.tensor([0.3]), mode, 0.15).tolist() == pytest.approx([0.15])


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_better_teacher_counts_more_and_the_others_less(mode):
    before = performance_weights(DICE[:, 0], mode)
    better = DICE[:, 0].clone()
    better[1] += 0.05
    after = performance_weights(better, mode)
    assert after[1] > before[1]
    assert after[0] < before[0]
    assert after[2] < before[2]


def test_a_smaller_tau_is_sharper():
    sharp, flat = (performance_weights(DICE[:, 0], "softmax", tau=tau) for tau in (0.05, 0.5))
    assert sharp.max() > flat.max()
    assert sharp.argmax() == flat.argmax() == 0


# ---- the divergence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
class TestDivergence:
    def test_zero_for_equal_logits_and_for_a_constant_per_voxel(self, mode):
        student, _, label = make_batch()
        shift = torch.randn(2, 1, 4, 3, 2).double()
        loss = make_loss(mode)
        assert loss(student, [student.clone()] * 3, label).item() == pytest.approx(0, abs=1e-12)
        assert loss(student, [student + shift, student - 2 * shift, student], label).item() == pytest.approx(
            0, abs=1e-12
        )

    def test_does_not_depend_on_how_large_the_volume_is(self, mode):
        student, teachers, label = make_batch()
        twice = [torch.cat([value, value], dim=2) for value in (student, *teachers, label)]
        loss = make_loss(mode)
        torch.testing.assert_close(loss(twice[0], twice[1:4], twice[4]), loss(student, teachers, label))

    def test_no_gradient_reaches_a_teacher(self, mode):
        student, teachers, label = make_batch()
        learning = [teacher.requires_grad_() for teacher in teachers]
        make_loss(mode)(student.requires_grad_(), learning, label).backward()
        assert student.grad.abs().max() > 0
        assert all(teacher.grad is None for teacher in learning)

    def test_finite_at_logits_of_ten_thousand(self, mode):
        student, teachers, label = make_batch(dtype=torch.float32)
        far = (1e4 * student.sign()).requires_grad_()
        value = make_loss(mode).float()(far, [1e4 * teacher.sign() for teacher in teachers], label)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(far.grad).all()

    def test_one_divergence_has_the_gradient_of_one_per_teacher(self, mode):
        student, teachers, label = make_batch()
        student.requires_grad_()
        loss = make_loss(mode)
        shares = loss.voxel_shares(teachers[0], label)
        assert shares.shape[:3] in {(3, 1, 1), (3, 2, 1)}
        torch.testing.assert_close(shares.sum(dim=0), torch.ones_like(shares[0]))
        several = sum(
            (share * kl_of_each_voxel(student, teacher)).mean() for share, teacher in zip(shares, teachers, strict=True)
        )
        one = loss(student, teachers, label)
        torch.testing.assert_close(gradient(one, student), gradient(several, student), rtol=1e-12, atol=1e-12)
        # and the value is less by what the teachers disagree, which is no matter of the student
        assert one.item() < several.item()

    def test_the_same_in_float32(self, mode):
        student, teachers, label = make_batch(dtype=torch.float32)
        student.requires_grad_()
        loss = make_loss(mode).float()
        shares = loss.voxel_shares(teachers[0], label)
        several = sum((a * kl_of_each_voxel(student, t)).mean() for a, t in zip(shares, teachers, strict=True))
        got, expected = gradient(loss(student, teachers, label), student), gradient(several, student)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

    def test_the_same_where_modalities_are_missing(self, mode):
        student, teachers, label = make_batch()
        student.requires_grad_()
        available = torch.tensor([[1, 0, 1], [0, 0, 1]])
        loss = make_loss(mode)
        shares = loss.voxel_shares(teachers[0], label, available)
        several = sum((a * kl_of_each_voxel(student, t)).mean() for a, t in zip(shares, teachers, strict=True))
        one = loss(student, teachers, label, available=available)
        torch.testing.assert_close(gradient(one, student), gradient(several, student), rtol=1e-12, atol=1e-12)

    def test_one_teacher_is_plain_distillation_to_the_last_bit(self, mode):
        student, teachers, label = make_batch(teachers=1)
        loss = make_loss(mode, DICE[:1], temperature=3.0)
        assert loss(student, teachers, label).item() == SoftLogitKL(3.0)(student, teachers[0], label).item()

    def test_all_available_is_the_same_as_no_mask(self, mode):
        student, teachers, label = make_batch()
        loss = make_loss(mode)
        masked = loss(student, teachers, label, available=torch.ones(2, 3))
        torch.testing.assert_close(masked, loss(student, teachers, label))

    def test_a_sample_without_any_teacher_does_not_count(self, mode):
        student, teachers, label = make_batch()
        student.requires_grad_()
        loss = make_loss(mode)
        value = loss(student, teachers, label, available=torch.tensor([[1, 1, 0], [0, 0, 0]]))
        first = loss(student[:1], [t[:1] for t in teachers], label[:1], available=torch.tensor([[1, 1, 0]]))
        torch.testing.assert_close(value, first)
        found = gradient(value, student)
        assert found[0].abs().max() > 0
        assert not found[1].any()  # neither a number nor NaN

    def test_nobody_available_at_all_is_exactly_zero(self, mode):
        student, teachers, label = make_batch()
        student.requires_grad_()
        value = make_loss(mode)(student, teachers, label, available=torch.zeros(2, 3))
        assert value.item() == 0
        assert not gradient(value, student).any()

    def test_a_missing_teacher_may_say_anything(self, mode):
        student, teachers, label = make_batch()
        available = torch.tensor([[1, 0, 1], [1, 0, 1]])
        loss = make_loss(mode)
        before = loss(student, teachers, label, available=available)
        assert loss(student, [teachers[0], 9 * teachers[1] - 5, teachers[2]], label, available=available) == before

    def test_in_two_dimensions_and_with_two_classes(self, mode):
        student, teachers, label = make_batch(size=(5, 4), classes=2)
        loss = PerformanceKL(3, {"vessel": [1]}, mode=mode).double()
        loss.dice.copy_(DICE[:, :1])
        assert loss(student, teachers, label).item() > 0

    def test_float32_inside_autocast(self, mode):
        student, teachers, label = make_batch(dtype=torch.float32)
        loss = make_loss(mode).float()
        expected = loss(student, teachers, label)
        with torch.autocast("cpu", torch.bfloat16):
            inside = loss(student, teachers, label)
        assert inside.dtype == torch.float32
        assert inside.item() == expected.item()


@pytest.mark.parametrize("mode", MODES)
def test_at_a_large_temperature_it_is_half_the_variance_of_the_difference(mode):
    """``T^2 KL -> 1/2 Var_k(dz)``, the population variance over the classes."""
    student, teachers, label = make_batch(size=(6, 6, 6), teachers=1)
    value = make_loss(mode, DICE[:1], temperature=1000.0)(student, teachers, label)
    expected = 0.5 * (student - teachers[0]).var(dim=1, correction=0).mean()
    assert value.item() == pytest.approx(expected.item(), rel=0.01)


def test_published_weights_and_mean_teachers_are_those_of_multi_teacher_kl():
    student, teachers, label = make_batch(dtype=torch.float32)
    linear = make_loss("linear").float()
    torch.testing.assert_close(
        linear(student, teachers, label), MultiTeacherKL(4.0, DICE[:, 0].tolist())(student, teachers, label)
    )
    uniform = make_loss("uniform").float()
    torch.testing.assert_close(uniform(student, teachers, label), MultiTeacherKL(4.0)(student, teachers, label))


# ---- regions --------------------------------------------------------------------------------------------------------


def test_each_voxel_takes_the_weights_of_its_innermost_region():
    loss = make_loss("region")
    label = torch.tensor([0, 1, 2, 3]).reshape(1, 1, 4)  # background, necrotic core, edema, enhancing tumor
    shares = loss.voxel_shares(torch.zeros(1, 4, 4).double(), label)[:, 0, 0]  # (teachers, voxels)
    whole, core, enhancing = (torch.softmax(DICE[:, column] / 0.1, dim=0) for column in range(3))
    torch.testing.assert_close(shares[:, 1], core)
    torch.testing.assert_close(shares[:, 2], whole)
    torch.testing.assert_close(shares[:, 3], enhancing)
    torch.testing.assert_close(shares[:, 0], (whole + core + enhancing) / 3)


def test_regions_by_hand():
    # Dice (0.1, 0): shares e/(e+1) and 1/(e+1) in the tumor; one voxel of background and one of tumor
    first = math.e / (math.e + 1)
    loss = PerformanceKL(2, {"tumor": [1]}, temperature=1.0, mode="region", tau=0.1).double()
    loss.dice.copy_(torch.tensor([[0.1], [0.0]]))
    teachers = [torch.tensor([[[p, p], [1 - p, 1 - p]]]).double().log() for p in (0.8, 0.4)]
    student = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]).double().log()
    mixture = first * 0.8 + (1 - first) * 0.4  # background: the mean over the one region, hence the same
    expected = mixture * math.log(2 * mixture) + (1 - mixture) * math.log(2 * (1 - mixture))
    assert loss(student, teachers, torch.tensor([[[0, 1]]])).item() == pytest.approx(expected, abs=1e-7)


def test_a_class_of_no_region_counts_as_background():
    loss = PerformanceKL(3, {"core": [1], "rim": [3]}, mode="region").double()
    loss.dice.copy_(DICE[:, :2])
    shares = loss.voxel_shares(torch.zeros(1, 4, 2).double(), torch.tensor([[[0, 2]]]))
    torch.testing.assert_close(shares[..., 0], shares[..., 1])


def test_a_teacher_that_fails_in_a_region_does_not_teach_it():
    dice = torch.tensor([[0.9, 0.9, 0.0], [0.9, 0.9, 0.8], [0.9, 0.9, 0.8]]).double()
    shares = make_loss("region", dice).voxel_shares(torch.zeros(1, 4, 2).double(), torch.tensor([[[2, 3]]]))
    assert shares[0, 0, 0, 0].item() == pytest.approx(1 / 3)
    assert shares[0, 0, 0, 1].item() < 0.001


def test_a_label_on_a_finer_grid_is_brought_to_the_teachers():
    student, teachers, _ = make_batch(batch=1, size=(2, 2, 2))
    coarse = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]).reshape(1, 1, 2, 2, 2)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    loss = make_loss("region")
    torch.testing.assert_close(loss(student, teachers, fine), loss(student, teachers, coarse))


def test_ignored_voxels_do_not_count():
    student, teachers, label = make_batch()
    label[:, :, 2:] = 255
    loss = make_loss("region")
    cut = loss(student[:, :, :2], [teacher[:, :, :2] for teacher in teachers], label[:, :, :2])
    torch.testing.assert_close(loss(student, teachers, label), cut)


# ---- missing modalities ---------------------------------------------------------------------------------------------


def test_the_shares_of_missing_teachers_go_to_those_at_hand():
    loss = make_loss("linear")
    available = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0]])
    shares = loss.voxel_shares(torch.zeros(3, 4, 2).double(), None, available)[:, :, 0, 0].T  # (B, M)
    d = DICE[:, 0].tolist()
    assert shares[0].tolist() == pytest.approx([value / sum(d) for value in d])
    assert shares[1].tolist() == pytest.approx([d[0] / (d[0] + d[2]), 0, d[2] / (d[0] + d[2])])
    assert shares[2].tolist() == [0, 1, 0]


def test_whoever_is_at_hand_teaches_even_without_a_share():
    dice = torch.tensor([[0.9] * 3, [0.0] * 3, [0.0] * 3]).double()
    loss = make_loss("linear", dice)
    shares = loss.voxel_shares(torch.zeros(1, 4, 2).double(), None, torch.tensor([[0, 1, 1]]))[:, 0, 0, 0]
    assert shares.tolist() == [0, 0.5, 0.5]


def test_a_map_of_weights_and_missing_teachers_go_together():
    student, teachers, label = make_batch()
    weight = torch.zeros(2, 1, 4, 3, 2)
    weight[:, :, :2] = 1.0
    available = torch.tensor([[1, 1, 1], [0, 0, 0]])
    loss = make_loss("region")
    got = loss(student, teachers, label, weight=weight, available=available)
    cut = loss(student[:1, :, :2], [teacher[:1, :, :2] for teacher in teachers], label[:1, :, :2])
    torch.testing.assert_close(got, cut)
    torch.testing.assert_close(loss(student, teachers, label, weight=weight[:, 0], available=available), got)


# ---- state and settings ---------------------------------------------------------------------------------------------


def test_the_dice_are_part_of_the_state():
    loss, other = make_loss(), make_loss(dice=torch.zeros_like(DICE))
    assert list(loss.state_dict()) == ["dice"]
    assert not PerformanceKL(3, REGIONS).dice.any()
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.dice, DICE)


def test_every_setting_changes_the_value():
    student, teachers, label = make_batch()
    variants = [
        {},
        {"mode": "uniform"},
        {"mode": "linear"},
        {"mode": "softmax"},
        {"tau": 0.5},
        {"temperature": 2.0},
        {"reduction": "sum"},
        {"weighting": ForegroundWeighting(dilation=0)},
        {"ignore_index": 3},
        {"dice": DICE.flip(0)},
    ]
    values = [make_loss(**settings)(student, teachers, label).item() for settings in variants]
    assert len({round(value, 9) for value in values}) == len(variants)
    text = repr(make_loss(mode="softmax", tau=0.3))
    assert "mode='softmax', tau=0.3" in text
    assert "temperature=4.0" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "best"}, "mode is 'best'; known: uniform, linear, softmax, region"),
        ({"tau": 0}, "tau is 0; it must be a finite number above 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"regions": {}}, "regions is {}; give at least one"),
        ({"regions": {"tumor": []}}, r"regions is {'tumor': \[\]}; give at least one, each with its class indices"),
        ({"num_teachers": 0}, "num_teachers is 0; it must be a whole number above 0"),
        ({"num_teachers": True}, "num_teachers is True"),
        ({"reduction": "median"}, "reduction is 'median'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PerformanceKL(**{"num_teachers": 3, "regions": REGIONS, **settings})


def test_an_unknown_way_of_weighing_is_refused():
    with pytest.raises(ValueError, match="mode is 'best'; known"):
        performance_weights(DICE, "best")
    with pytest.raises(ValueError, match="tau is -1"):
        performance_weights(DICE, "softmax", tau=-1)


def test_what_does_not_fit_is_named():
    student, teachers, label = make_batch()
    loss = make_loss()
    with pytest.raises(ValueError, match="got the logits of 2 teachers; num_teachers is 3"):
        loss(student, teachers[:2], label)
    with pytest.raises(ValueError, match="got no teacher"):
        loss(student, [], label)
    with pytest.raises(ValueError, match="mode 'region' needs the label"):
        loss(student, teachers)
    with pytest.raises(ValueError, match="regions name class 2; the logits have 2"):
        loss(student[:, :2], [teacher[:, :2] for teacher in teachers], label.clamp(0, 1))
    with pytest.raises(ValueError, match=r"available has the shape \(3,\).*\(2, 3\)"):
        loss(student, teachers, label, available=torch.ones(3))
    with pytest.raises(ValueError, match="teacher 3"):
        loss(student, [*teachers[:2], teachers[2][..., :1]], label)
