"""Each wrapper hands the teacher what it was trained on and brings the logits back; values are computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_kd.teachers import (
    EnsembleTeacher,
    MapClasses,
    PadToMultiple,
    Reorient,
    Resample,
    RescaleIntensity,
    SelectChannels,
    unwrap,
)


class Seen(nn.Module):
    """Remembers its image and returns it as logits."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.image = image
        return image


class Fixed(nn.Module):
    """Returns the given logits, ``(K,)``, at every voxel."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits.reshape(1, -1, 1, 1, 1).expand(len(image), -1, *image.shape[2:])


def volume(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


# ---- image side -----------------------------------------------------------------------------------------------------


def test_channels_are_selected_and_ordered():
    image = volume(1, 4, 3, 3, 3)
    assert torch.equal(SelectChannels(Seen(), [2, 0])(image), image[:, [2, 0]])


def test_a_missing_channel_is_refused_with_both_sides():
    with pytest.raises(ValueError, match=r"channels \[2, 0\] of an image with 1 channels"):
        SelectChannels(Seen(), [2, 0])(volume(1, 1, 3, 3, 3))
    with pytest.raises(ValueError, match=r"channels are \[-1\]"):
        SelectChannels(Seen(), [-1])


def test_intensities_are_scaled_shifted_and_cut():
    image = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 3, 1, 1)
    seen = RescaleIntensity(Seen(), scale=400, shift=-150, clip=[-100, 200])(image)
    assert seen.flatten().tolist() == [-100, 50, 200]


def test_each_channel_may_have_its_own_numbers():
    image = torch.ones(1, 2, 1, 1, 1)
    wrapped = RescaleIntensity(Seen(), scale=[1, 2], shift=[0, 5], clip=[[-float("inf"), float("inf")], [0, 6]])
    assert wrapped(image).flatten().tolist() == [1, 6]
    with pytest.raises(ValueError, match="numbers for 2 channels, the image has 3"):
        wrapped(torch.ones(1, 3, 1, 1, 1))


@pytest.mark.parametrize(
    ("setting", "message"), [({"scale": 0}, "scale is 0"), ({"clip": [1, 0]}, "lower value first")]
)
def test_an_intensity_that_loses_the_image_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        RescaleIntensity(Seen(), **setting)


def test_axes_are_turned_and_turned_back():
    image = volume(2, 1, 3, 4, 5)
    wrapped = Reorient(Seen(), axis_order=[2, 0, 1], flip=[True, False, True])
    assert torch.equal(wrapped(image), image)
    assert torch.equal(wrapped.network.image, image.permute(0, 1, 4, 2, 3).flip([2, 4]))
    with pytest.raises(ValueError, match=r"axis_order is \[0, 0, 1\]"):
        Reorient(Seen(), axis_order=[0, 0, 1])


def test_resampling_covers_the_same_extent_and_returns_the_patch_grid():
    ramp = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 4)
    wrapped = Resample(Seen(), factor=[0.5, 1, 2])
    logits = wrapped(ramp)
    assert wrapped.network.image.shape[2:] == (4, 8, 8)
    assert wrapped.network.image[0, 0, :, 0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]  # the mean of each pair of voxels
    assert logits.shape == ramp.shape
    assert torch.allclose(logits[:, :, 1:-1], ramp[:, :, 1:-1])  # a ramp survives, save its ends
    with pytest.raises(ValueError, match="spacings are positive"):
        Resample(Seen(), factor=[0, 1, 1])


def test_padding_repeats_the_border_and_is_cut_off():
    image = volume(1, 1, 3, 4, 5)
    wrapped = PadToMultiple(Seen(), [4, 4, 2])
    assert torch.equal(wrapped(image), image)
    seen = wrapped.network.image
    assert seen.shape[2:] == (4, 4, 6)
    assert torch.equal(seen[:, :, 3, :, :5], image[:, :, 2])
    assert torch.equal(seen[:, :, :3, :, 5], image[..., 4])
    with pytest.raises(ValueError, match="total stride"):
        PadToMultiple(Seen(), [0, 1, 1])


# ---- class side -----------------------------------------------------------------------------------------------------


def test_merged_classes_have_the_summed_probability():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.5])
    merged = MapClasses(Fixed(*logits.tolist()), [[0, 2], [3], [1]])(torch.zeros(1, 1, 2, 2, 2))
    p = logits.softmax(0)
    expected = torch.stack([p[0] + p[2], p[3], p[1]])
    assert torch.allclose(merged.softmax(1)[0, :, 0, 0, 0], expected, atol=1e-7)


def test_a_pure_order_keeps_the_logits():
    merged = MapClasses(Fixed(1.0, 2.0, 3.0), [[2], [0], [1]])(torch.zeros(1, 1, 1, 1, 1))
    assert merged.flatten().tolist() == [3, 1, 2]


@pytest.mark.parametrize("groups", [[[0], [0]], [[0], [2]], [[0, 1], []]])
def test_groups_that_lose_or_double_a_class_are_refused(groups):
    with pytest.raises(ValueError, match="each of the teacher's channels once"):
        MapClasses(Fixed(0.0, 0.0), groups)


def test_a_map_of_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="speaks of 2 classes of the teacher, which gives 3"):
        MapClasses(Fixed(0.0, 0.0, 0.0), [[0], [1]])(torch.zeros(1, 1, 1, 1, 1))


def test_wrappers_nest_follow_a_move_and_unwrap():
    network = nn.Conv3d(1, 2, 1)
    wrapped = MapClasses(RescaleIntensity(PadToMultiple(network, [2, 2, 2]), scale=2.0), [[1], [0]])
    assert unwrap(wrapped) is network
    assert wrapped.to("meta").network.scale.device.type == "meta"
    assert list(wrapped.state_dict()) == ["network.network.network.weight", "network.network.network.bias"]


# ---- ensembles ------------------------------------------------------------------------------------------------------


def test_the_softmax_of_an_ensemble_is_the_mean_probability():
    torch.manual_seed(0)
    networks = [nn.Conv3d(1, 3, 3, padding=1) for _ in range(3)]
    image = volume(2, 1, 4, 4, 4) * 20
    with torch.no_grad():
        mean = torch.stack([network(image).softmax(1) for network in networks]).mean(0)
        got = EnsembleTeacher(networks)(image)
    assert torch.allclose(got.softmax(1), mean, atol=1e-6)
    assert torch.allclose(got.exp(), mean, atol=1e-6)  # already normalized


def test_extreme_logits_stay_finite():
    ensemble = EnsembleTeacher([Fixed(1e4, 0.0), Fixed(0.0, 1e4)])
    logits = ensemble(torch.zeros(1, 1, 1, 1, 1)).flatten()
    assert torch.allclose(logits, torch.tensor([0.5, 0.5]).log())


def test_an_ensemble_is_float32_under_autocast():
    network = nn.Conv3d(1, 2, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert network(torch.zeros(1, 1, 2, 2, 2)).dtype == torch.bfloat16
        assert EnsembleTeacher([network, network])(torch.zeros(1, 1, 2, 2, 2)).dtype == torch.float32
        merged = MapClasses(network, [[0], [1]])(torch.zeros(1, 1, 2, 2, 2))
    assert merged.dtype == torch.float32


def test_members_of_other_classes_and_no_members_are_refused():
    with pytest.raises(ValueError, match=r"member 1 gives \(1, 3, 1, 1, 1\), member 0 \(1, 2, 1, 1, 1\)"):
        EnsembleTeacher([Fixed(0.0, 0.0), Fixed(0.0, 0.0, 0.0)])(torch.zeros(1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="at least one teacher"):
        EnsembleTeacher([])
