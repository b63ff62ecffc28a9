"""Networks of MTMS-KD: published numbers of parameters, what is tapped, what runs when, and every setting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_kd.distillers import FeatureTaps
from monai_kd.networks.nets import MultiTaskTransUNet, MultiTaskUNet, PlainUNet, SlimUNet

NARROW = {"channels": (4, 8, 12)}
TRANS: dict[str, Any] = {"channels": (16, 16, 32, 256), "hidden_size": 16, "mlp_dim": 32, "num_layers": 2}
TRANS |= {"num_heads": 4, "position_grid": 4}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_are_the_published_ones():
    with torch.device("meta"):
        teacher = MultiTaskUNet(2, 3, 1, reconstruction_skips=4)
        assert count(teacher) == 43_236_036
        assert count(teacher) - count(teacher.reconstruction) == 31_043_521 == count(PlainUNet(2, 3, 1))
        assert count(SlimUNet(2, 3, 1)) == 57_297
        assert count(SlimUNet(2, 3, 1, (32, 64, 128))) == 227_233
        # the published one has 172,625,028, of which 134.5 M bring a map to one token and back
        assert count(MultiTaskTransUNet(2, 3, 1, reconstruction_skips=3)) == 38_768_516


@pytest.mark.parametrize(("channels", "gmac"), [((16, 32, 64), 0.85), ((32, 64, 128), 3.35)])
def test_operations_of_the_students_are_the_published_ones(channels, gmac):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        SlimUNet(2, 3, 1, channels)(torch.empty(1, 3, 256, 256))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.01)


def test_the_teacher_in_evaluation_leaves_the_reconstruction_out():
    with torch.device("meta"):
        network, image = MultiTaskUNet(2, 3, 1, reconstruction_skips=4), torch.empty(1, 3, 256, 256)
        found = []
        for training in (True, False):
            with FlopCounterMode(display=False) as counter:
                network.train(training)(image)
            found.append(counter.get_total_flops() / 2e9)
    assert found[0] == pytest.approx(79.3, rel=0.005)
    assert found[1] == pytest.approx(48.2, rel=0.005)


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: MultiTaskUNet(2, 3, 1), {"pooled_2": (128, 64), "bottleneck": (1024, 16), "decoder_1": (64, 256)}),
        (lambda: SlimUNet(2, 3, 1), {"pooled_2": (32, 64), "bottleneck": (64, 64), "decoder_1": (16, 256)}),
        (
            lambda: SlimUNet(2, 3, 1, (32, 64, 128)),
            {"pooled_2": (64, 64), "bottleneck": (128, 64), "decoder_1": (32, 256)},
        ),
        (
            lambda: MultiTaskTransUNet(2, 3, 1),
            {"encoder_2": (256, 64), "bottleneck": (512, 16), "decoder_1": (16, 256)},
        ),
    ],
    ids=["t1", "s1", "s2", "t2"],
)
def test_tapped_stages_have_the_published_shapes(make, shapes):
    with torch.device("meta"):
        network = make().eval()
        with FeatureTaps(network, list(shapes)) as features:
            network(torch.empty(1, 3, 256, 256))
    assert {name: tuple(value.shape[1:3]) for name, value in features.items()} == shapes


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda n: MultiTaskUNet(2, 1, 2, **NARROW, reconstruction_skips=n), 2),
        (lambda n: MultiTaskTransUNet(2, 1, 2, **TRANS, reconstruction_skips=n), 3),
    ],
)
def test_without_skips_the_image_comes_from_the_bottleneck_alone(make, most):
    image = torch.rand(2, 1, 32, 32)
    for skips in range(most + 1):
        torch.manual_seed(0)
        network = make(skips).eval()
        features, kept = network.encode(image)
        rebuilt = network.reconstruct(features, kept)
        assert rebuilt.shape == image.shape
        for index in range(len(kept)):  # the finest first
            changed = [skip + 1 if index == own else skip for own, skip in enumerate(kept)]
            counts = not torch.equal(network.reconstruct(features, tuple(changed)), rebuilt)
            assert counts == (index >= len(kept) - skips), (skips, index)
    for wrong in (-1, most + 1, True):
        with pytest.raises(ValueError, match=f"reconstruction_skips is {wrong}; .* from 0 to {most}"):
            make(wrong)


def test_each_voxel_of_the_deepest_map_is_a_token_and_sees_the_others():
    torch.manual_seed(0)
    network = MultiTaskTransUNet(2, 1, 2, **TRANS).eval()
    features = torch.randn(1, 256, 4, 4)
    (other := features.clone())[..., 0, 0] += 1.0
    change = (network._attend(other) - network._attend(features)).abs().sum(dim=1)[0]
    assert (change > 0).all(), "one moved, all follow"


def test_positions_count_and_fit_any_map():
    torch.manual_seed(0)
    network, image = MultiTaskTransUNet(2, 1, 2, **TRANS).eval(), torch.rand(1, 1, 32, 48)
    before = network(image)
    assert before.shape == (1, 2, 32, 48)
    with torch.no_grad():
        network.positions.add_(torch.randn_like(network.positions))
    assert not torch.allclose(network(image), before)


@pytest.mark.parametrize(
    "changed", [{"hidden_size": 32}, {"mlp_dim": 16}, {"num_layers": 1}, {"num_heads": 2}, {"position_grid": 2}]
)
def test_every_setting_of_the_transformer_counts(changed):
    def logits(**settings: Any) -> torch.Tensor:
        torch.manual_seed(0)
        return MultiTaskTransUNet(2, 1, 2, **{**TRANS, **settings}).eval()(torch.ones(1, 1, 32, 32))

    assert torch.equal(logits(), logits())
    assert not torch.equal(logits(**changed), logits())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlainUNet(2, 1, 2, (4, 8), convolutions=0), "convolutions is 0; it must be a whole number"),
        (lambda: MultiTaskTransUNet(1, 1, 2), "spatial_dims is 1; known: 2, 3"),
        (lambda: MultiTaskTransUNet(2, 1, 2, (16, 16, 16)), "give a multiple of 16 for each of 4 levels"),
        (
            lambda: MultiTaskTransUNet(2, 1, 2, hidden_size=250),
            "hidden_size is 250; it must be a multiple of num_heads",
        ),
        (lambda: MultiTaskTransUNet(2, 1, 2, num_layers=0), "num_layers is 0; it must be a whole number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_more_convolutions_see_farther():
    slim, plain = SlimUNet(2, 1, 2, (4, 8)), PlainUNet(2, 1, 2, (4, 8))
    assert count(PlainUNet(2, 1, 2, (4, 8), convolutions=1)) == count(slim) < count(plain)
