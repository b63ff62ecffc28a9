"""AlignmentNetwork: the published size, any features in and out, and latents that pass between networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_kd.networks.nets import AlignmentNetwork

PUBLISHED = {"latent_channels": 512, "latent_length": 1, "grid": 16, "mix_channels": False}
SIZES = [
    (2, 512, (16, 16)),
    (2, 1280, (4, 4)),
    (2, 128, (16, 16)),
    (2, 6, (7, 13)),
    (2, 6, (1, 1)),
    (3, 256, (6, 5, 9)),
    (3, 8, (16, 3, 1)),
]


def make(dims=2, channels=6, seed=0, **settings):
    torch.manual_seed(seed)
    return AlignmentNetwork(dims, channels, **{"latent_channels": 5, "latent_length": 3, "grid": 4, **settings})


def features(channels=6, size=(8, 8), batch=2, seed=0):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_the_published_preset_has_the_published_parameters():
    network = AlignmentNetwork(2, 512, **PUBLISHED)
    assert parameters(network.encoder) == 16_513
    assert parameters(network.header) == 16_768
    assert parameters(network) == 33_281


@pytest.mark.parametrize(("dims", "channels", "grid"), [(2, 40, 8), (3, 40, 4), (2, 40, (3, 5)), (3, 40, (2, 3, 4))])
def test_parameters_follow_the_formula(dims, channels, grid):
    cells = torch.Size((grid,) * dims if isinstance(grid, int) else grid).numel()
    encoder = cells * 64 + 64 + 64 * 16 + 16
    header = 16 * 64 + 64 + 64 * cells + cells
    mixing = channels * 128 + 128 + 128 * channels + channels
    assert parameters(AlignmentNetwork(dims, channels, grid=grid)) == encoder + header + mixing


@pytest.mark.parametrize(("dims", "channels", "size"), SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_any_features_come_back_in_their_shape(dims, channels, size, batch):
    network = AlignmentNetwork(dims, channels, grid=8 if dims == 2 else 4)
    value = features(channels, size, batch)
    latent = network.encode(value)
    assert latent.shape == (batch, 128, 16)
    assert network.decode(latent, size).shape == value.shape
    torch.testing.assert_close(network(value), network.decode(latent, size))


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (23, 9)])
def test_the_published_preset_takes_any_size_and_batch(size):
    network = AlignmentNetwork(2, 512, **PUBLISHED)
    value = features(512, size, batch=3)
    assert network.encode(value).shape == (3, 512, 1)
    assert network(value).shape == value.shape


def test_a_latent_passes_through_the_header_of_another_network():
    teacher, student = make(channels=12), make(channels=7, grid=2)
    latent = student.encode(features(7, (4, 4)))
    assert teacher.decode(latent, (16, 16)).shape == (2, 12, 16, 16)
    assert student.decode(teacher.encode(features(12, (16, 16))), (4, 4)).shape == (2, 7, 4, 4)


# ---- what it computes -----------------------------------------------------------------------------------------------


def test_it_is_the_formula_where_the_features_lie_on_the_grid():
    network, value = make(grid=4, act="relu"), features(size=(4, 4))
    cells = torch.einsum("dc,bcp->bdp", network.to_latent.weight[..., 0, 0], value.flatten(2))
    cells = cells + network.to_latent.bias[:, None]
    first, _, second = network.encoder
    latent = F.linear(F.gelu(F.linear(cells, first.weight, first.bias)), second.weight, second.bias)
    torch.testing.assert_close(network.encode(value), latent)
    first, _, second = network.header
    back = F.linear(F.gelu(F.linear(latent, first.weight, first.bias)), second.weight, second.bias)
    back = torch.einsum("cd,bdp->bcp", network.from_latent.weight[..., 0, 0], back) + network.from_latent.bias[:, None]
    torch.testing.assert_close(network(value), back.view_as(value).relu())


def test_each_channel_is_encoded_alike_and_apart_without_mixing():
    network = make(channels=5, mix_channels=False)
    value = features(5)
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(network.encode(value[:, order]), network.encode(value)[:, order])
    changed = value.clone()
    changed[:, 2] += 1
    moved = (network.encode(changed) - network.encode(value)).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(("dims", "small", "repeat"), [(2, (2, 4), (2, 1)), (3, (1, 2, 4), (4, 2, 1))])
def test_smaller_features_count_as_if_their_voxels_were_repeated(dims, small, repeat):
    network, value = make(dims), features(size=small)
    wide = value
    for axis, times in enumerate(repeat, start=2):
        wide = wide.repeat_interleave(times, dim=axis)
    torch.testing.assert_close(network.encode(value), network.encode(wide))
    # and come back as the mean over the repeats
    latent = network.encode(value)
    pooled = F.adaptive_avg_pool2d if dims == 2 else F.adaptive_avg_pool3d
    torch.testing.assert_close(network.decode(latent, small), pooled(network.decode(latent, (4,) * dims), small))


def test_larger_features_are_averaged_and_interpolated():
    network, value = make(), features(size=(8, 12))
    torch.testing.assert_close(network.encode(value), network.encode(F.avg_pool2d(value, (2, 3))))
    latent = network.encode(value)
    expected = F.interpolate(network.decode(latent, (4, 4)), size=(8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(network.decode(latent, (8, 12)), expected)


def test_the_convolutions_on_the_grid_are_those_on_the_features():
    network, value = make(), features(size=(9, 7))
    full = network.encoder(network.pool(network.to_latent(value)).flatten(2))
    torch.testing.assert_close(network.encode(value), full)


@pytest.mark.parametrize(("act", "low", "high"), [("relu", 0, None), ("relu6", 0, 6), (None, None, None)])
def test_features_have_the_range_of_their_activation(act, low, high):
    network, plain = make(act=act), make()
    latent = 100 * torch.randn(2, 5, 3)
    expected = plain.decode(latent, (8, 8))
    assert expected.min() < 0
    assert expected.max() > 6
    value = network.decode(latent, (8, 8))
    torch.testing.assert_close(value, expected.clamp(low, high) if act else expected)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("latent_channels", 7),
        ("latent_length", 2),
        ("grid", 3),
        ("hidden", 8),
        ("act", "relu"),
        ("act", ("leakyrelu", {"negative_slope": 0.5})),
    ],
)
def test_every_setting_changes_what_comes_out(setting, value):
    assert not torch.equal(make(**{setting: value})(features()), make()(features()))


def test_mixing_channels_can_be_left_out():
    assert parameters(make(channels=5)) - parameters(make(channels=5, mix_channels=False)) == 2 * (5 * 5 + 5)


def test_it_learns_features_and_more_numbers_keep_more():
    """Noise on 16 cells has 16 degrees of freedom: one number per channel loses most of it."""
    value = features(4, (4, 4), batch=16)
    left = {}
    for length in (1, 16):
        network = make(channels=4, latent_channels=4, latent_length=length, hidden=32)
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            error = (network(value) - value).square().mean() / value.var()
            error.backward()
            optimizer.step()
        left[length] = error.item()
    assert left[1] > 0.6
    assert left[16] < 0.2


def test_every_weight_gets_a_gradient_and_so_do_the_features():
    network, value = make(), features().requires_grad_()
    network(value).square().sum().backward()
    assert value.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_finite_under_autocast_and_in_bfloat16(dims):
    value = features(size=(8,) * dims)
    network = make(dims, act="relu")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(network(value)).all()
    assert torch.isfinite(network.bfloat16()(value.bfloat16())).all()


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    network = make()
    with pytest.raises(ValueError, match=r"got features \(2, 5, 8, 8\); it takes \(batch, 6, \*spatial\) with 2 spat"):
        network(features(5))
    with pytest.raises(ValueError, match=r"got features \(2, 6, 8, 8, 8\)"):
        network(features(size=(8, 8, 8)))
    with pytest.raises(ValueError, match=r"a latent \(2, 5, 4\) for the grid \(8, 8\); it takes \(batch, 5, 3\) and 2"):
        network.decode(torch.zeros(2, 5, 4), (8, 8))
    with pytest.raises(ValueError, match=r"for the grid \(8, 8, 8\)"):
        network.decode(torch.zeros(2, 5, 3), (8, 8, 8))
    with pytest.raises(ValueError, match="needs as many channels as the latent has, got in_channels 6 and latent_ch"):
        make(mix_channels=False)
    with pytest.raises(ValueError, match="spatial_dims is 4; known: 2, 3"):
        make(4)
    for grid in (0, (4, 4, 4), (4, -1)):
        with pytest.raises(ValueError, match=r"grid is .*; give a whole number above 0, or one for each of 2 axes"):
            make(grid=grid)
    for name in ("latent_channels", "latent_length", "hidden"):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be a whole number above 0"):
            make(**{name: 0})
