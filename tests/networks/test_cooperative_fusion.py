"""CooperativeFusion: published sizes, one linear map per voxel behind the gates, missing teachers, other grids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_kd.networks.nets import CooperativeFusion

LEAKY = ("leakyrelu", {"negative_slope": 0.01})


def make_fusion(channels=(6, 6, 6), classes=4, dims=3, **settings) -> CooperativeFusion:
    torch.manual_seed(0)
    return CooperativeFusion(dims, list(channels), classes, reduction=2, **settings).double()


def make_features(channels=(6, 6, 6), size=(4, 4, 4), batch=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, count, *size, generator=generator, dtype=torch.float64) for count in channels]


def parts(fusion, features):
    """Each teacher's contribution, literally: gate, then a 1x1x1 convolution."""
    return [p(g(value)) for p, g, value in zip(fusion.projections, fusion.gates, features, strict=True)]


# ---- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teachers", "channels", "classes", "expected"), [(3, 64, 4, 2_540), (3, 128, 4, 8_120), (1, 64, 4, 860)]
)
def test_parameters_are_those_of_the_reference(teachers, channels, classes, expected):
    fusion = CooperativeFusion(3, [channels] * teachers, classes)
    assert sum(p.numel() for p in fusion.parameters()) == expected


@pytest.mark.parametrize(("teachers", "channels", "classes"), [(1, 32, 2), (2, 48, 4), (4, 64, 5), (3, 8, 3)])
@pytest.mark.parametrize("dims", [2, 3])
def test_parameters_follow_the_formula(teachers, channels, classes, dims):
    hidden = max(1, channels // 16)
    each = channels * hidden + hidden + hidden * channels + channels + channels * classes + classes
    fusion = CooperativeFusion(dims, [channels] * teachers, classes)
    assert sum(p.numel() for p in fusion.parameters()) == teachers * each + classes**2 + classes


# ---- what it computes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "size"), [(2, (4, 6)), (3, (4, 2, 6))])
@pytest.mark.parametrize("act", [None, LEAKY])
def test_it_is_the_last_convolution_of_the_sum(dims, size, act):
    fusion, features = make_fusion(dims=dims, act=act), make_features(size=size)
    total = sum(parts(fusion, features))
    expected = fusion.classify(total if act is None else F.leaky_relu(total, 0.01))
    torch.testing.assert_close(fusion(features), expected)
    assert expected.shape == (2, 4, *size)


def test_without_activation_it_is_linear_in_the_gated_features():
    """One matrix ``V W_i`` per teacher and one constant, so the last convolution adds nothing but conditioning."""
    fusion, features = make_fusion(), make_features()
    last, constant = fusion.classify.weight[:, :, 0, 0, 0], fusion.classify.bias
    expected = torch.zeros(2, 4, 4, 4, 4, dtype=torch.float64)
    for project, gate, value in zip(fusion.projections, fusion.gates, features, strict=True):
        expected = expected + torch.einsum("kc,bc...->bk...", last @ project.weight[:, :, 0, 0, 0], gate(value))
        constant = constant + last @ project.bias
    torch.testing.assert_close(fusion(features), expected + constant.reshape(1, 4, 1, 1, 1))


@pytest.mark.parametrize(("act", "linear"), [(None, True), (LEAKY, False), ("relu", False)])
def test_an_activation_makes_it_non_linear_in_the_sum(act, linear):
    fusion, features = make_fusion(act=act), make_features()
    one, other = parts(fusion, features)[:2]

    def behind(total):
        return fusion.classify(fusion.act(total))

    mean = (behind(one) + behind(other)) / 2
    assert torch.allclose(behind((one + other) / 2), mean) == linear


def test_every_teacher_and_every_weight_gets_a_gradient():
    fusion, features = make_fusion(), [value.requires_grad_() for value in make_features()]
    fusion(features).square().sum().backward()
    assert all(value.grad.abs().max() > 0 for value in features)
    assert all(p.grad is not None for p in fusion.parameters())


@pytest.mark.parametrize(("dims", "mode"), [(2, "bilinear"), (3, "trilinear")])
def test_other_grids_are_brought_to_the_coarsest(dims, mode):
    channels = (6, 4, 6)
    fusion = make_fusion(channels, dims=dims)
    sizes = [[8] * dims, [4] * dims, [6] * dims]
    features = [make_features((count,), size)[0] for count, size in zip(channels, sizes, strict=True)]
    brought = [F.interpolate(value, size=tuple(sizes[1]), mode=mode) for value in parts(fusion, features)]
    torch.testing.assert_close(fusion(features), fusion.classify(sum(brought)))
    assert fusion(features).shape == (2, 4, *sizes[1])


def test_finite_under_autocast():
    fusion, features = make_fusion().float(), [value.float() for value in make_features()]
    with torch.autocast("cpu", torch.bfloat16):
        fused = fusion(features, torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]))
    assert torch.isfinite(fused).all()


# ---- missing teachers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_all_available_is_the_same_as_no_mask(kind):
    fusion, features = make_fusion(), make_features()
    torch.testing.assert_close(fusion(features, torch.ones(2, 3, dtype=kind)), fusion(features))


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_single_teacher_at_hand_counts_as_often_as_there_are_teachers(chosen):
    fusion, features = make_fusion(), make_features()
    available = torch.zeros(2, 3)
    available[:, chosen] = 1
    expected = fusion.classify(3 * parts(fusion, features)[chosen])
    torch.testing.assert_close(fusion(features, available), expected)


def test_samples_may_lack_different_teachers():
    fusion, features = make_fusion(), make_features()
    u = parts(fusion, features)
    sums = torch.stack([(u[0] + u[2])[0] * 3 / 2, (u[0] + u[1] + u[2])[1]])
    torch.testing.assert_close(fusion(features, torch.tensor([[1, 0, 1], [1, 1, 1]])), fusion.classify(sums))


def test_a_missing_teacher_may_hold_anything_and_learns_nothing():
    fusion, features = make_fusion(), make_features()
    available = torch.tensor([[1.0, 0.0, 1.0]] * 2)
    before = fusion(features, available)
    features[1] = torch.full_like(features[1], float("nan")).requires_grad_()
    torch.testing.assert_close(fusion(features, available), before)
    finite = make_features()
    finite[1].requires_grad_()
    fusion(finite, available).square().sum().backward()
    assert not finite[1].grad.any()


def test_a_sample_without_any_teacher_is_finite_and_leaves_the_others_alone():
    fusion, features = make_fusion(), make_features()
    with_none = fusion(features, torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(with_none[0], fusion(features)[0])
    empty = fusion.classify(torch.zeros_like(with_none[1:]))
    torch.testing.assert_close(with_none[1:], empty)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    fusion, features = make_fusion(), make_features()
    with pytest.raises(ValueError, match=r"got features of \[6, 6\] channels, it takes \[6, 6, 6\]"):
        fusion(features[:2])
    with pytest.raises(ValueError, match=r"got features of \[6, 6, 4\] channels"):
        fusion([*features[:2], features[2][:, :4]])
    with pytest.raises(ValueError, match=r"available has the shape \(2, 2\); give \(batch, 3\), one per teacher"):
        fusion(features, torch.ones(2, 2))
    with pytest.raises(ValueError, match="in_channels of a CooperativeFusion is empty"):
        CooperativeFusion(3, [], 4)
