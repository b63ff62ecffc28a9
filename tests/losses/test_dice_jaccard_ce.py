"""DiceJaccardCE: values by hand, a literal version with a softmax for each part, coarser grids, missing samples."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from monai_kd.losses import DiceJaccardCE

PUBLISHED = {"include_background": True, "smooth": 0.0}


def make_batch(batch=2, size=(4, 3, 2), classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(batch, classes, *size, generator=generator, dtype=dtype)
    label = torch.randint(0, classes, (batch, 1, *size), generator=generator)
    return logits, label


def hot(label, classes=4):
    return F.one_hot(label[:, 0], classes).movedim(-1, 1).double()


def balanced(classes=4, side=4):
    """A cube in which every class has as many voxels."""
    return (torch.arange(side**3) % classes).reshape(1, 1, side, side, side)


def literal(logits, label, include_background=False, smooth=1.0):
    """The formula of the docstring, with a softmax and a one-hot label for each of its three parts."""
    classes = logits.shape[1]
    first = 0 if include_background else 1
    over = [0, *range(2, logits.ndim)]
    p, y = logits.softmax(dim=1), hot(label, classes)
    both, total = (p * y).sum(dim=over)[first:], (p + y).sum(dim=over)[first:]
    dice = 1 - ((2 * both + smooth) / (total + smooth)).mean()
    p, y = logits.softmax(dim=1), hot(label, classes)
    both, total = (p * y).sum(dim=over)[first:], (p + y).sum(dim=over)[first:]
    jaccard = 1 - ((both + smooth) / (total - both + smooth)).mean()
    return (dice + jaccard + F.cross_entropy(logits, label[:, 0])) / 3


# ---- values by hand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, PUBLISHED, {"resampling": "nearest"}])
def test_perfect_logits_cost_nothing(settings):
    label = balanced()
    assert DiceJaccardCE(**settings)(100 * hot(label).float() - 50, label).item() < 1e-4


@pytest.mark.parametrize("include_background", [True, False])
def test_uniform_logits_on_a_balanced_cube_by_hand(include_background):
    # Dice 1/4, Jaccard 1/7, cross-entropy ln 4
    expected = (0.75 + 6 / 7 + math.log(4)) / 3
    assert expected == pytest.approx(0.997812, abs=1e-6)
    value = DiceJaccardCE(include_background, smooth=0.0)(torch.zeros(1, 4, 4, 4, 4), balanced())
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_two_voxels_by_hand():
    # foreground: p = (0.8, 0.4), Y = (1, 0); I = 0.8, C = 2.2; smoothed by 1: Dice 2.6 / 3.2, Jaccard 1.8 / 2.4
    logits = torch.tensor([[[0.2, 0.6], [0.8, 0.4]]]).log()
    entropy = -(math.log(0.8) + math.log(0.6)) / 2
    expected = ((1 - 2.6 / 3.2) + (1 - 1.8 / 2.4) + entropy) / 3
    assert DiceJaccardCE()(logits, torch.tensor([[[1, 0]]])).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("settings", [{}, PUBLISHED, {"smooth": 0.5}, {"include_background": True}])
@pytest.mark.parametrize("size", [(5,), (4, 3), (4, 3, 2)])
def test_one_softmax_gives_value_and_gradient_of_three(settings, size):
    logits, label = make_batch(size=size)
    logits.requires_grad_()
    got, expected = DiceJaccardCE(**settings)(logits, label), literal(logits, label, **settings)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    (own,), (other,) = torch.autograd.grad(got, logits), torch.autograd.grad(expected, logits)
    torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, PUBLISHED, {"resampling": "nearest"}])
@pytest.mark.parametrize("finer", [1, 2])
def test_the_gradient_is_exact(settings, finer):
    logits, label = make_batch(size=(2, 3, 2))
    label = label.repeat_interleave(finer, 2).repeat_interleave(finer, 3).repeat_interleave(finer, 4)
    assert torch.autograd.gradcheck(lambda value: DiceJaccardCE(**settings)(value, label), logits.requires_grad_())


# ---- absent classes -------------------------------------------------------------------------------------------------


def overlap_gradient(smooth):
    """Return the gradient of the overlap terms alone, at logits of two classes and a label without the second."""
    logits = torch.zeros(1, 2, 8, dtype=torch.float64, requires_grad=True)
    label = torch.zeros(1, 1, 8, dtype=torch.long)
    overlaps = 3 * DiceJaccardCE(smooth=smooth)(logits, label) - F.cross_entropy(logits, label[:, 0])
    return torch.autograd.grad(overlaps, logits)[0]


def test_an_absent_class_costs_only_with_smoothing():
    assert overlap_gradient(0.0).abs().max() < 1e-12
    assert (overlap_gradient(1.0)[:, 1] > 0).all()  # downhill is to predict it less


def test_a_class_that_neither_label_nor_prediction_has_is_right():
    logits = torch.full((1, 3, 4, 4), -1e4)
    logits[:, 0] = 1e4
    label = torch.zeros(1, 1, 4, 4, dtype=torch.long)
    for smooth in (0.0, 1.0):
        logits.requires_grad_().grad = None
        value = DiceJaccardCE(smooth=smooth)(logits, label)
        value.backward()
        assert value.item() == 0
        assert torch.isfinite(logits.grad).all()


# ---- coarser grids --------------------------------------------------------------------------------------------------


def test_shares_of_a_coarser_grid_by_hand():
    label = torch.tensor([[0, 1, 2, 2], [1, 1, 2, 0]]).reshape(1, 1, 2, 4)
    like = torch.zeros(1, 3, 1, 2)
    area = DiceJaccardCE().shares(label, like)[0, :, 0]  # (classes, 2 voxels)
    assert area.T.tolist() == [[0.25, 0.75, 0.0], [0.25, 0.0, 0.75]]
    nearest = DiceJaccardCE(resampling="nearest").shares(label, like)[0, :, 0]
    assert nearest.T.tolist() == [[1, 0, 0], [0, 0, 1]]  # the voxels (0, 0) and (0, 2)


def test_a_structure_one_voxel_thin_survives_area_and_not_nearest():
    label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.long)
    label[..., 3] = 1  # an odd plane
    like = torch.zeros(1, 2, 4, 4, 4)
    assert DiceJaccardCE().shares(label, like)[:, 1].sum() == 4 * 4 * 0.5
    assert not DiceJaccardCE(resampling="nearest").shares(label, like)[:, 1].any()


def test_resampling_is_none_on_the_labels_own_grid():
    logits, label = make_batch()
    assert DiceJaccardCE()(logits, label) == DiceJaccardCE(resampling="nearest")(logits, label)


def test_strides_may_differ_between_axes():
    logits, _ = make_batch(size=(2, 3, 2))
    label = torch.randint(0, 4, (2, 1, 8, 3, 4))
    assert torch.isfinite(DiceJaccardCE()(logits, label))
    shares = DiceJaccardCE().shares(label, logits)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, 2, 3, 2).double())


# ---- samples that do not count --------------------------------------------------------------------------------------


def test_samples_that_are_not_available_do_not_count():
    logits, label = make_batch(batch=3)
    logits.requires_grad_()
    value = DiceJaccardCE()(logits, label, available=torch.tensor([1, 0, 1]))
    kept = [0, 2]
    torch.testing.assert_close(value, DiceJaccardCE()(logits[kept], label[kept]))
    (found,) = torch.autograd.grad(value, logits)
    assert not found[1].any()
    torch.testing.assert_close(DiceJaccardCE()(logits, label, torch.ones(3)), DiceJaccardCE()(logits, label))


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), 1e30])
def test_what_is_not_available_may_be_no_number(strange):
    logits, label = make_batch()
    logits[1] = strange
    logits.requires_grad_()
    value = DiceJaccardCE()(logits, label, available=torch.tensor([1.0, 0.0]))
    value.backward()
    torch.testing.assert_close(value, DiceJaccardCE()(logits[:1], label[:1]))
    assert torch.isfinite(logits.grad).all()


def test_without_any_sample_it_is_zero_with_a_gradient():
    logits, label = make_batch()
    logits[1] = float("nan")
    logits.requires_grad_()
    value = DiceJaccardCE()(logits, label, available=torch.zeros(2))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


# ---- the frame ------------------------------------------------------------------------------------------------------


def test_float32_inside_autocast_and_in_half_precision():
    logits, label = make_batch(dtype=torch.float32)
    expected = DiceJaccardCE()(logits, label)
    with torch.autocast("cpu", torch.bfloat16):
        inside = DiceJaccardCE()(logits, label)
    assert inside.dtype == torch.float32
    assert inside.item() == expected.item()
    half = logits.bfloat16()
    assert DiceJaccardCE()(half, label).item() == DiceJaccardCE()(half.float(), label).item()


def test_finite_at_logits_of_ten_thousand():
    logits, label = make_batch(dtype=torch.float32)
    logits = (1e4 * logits.sign()).requires_grad_()
    value = DiceJaccardCE()(logits, label)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_labels_with_and_without_a_channel_and_of_any_number_type():
    logits, label = make_batch()
    expected = DiceJaccardCE()(logits, label)
    for other in (label[:, 0], label.float(), label.to(torch.uint8)):
        assert DiceJaccardCE()(logits, other) == expected


def test_a_larger_volume_of_the_same_costs_the_same_without_smoothing():
    logits, label = make_batch()
    loss = DiceJaccardCE(smooth=0.0)
    torch.testing.assert_close(loss(torch.cat([logits] * 2, 2), torch.cat([label] * 2, 2)), loss(logits, label))


def test_every_setting_changes_the_value():
    logits, _ = make_batch()
    fine = torch.randint(0, 4, (2, 1, 8, 6, 4), generator=torch.Generator().manual_seed(3))
    variants = [{}, {"include_background": True}, {"smooth": 0.0}, {"resampling": "nearest"}]
    assert len({DiceJaccardCE(**settings)(logits, fine).item() for settings in variants}) == len(variants)
    assert repr(DiceJaccardCE()) == "DiceJaccardCE(include_background=False, smooth=1.0, resampling='area')"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smooth": -1.0}, "smooth is -1.0; it must be a finite number of at least 0"),
        ({"resampling": "linear"}, "resampling is 'linear'; known: area, nearest"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DiceJaccardCE(**settings)


def test_what_does_not_fit_is_named():
    logits, label = make_batch()
    loss = DiceJaccardCE()
    with pytest.raises(ValueError, match="with at least 2 classes"):
        loss(logits[:, :1], label)
    with pytest.raises(ValueError, match="with at least 2 classes"):
        loss(logits[:, :, 0, 0, 0], label)
    with pytest.raises(ValueError, match="does not go with"):
        loss(logits, hot(label))
    with pytest.raises(
        ValueError, match=r"grid \(4, 3, 4\) is no whole number of times that of the logits \(4, 2, 2\)"
    ):
        loss(logits[..., :2, :], torch.zeros(2, 1, 4, 3, 4))
    with pytest.raises(ValueError, match="is no whole number of times"):
        loss(logits, label[:, :, :2])
    with pytest.raises(ValueError, match=r"the label holds class 7, the logits have 4 \(0 to 3\)"):
        loss(logits, label + 4)
    with pytest.raises(ValueError, match=r"available has the shape \(2, 3\); give one number per sample, \(2,\)"):
        loss(logits, label, available=torch.ones(2, 3))
