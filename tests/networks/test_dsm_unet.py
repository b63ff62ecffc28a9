"""The U-Net of Distill DSM: the paper's counts, its depth receptive field, every choice, and its exports."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from monai_kd.distillers import Distiller, FeatureTaps, Term, stage_paths
from monai_kd.losses import AttentionTransfer
from monai_kd.networks.layers import fold_slices
from monai_kd.networks.nets import DSMUNet, SliceStack

SMALL = {"channels": (8, 8, 16)}
EXCHANGES = ["distill", "plain", "residual", "none"]


def count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def net(**settings) -> DSMUNet:
    torch.manual_seed(0)
    return DSMUNet(1, 2, **{**SMALL, **settings}).eval()


def volume(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("channels", "settings", "parameters"),
    [
        ((4, 3), {"exchange": "none"}, 1_082_211),
        ((4, 3), {"exchange": "residual"}, 1_082_211),
        ((4, 3), {"exchange": "plain"}, 1_082_211),
        ((1, 2), {"alpha": 0.5}, 1_216_266),
        ((2, 2), {"alpha": 0.25}, 1_115_606),
        ((2, 2), {"alpha": 1}, 1_619_330),
    ],
)
def test_it_has_the_papers_number_of_parameters(channels, settings, parameters):
    assert count(DSMUNet(*channels, **settings)) == parameters


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_the_exchange_adds_9_s_squared_plus_s_for_each_of_8_modules(alpha):
    network = DSMUNet(1, 2, alpha)
    widths = [32, 64, 128, 128, 128, 64, 32, 16]
    assert [exchange.channels for exchange in network.exchanges] == widths
    added = sum(9 * (alpha * width) ** 2 + alpha * width for width in widths)
    assert count(network) - count(DSMUNet(1, 2, exchange="none")) == added
    assert network.halo == 8


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_slice_reaches_as_many_slices_as_there_are_modules(exchange):
    network, image = net(exchange=exchange, channels=(16, 16, 16)).double(), volume(1, 1, 16, 16, 15).double()
    changed = image.clone()
    changed[..., 7] *= -3.0
    with torch.no_grad():
        reached = (network(changed) - network(image))[0].flatten(0, 2).abs().sum(dim=0) > 0
    reach = {"none": 0}.get(exchange, len(network.exchanges))
    assert reached.nonzero().flatten().tolist() == list(range(7 - reach, 7 + reach + 1))


def test_causal_slices_see_no_later_one():
    network, image = net(causal=True, channels=(16, 16, 16)).double(), volume(1, 1, 16, 16, 12).double()
    changed = image.clone()
    changed[..., 5] *= -3.0
    with torch.no_grad():
        reached = (network(changed) - network(image))[0].flatten(0, 2).abs().sum(dim=0) > 0
    assert reached.nonzero().flatten().tolist() == list(range(5, 5 + network.halo + 1))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_volumes_of_a_batch_do_not_meet(exchange):
    network, images = net(exchange=exchange), volume(3, 1, 16, 20, 4)
    with torch.no_grad():
        whole = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 17, 23, 1), (2, 1, 16, 16, 2), (1, 1, 21, 18, 145)])
def test_any_depth_and_odd_sizes_keep_their_shape(shape):
    with torch.no_grad():
        assert net()(volume(*shape)).shape == (shape[0], 2, *shape[2:])


def test_a_single_slice_with_replicated_ends_and_the_2d_network_agree_where_the_exchange_starts_plain():
    network, flat = net(ends="replicate"), net(exchange="none")
    for exchange in network.exchanges:
        exchange.start_as_plain_shift()
    weights = {key: value for key, value in network.state_dict().items() if "exchange" not in key}
    flat.load_state_dict(weights)
    image = volume(1, 1, 16, 16, 1)
    with torch.no_grad():
        torch.testing.assert_close(network(image), flat(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_holds_the_slices_and_the_coarsest_by_default(axis):
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 3.0
    network, last = net(spacing=spacing), net()
    assert network.depth_axis == axis
    image = volume(1, 1, 16, 24, 5)
    with torch.no_grad():
        moved = network(image.movedim(4, 2 + axis)).movedim(2 + axis, 4)
        torch.testing.assert_close(moved, last(image), rtol=1e-4, atol=1e-5)
    assert net(spacing=[1.0, 1.0, 1.0]).depth_axis == net().depth_axis == 2
    assert net(spacing=[3.0, 1.0, 3.0]).depth_axis == 2
    assert net(depth_axis=0, spacing=[1.0, 1.0, 3.0]).depth_axis == 0


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_first_convolution_works_in_the_layout_asked_for(axis, batch, channels):
    shape = [16, 16, 16]
    shape[axis] = 5
    for layout, strides in (("channels_last", (256 * 8, 1, 16 * 8, 8)), ("contiguous", (8 * 256, 256, 16, 1))):
        torch.manual_seed(0)
        network, seen = DSMUNet(channels, 2, **SMALL, depth_axis=axis, layout=layout), []
        network.network.stem[0][0].register_forward_hook(
            lambda _module, _args, out, seen=seen: seen.append(out.stride())
        )
        with torch.no_grad():
            network(volume(batch, channels, *shape))
            one = volume(1, channels, 16, 16)
            with contextlib.suppress(StopIteration):
                next(network.slice_steps(one))
        if layout == "channels_last" or axis == 0:
            assert seen == [strides, strides], layout


def test_metadata_of_the_volume_stay_whatever_the_exchange():
    image = MetaTensor(volume(1, 1, 16, 16, 5), meta={"filename_or_obj": "a.nii"})
    for exchange in EXCHANGES:
        with torch.no_grad():
            found = net(exchange=exchange)(image)
        assert isinstance(found, MetaTensor), exchange
        assert found.meta["filename_or_obj"] == "a.nii"


def test_layouts_agree_in_value_and_gradient():
    results = []
    for layout in ("contiguous", "channels_last", "auto"):
        network = net(layout=layout).train()
        output = network(volume(2, 1, 16, 16, 3))
        output.square().mean().backward()
        results.append([output.detach(), *(value.grad for value in network.parameters())])
    for found in results[1:]:
        for ours, theirs in zip(found, results[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_writing_back_without_gradients_changes_nothing_but_memory():
    network, image = net(), volume(1, 1, 16, 16, 5)
    with_gradients = network(image).detach()
    with torch.no_grad():
        torch.testing.assert_close(network(image), with_gradients, rtol=1e-5, atol=1e-6)
    assert all(exchange.inplace for exchange in network.exchanges)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 1.0},
        {"exchange": "plain"},
        {"exchange": "residual"},
        {"exchange": "plain", "fraction": 0.125},
        {"exchange": "none"},
        {"ends": "replicate"},
        {"ends": "circular"},
        {"causal": True},
        {"kernel_size": 1},
        {"norm": "instance"},
        {"exchange_norm": "batch"},
        {"exchange_act": "relu"},
        {"channels": (8, 16, 16)},
        {"depth_axis": 0},
    ],
    ids=str,
)
def test_every_choice_changes_the_result_and_trains_every_weight(settings):
    network = net(**settings).train()
    output = network(volume(2, 1, 16, 16, 16))
    base = {"exchange": settings["exchange"]} if "fraction" in settings else {}  # what the setting alone changes
    assert not torch.allclose(output, net(**base).train()(volume(2, 1, 16, 16, 16)), atol=1e-4)
    output.square().mean().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []


def test_deep_copies_share_no_slice_count_with_the_original():
    network = net()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        network(volume(1, 1, 16, 16, 7))
        assert torch.equal(twin(volume(2, 1, 16, 16, 3)), network(volume(2, 1, 16, 16, 3)))
    assert len({id(exchange.count) for exchange in (*twin.exchanges, *network.exchanges)}) == 2


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: net(exchange="shift"), "exchange is 'shift'; known: distill, plain, residual, none"),
        (lambda: net(depth_axis=3), "depth_axis is 3; it must be 0, 1 or 2"),
        (lambda: net(spacing=[1.0, 1.0]), r"spacing is \[1.0, 1.0\]; it must be three numbers above 0"),
        (lambda: net(layout="last"), "layout is 'last'; known: auto, channels_last, contiguous"),
        (lambda: net(channels=(8,)), "whole number above 0 for each of at least 2 levels"),
        (lambda: net(exchange="plain", alpha=7), "alpha is 7; it must be above 0 and at most 1"),
        (lambda: net(exchange="none", fraction=9), "fraction is 9; it must be above 0 and at most 0.5"),
        (lambda: net(exchange="none", ends="foo"), "ends is 'foo'; known"),
        (lambda: net()(volume(1, 1, 16, 16, 0)), r"got \(1, 1, 16, 16, 0\)"),
        (lambda: SliceStack(nn.Flatten())(volume(1, 1, 4, 4, 3)), r"Flatten returned \(3, 16\); .* must return maps"),
        (lambda: net(alpha=0.25), "alpha 0.25 of 8 channels is 2; the module needs at least 4: take alpha 0.5 or more"),
        (
            lambda: net()(volume(1, 1, 16, 3, 5)),
            r"got \(1, 1, 16, 3, 5\); it takes 1 channels and, .* at least 4 voxels",
        ),
        (lambda: net()(volume(1, 2, 16, 16, 5)), r"got \(1, 2, 16, 16, 5\); it takes 1 channels"),
        (lambda: net()(volume(1, 1, 16, 16)), r"got \(1, 1, 16, 16\); it takes a volume"),
    ],
)
def test_what_cannot_be_is_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()


SIZES = [(1, 1, 16, 24, 7), (2, 1, 20, 17, 3), (1, 1, 33, 16, 1)]


@pytest.mark.parametrize("exchange", ["distill", "residual"])
def test_one_exported_graph_serves_any_depth_height_and_width(exchange):
    network = net(exchange=exchange)
    axis = torch.export.Dim.DYNAMIC
    shapes = ({0: axis, 2: axis, 3: axis, 4: axis},)
    with torch.no_grad():
        graph = torch.export.export(network, (volume(2, 1, 16, 20, 6),), dynamic_shapes=shapes).module()
        for size in SIZES:
            torch.testing.assert_close(graph(volume(*size)), network(volume(*size)), rtol=1e-4, atol=1e-5)


def test_its_stages_are_named_and_come_as_volumes():
    network, image = net(channels=(8, 8, 16, 16)), volume(2, 1, 16, 24, 5)
    stages = {
        **{"encoder_1": (8, 16, 24), "encoder_2": (8, 8, 12), "encoder_3": (16, 4, 6), "bottleneck": (16, 2, 3)},
        **{"decoder_3": (8, 4, 6), "decoder_2": (8, 8, 12), "decoder_1": (8, 16, 24)},
    }
    with torch.no_grad():
        with FeatureTaps(network, list(stage_paths(network))) as features:
            logits = network(image)
        shapes = {name: (value.shape[1], *value.shape[2:4]) for name, value in features.items()}
        assert shapes == stages
        assert {(value.shape[0], value.shape[4]) for value in features.values()} == {(2, 5)}
        head = network.network.head(fold_slices(features["decoder_1"], 2))
        torch.testing.assert_close(network.as_volume(head), logits, rtol=1e-5, atol=1e-6)


def test_a_3d_teacher_meets_its_stages_by_stride():
    teacher = BasicUNet(3, 1, 2, features=(8, 8, 8, 8, 8, 8)).eval()
    pairs = {"student": "student/bottleneck", "target": "teacher/down_2"}
    term = Term(AttentionTransfer(), **pairs)
    distiller = Distiller(net().train(), {"teacher": teacher}, {"at": term}, {"teacher": ["down_2"]})
    output = distiller(volume(1, 1, 32, 32, 32), volume(1, 1, 32, 32, 32))
    output.loss.backward()
    assert output.terms["at"] > 0
    assert distiller.student.network.stem[0][0].weight.grad.any()


def test_layers_serve_one_stack_alone():
    network = net()
    with pytest.raises(ValueError, match="the exchanges of this _SliceUNet belong to another SliceStack"):
        SliceStack(network.network)
    with pytest.raises(ValueError, match="belong to another SliceStack"):
        SliceStack(copy.deepcopy(network).network)
    twin = SliceStack(copy.deepcopy(network.network))
    image = volume(1, 1, 16, 16, 5)
    with torch.no_grad():
        assert torch.equal(twin(image), network(image))


def test_a_slice_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"got \(1, 2, 16, 16\); it takes 1 channels"):
        next(net().slice_steps(torch.zeros(1, 2, 16, 16)))


def test_a_learned_exchange_may_begin_as_a_shift_and_changes_no_other_weight():
    states = []
    for start in (False, True):
        torch.manual_seed(0)
        states.append(DSMUNet(1, 2, channels=(8, 8, 16), alpha=1.0, start_as_plain_shift=start).eval())
    drawn, shifted = states
    other = {name for name, value in shifted.state_dict().items() if not torch.equal(value, drawn.state_dict()[name])}
    assert other == {name for name in shifted.state_dict() if "exchange" in name}
    torch.manual_seed(0)
    plain = DSMUNet(1, 2, channels=(8, 8, 16), exchange="plain").eval()
    plain.load_state_dict({name: value for name, value in shifted.state_dict().items() if "exchange" not in name})
    image = torch.randn(1, 1, 16, 16, 6)
    with torch.no_grad():
        torch.testing.assert_close(shifted(image), plain(image))  # alpha 1 shifts a quarter in each direction
    with pytest.raises(ValueError, match="start_as_plain_shift sets the learned exchange alone"):
        DSMUNet(1, 2, exchange="none", start_as_plain_shift=True)
