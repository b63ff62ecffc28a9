"""The depth shift layers: equal to their definition, slice by slice, with every gradient."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from monai_kd.networks.layers import DepthShift, DistillDepthShift, ResidualDepthShift, fold_slices, unfold_slices

ENDS = ["zero", "replicate", "circular"]


def volume(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(channels: int = 16, seed: int = 0, **settings) -> DistillDepthShift:
    torch.manual_seed(seed)
    return DistillDepthShift(channels, **settings)


def neighbor(maps: list[Tensor], index: int, ends: str) -> Tensor:
    """The maps of a slice, also beyond the ends."""
    last = len(maps) - 1
    if 0 <= index <= last:
        return maps[index]
    return {
        "zero": torch.zeros_like(maps[0]),
        "replicate": maps[min(max(index, 0), last)],
        "circular": maps[index % (last + 1)],
    }[ends]


def literal(layer: DistillDepthShift, features: Tensor) -> Tensor:
    """The definition: three convolutions, slice by slice, volume by volume; (B, C, D, H, W)."""
    width, quarter = layer.width, layer.width // 4
    parts = [0, 2 * quarter, 2 * quarter, width] if layer.causal else [0, quarter, 2 * quarter, width]
    pairs = [(layer.conv.weight[a:b], layer.conv.bias[a:b]) for a, b in pairwise(parts)]
    volumes = []
    for one in features:
        taken = [one[:width, index].unsqueeze(0) for index in range(one.shape[1])]
        padding = layer.conv.padding
        onward, back, stay = (
            [
                nn.functional.conv2d(slice_, weight, bias, padding=padding) if len(weight) else slice_[:, :0]
                for slice_ in taken
            ]
            for weight, bias in pairs
        )
        slices = [
            torch.cat(
                [
                    neighbor(onward, index - 1, layer.ends),
                    neighbor(back, index + 1, layer.ends),
                    stay[index],
                    one[width:, index].unsqueeze(0),
                ],
                dim=1,
            )
            for index in range(one.shape[1])
        ]
        volumes.append(torch.cat(slices).movedim(0, 1))
    return torch.stack(volumes)


def folded(layer: nn.Module, features: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Run a layer on slices, as inside a network that folds its volumes."""
    return run_form("folded, channels last" if memory_format == torch.channels_last else "folded", layer, features)


def laid_out(features: Tensor, form: str) -> Tensor:
    """The tensor that a layer gets: a volume, or slices as inside a network that folds its volumes."""
    tensor = features if form.startswith("volume") else fold_slices(features, 0)
    last = torch.channels_last_3d if tensor.ndim == 5 else torch.channels_last
    return tensor.contiguous(memory_format=last if form.endswith("channels last") else torch.contiguous_format)


def run_form(form: str, layer: nn.Module, features: Tensor) -> Tensor:
    given = laid_out(features, form)
    if form.startswith("volume"):
        return layer(given)
    layer.count.slices = features.shape[2]
    return unfold_slices(layer(given), features.shape[2], 0)


NAMES = ["volume", "volume, channels last", "folded", "folded, channels last"]
FORMS = {name: partial(run_form, name) for name in NAMES}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def gradients(layer: nn.Module, function, features: Tensor) -> list[Tensor]:
    """Value and gradients of a weighted sum of what a function makes of ReLU features."""
    layer.zero_grad()
    features = features.clone().requires_grad_()
    result = function(layer, features.relu())
    (result * volume(*result.shape, seed=1, dtype=result.dtype)).sum().backward()
    return [result.detach(), features.grad, *(value.grad.clone() for value in layer.parameters())]


def sparse_conv3d(layer: DistillDepthShift, features: Tensor) -> Tensor:
    """One 3x3x3 convolution in which each map sees one slice: the one before, the one after, or its own."""
    width, quarter = layer.width, layer.width // 4
    kernel = features.new_zeros(width, width, 3, 3, 3)
    for part, place in ((slice(0, quarter), 0), (slice(quarter, 2 * quarter), 2), (slice(2 * quarter, width), 1)):
        kernel[part, :, place] = layer.conv.weight[part]
    mixed = nn.functional.conv3d(features[:, :width], kernel, layer.conv.bias, padding=1)
    return torch.cat([mixed, features[:, width:]], dim=1)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_away_from_the_ends_it_is_a_sparse_3d_convolution(alpha):
    layer, features = made(alpha=alpha).double(), volume(2, 16, 6, 5, 7, dtype=torch.float64)
    ours, theirs = layer(features), sparse_conv3d(layer, features)
    assert torch.allclose(ours[:, :, 1:-1], theirs[:, :, 1:-1], atol=1e-12)
    assert not torch.allclose(ours[:, :, 0], theirs[:, :, 0]), "a bias that no neighbor sent"


@forms
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("shape", [(2, 16, 5, 7, 6), (1, 16, 1, 8, 8), (3, 16, 2, 5, 9)])
def test_values_and_all_gradients_are_those_of_the_definition(form, ends, alpha, shape):
    # in float64 nothing but the definition tells two forms apart; float32 adds a library's order of sums
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        layer = made(alpha=alpha, ends=ends).to(dtype)
        ours, theirs = (gradients(layer, function, volume(*shape, dtype=dtype)) for function in (form, literal))
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("channels", [16, 22, 40])
def test_any_number_of_channels_and_the_causal_form(channels, causal):
    layer = made(channels, alpha=0.5, causal=causal).double()
    features = volume(2, channels, 4, 6, 5, dtype=torch.float64)
    ours, theirs = (gradients(layer, function, features) for function in (FORMS["folded"], literal))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("slices", [1, 2, 3])
def test_finite_differences_agree_behind_a_relu(ends, alpha, slices):
    layer = made(8, alpha=alpha, ends=ends).double()
    features = volume(1, 8, slices, 3, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: layer(values.relu()), features)
    assert torch.autograd.gradcheck(lambda values: folded(layer, values.relu(), torch.contiguous_format), features)


# ---- what a slice reaches -------------------------------------------------------------------------------------------


def test_a_pulse_reaches_its_neighbors_by_its_own_maps_and_nothing_else():
    layer = made(8, alpha=0.5)  # width 4: one map on, one back, two stay, four untouched
    nn.init.zeros_(layer.conv.bias)
    features = torch.zeros(1, 8, 7, 5, 5)
    features[0, :, 3, 2, 2] = 1.0
    reached = layer(features).detach()[0].flatten(2).abs().sum(dim=2) > 0  # channel, slice
    expected = torch.zeros(8, 7, dtype=torch.bool)
    expected[0, 4] = expected[1, 2] = True
    expected[2:, 3] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("slices", [1, 4])
def test_ends_get_exactly_0_and_not_the_bias(slices):
    result = made(8, alpha=1.0)(volume(1, 8, slices, 5, 5))
    assert not result[:, :2, 0].any()
    assert not result[:, 2:4, -1].any()
    assert result[:, 4:].all()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_volumes_of_a_batch_never_meet_and_may_be_permuted(alpha):
    layer, features = made(alpha=alpha), volume(3, 16, 4, 6, 6)
    whole = folded(layer, features, torch.channels_last)
    for index in range(3):
        alone = folded(layer, features[index : index + 1], torch.channels_last)
        torch.testing.assert_close(whole[index : index + 1], alone, rtol=1e-5, atol=1e-6)
    turned = folded(layer, features[[2, 0, 1]], torch.channels_last)
    torch.testing.assert_close(turned, whole[[2, 0, 1]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ends", ENDS)
def test_a_flipped_volume_is_one_with_onward_and_back_swapped(ends):
    layer, features = made(16, alpha=0.5, ends=ends), volume(1, 16, 5, 6, 6)
    swapped = copy.deepcopy(layer)
    order = [2, 3, 0, 1, 4, 5, 6, 7]
    with torch.no_grad():
        swapped.conv.weight.copy_(layer.conv.weight[order])
        swapped.conv.bias.copy_(layer.conv.bias[order])
    expected = layer(features).flip(2)
    expected = torch.cat([expected[:, order], expected[:, 8:]], dim=1)
    torch.testing.assert_close(swapped(features.flip(2)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", ["distill", "plain"])
def test_any_spatial_axis_may_hold_the_slices(axis, kind):
    def layer(depth_axis: int) -> nn.Module:
        return made(8, depth_axis=depth_axis) if kind == "distill" else DepthShift(depth_axis=depth_axis)

    features = volume(2, 8, 4, 5, 6)
    moved = layer(axis)(features.movedim(2, 2 + axis)).movedim(2 + axis, 2)
    torch.testing.assert_close(moved, layer(0)(features), rtol=1e-5, atol=1e-6)


# ---- memory, copies, forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", NAMES)
def test_in_place_only_without_gradients_and_only_where_it_is_wanted(form):
    features = volume(2, 16, 4, 6, 6)
    expected = laid_out(literal(made(alpha=0.5), features).detach(), form)
    for inplace, grad, is_written in ((False, False, False), (True, True, False), (True, False, True)):
        layer, given = made(alpha=0.5, inplace=inplace), laid_out(features, form).clone()
        layer.count.slices = 4
        kept = given.clone()
        with torch.set_grad_enabled(grad):
            found = layer(given)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(given, kept) == (not is_written)
        assert (found.data_ptr() == given.data_ptr()) == is_written


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("kind", ["distill", "whole", "plain"])
@pytest.mark.parametrize("shape", [(2, 8, 1, 5, 5), (1, 8, 4, 5, 6)])
def test_a_tracer_sees_an_equal_form_of_tensor_operations(ends, kind, shape):
    layer = {
        "distill": lambda: made(8, ends=ends),
        "whole": lambda: made(8, alpha=1.0, ends=ends),
        "plain": lambda: DepthShift(ends=ends),
    }[kind]().eval()
    features = volume(*shape)
    with torch.no_grad():
        exported = torch.export.export(layer, (features,)).module()
        torch.testing.assert_close(exported(features), layer(features), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_the_result_is_close_and_has_the_type_of_the_convolution(dtype, inplace):
    layer, features = made(16, inplace=inplace), volume(1, 16, 4, 8, 8)
    expected = layer(features)
    for enabled_grad in (True, False):
        given = features.to(dtype)
        with torch.set_grad_enabled(enabled_grad), torch.autocast("cpu", dtype=torch.bfloat16):
            half = layer(given)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def test_copies_and_pickles_keep_the_number_of_slices_common_to_their_layers():
    network = nn.Sequential(made(8), made(8))
    network[1].count = network[0].count
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert twin[0].count is twin[1].count
        assert twin[0].count is not network[0].count


# ---- variants -------------------------------------------------------------------------------------------------------


def test_an_identity_path_is_never_overwritten():
    with pytest.raises(ValueError, match="inplace=True and would overwrite what the identity path reads"):
        ResidualDepthShift(nn.Identity(), made(inplace=True))


def test_with_an_activation_it_cannot_start_as_the_plain_shift():
    with pytest.raises(ValueError, match="norm or act behind its convolution cannot start as a plain shift"):
        made(act="relu").start_as_plain_shift()


def test_slices_without_a_number_are_refused():
    for layer in (made(8), DepthShift()):
        with pytest.raises(
            ValueError, match=r"does not know how many make a volume; put its network into .*SliceStack"
        ):
            layer(volume(5, 8, 4, 4))


def test_it_can_start_as_the_plain_shift():
    layer, features = made(16, alpha=0.5), volume(2, 16, 5, 6, 6)
    layer.start_as_plain_shift()
    torch.testing.assert_close(layer(features), DepthShift(0.125)(features))


def test_the_plain_shift_moves_channels_as_they_are():
    features = volume(1, 8, 3, 2, 2)
    result = DepthShift(0.25)(features)
    assert torch.equal(result[:, :2, 1:], features[:, :2, :-1])
    assert torch.equal(result[:, 2:4, :-1], features[:, 2:4, 1:])
    assert torch.equal(result[:, 4:], features[:, 4:])
    assert not result[:, :2, 0].any()
    assert not result[:, 2:4, -1].any()
    causal = DepthShift(0.25, causal=True)(features)
    assert torch.equal(causal[:, :4, 1:], features[:, :4, :-1])
    assert torch.equal(causal[:, 4:], features[:, 4:])


def test_the_plain_shift_leaves_its_input_to_the_layer_before():
    features = volume(1, 8, 3, 4, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: DepthShift()(values.relu()), features)


def test_the_residual_shift_keeps_what_the_shift_takes_away():
    body, features = nn.Conv3d(8, 8, 1), volume(1, 8, 4, 3, 3)
    layer = ResidualDepthShift(body, DepthShift())
    torch.testing.assert_close(layer(features), features + body(DepthShift()(features)))
    wider = ResidualDepthShift(nn.Conv3d(8, 4, 1), DepthShift())
    torch.testing.assert_close(wider(features), wider.body(DepthShift()(features)))
    assert sum(value.numel() for value in wider.shift.parameters()) == 0


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"kernel_size": 1}, 8 * 8 * 8),
        ({"act": "relu"}, 0),
        ({"norm": "batch"}, -16),
        ({"norm": "instance", "act": "relu"}, 0),
    ],
)
def test_kernel_normalization_and_activation_are_choices(settings, changes):
    layer, plain, features = made(16, **settings), made(16), volume(2, 16, 3, 6, 6)
    sizes = [sum(value.numel() for value in found.parameters()) for found in (plain, layer)]
    assert sizes[0] - sizes[1] == changes
    assert (layer(features) - plain(features)).abs().max() > 1e-3
    results = gradients(layer, FORMS["volume"], features), gradients(layer, FORMS["folded"], features)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "alpha", "width"), [(16, 0.5, 8), (22, 0.5, 8), (6, 1, 4), (40, 0.1, 4), (7, 1, 4)]
)
def test_the_width_is_rounded_down_to_a_multiple_of_4(channels, alpha, width):
    assert made(channels, alpha=alpha).width == width


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DistillDepthShift(4, 0.5),
            r"alpha 0.5 of 4 channels is 2; the module needs at least 4: take alpha 1 or",
        ),
        (lambda: DistillDepthShift(3, 1.0), "and at least 4 channels"),
        (lambda: DistillDepthShift(16, 1.5), "alpha is 1.5; it must be above 0 and at most 1"),
        (lambda: DistillDepthShift(0), "channels is 0"),
        (lambda: DistillDepthShift(16, kernel_size=2), "kernel_size is 2; it must be an odd whole number"),
        (lambda: DistillDepthShift(16, ends="mirror"), "ends is 'mirror'; known: zero, replicate, circular"),
        (lambda: DistillDepthShift(16, depth_axis=3), "depth_axis is 3; it must be 0, 1 or 2"),
        (lambda: DepthShift(0.6), "fraction is 0.6; it must be above 0 and at most 0.5"),
        (
            lambda: DepthShift(0.25)(torch.zeros(1, 3, 2, 2, 2)),
            "got 3 channels, of which fraction 0.25 is none; give at",
        ),
        (lambda: made(16)(torch.zeros(1, 8, 2, 4, 4)), r"of 16 channels got \(1, 8, 2, 4, 4\), 8 channels"),
        (lambda: made(16)(torch.zeros(16, 4, 4)), r"got \(16, 4, 4\); it takes a volume"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
