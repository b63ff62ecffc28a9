"""Any 2-D network sees across slices: where exchanges go, what they reach, and what stays as it was."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import re
import threading

import pytest
import torch
from monai.networks.blocks.convolutions import ResidualUnit
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets import BasicUNet, BasicUNetPlusPlus, DynUNet, EfficientNetBN, FlexibleUNet, SegResNet, UNet
from monai.networks.nets.basic_unet import TwoConv
from monai.networks.nets.efficientnet import MBConvBlock
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from monai.networks.nets.unet import CheckpointUNet
from torch import Tensor, distributed, nn

from monai_kd.networks.layers import DepthShift, ResidualDepthShift, SliceExchange
from monai_kd.networks.nets import SliceStack, insert_depth_shift

DYN = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3], "strides": [1, 2, 2]}
DYN |= {"upsample_kernel_size": [2, 2], "filters": [8, 8, 16]}
FLEX = {"in_channels": 1, "out_channels": 2, "spatial_dims": 2, "decoder_channels": (32, 16, 16, 8, 8)}
LEVELS = {"channels": (8, 16, 24), "strides": (2, 2)}

NETWORKS = {
    "BasicUNet": lambda: BasicUNet(2, 1, 2, features=(8, 8, 8, 16, 16, 8)),
    "UNet 0": lambda: UNet(2, 1, 2, **LEVELS),
    "UNet 1": lambda: UNet(2, 1, 2, **LEVELS, num_res_units=1),
    "UNet 2": lambda: UNet(2, 1, 2, **LEVELS, num_res_units=2),
    "DynUNet": lambda: DynUNet(**DYN),
    "residual DynUNet": lambda: DynUNet(**DYN, res_block=True),
    "SegResNet": lambda: SegResNet(2, 8, 1, 2, blocks_down=(1, 2, 2), blocks_up=(1, 1)),
    "ResNet-18": lambda: FlexibleUNet(backbone="resnet18", **FLEX),
    "EfficientNet": lambda: FlexibleUNet(backbone="efficientnet-b0", **FLEX),
}
DYN_PLACES = ["downsamples.0.conv2", "bottleneck.conv2", "upsamples.0.conv_block.conv2", "upsamples.1.conv_block.conv2"]
DECODER = [f"decoder.blocks.{index}.convs.conv_1" for index in range(5)]
NARROW = ["1.1", "1.2", "2.3", "2.4", "3.5", "3.6", "3.7", "4.8", "4.9", "4.10", "5.11", "5.12", "5.13", "5.14", "6.15"]
PLACES = {
    "BasicUNet": [
        *(f"down_{level}.convs.conv_1" for level in (1, 2, 3, 4)),
        *(f"upcat_{level}.convs.conv_1" for level in (4, 3, 2, 1)),
    ],
    "UNet 0": ["model.1.submodule.0", "model.1.submodule.1.submodule", "model.1.submodule.2"],
    "UNet 1": [
        "model.1.submodule.0.conv.unit0",
        "model.1.submodule.1.submodule.conv.unit0",
        "model.1.submodule.2.1.conv.unit0",
    ],
    "UNet 2": [
        "model.0.conv.unit1",
        "model.1.submodule.0.conv.unit1",
        "model.1.submodule.1.submodule.conv.unit1",
        "model.1.submodule.2.1.conv.unit0",
    ],
    "DynUNet": DYN_PLACES,
    "residual DynUNet": DYN_PLACES,
    "SegResNet": [
        *(f"down_layers.{path}.conv2" for path in ("1.1", "1.2", "2.1", "2.2")),
        *(f"up_layers.{path}.conv2" for path in ("0.0", "1.0")),
    ],
    "ResNet-18": [*(f"encoder.layer{layer}.{block}.conv2" for layer in (1, 2, 3, 4) for block in (0, 1)), *DECODER],
    "EfficientNet": [
        "encoder._blocks.0.0._project_conv",
        *(f"encoder._blocks.{path}._expand_conv" for path in NARROW),
        *DECODER,
    ],
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def inserted(network: nn.Module, **settings) -> SliceStack:
    torch.manual_seed(1)
    return insert_depth_shift(network, **settings)


@functools.cache
def shared(name: str) -> SliceStack:
    """One for all tests that change nothing in it."""
    return inserted(made(name))


def volume(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def assert_equal_but_for_rounding(found: Tensor, expected: Tensor) -> None:
    """Logits of untrained networks may be as small as 1e-6, so that what is small is measured by the largest."""
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


def paths(stack: SliceStack) -> list[str]:
    """Where exchanges are, in the order of the network's modules."""
    return [
        name.removesuffix(".shift")
        for name, module in stack.network.named_modules()
        if isinstance(module, SliceExchange)
    ]


def convolution(module: nn.Module) -> nn.Module:
    """The first convolution of a module, which may be one."""
    return next(part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)))


# ---- where ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_but_the_first_at_full_size_exchanges_and_costs_what_it_should(name):
    network = made(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    stack = inserted(network)
    assert paths(stack) == PLACES[name]
    assert stack.halo == len(PLACES[name])
    widths = [convolution(network.get_submodule(path)).in_channels // 2 // 4 * 4 for path in PLACES[name]]
    assert min(widths) >= 4
    added = sum(p.numel() for p in stack.parameters()) - sum(p.numel() for p in network.parameters())
    assert added == sum(9 * width**2 + width for width in widths)
    # the network that was given is as it was, and the copy has its weights
    assert not [module for module in network.modules() if isinstance(module, (SliceExchange, SliceStack))]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    copied = {key: value for key, value in stack.network.state_dict().items() if ".shift." not in key}
    assert [key.replace(".body", "") for key in copied] == list(before)
    assert all(torch.equal(value, before[key.replace(".body", "")]) for key, value in copied.items())


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("BasicUNet", "conv_0.conv_1"),
        ("DynUNet", "input_block.conv2"),
        ("SegResNet", "down_layers.0.1.conv2"),
    ],
)
def test_the_first_block_exchanges_on_demand(name, first):
    assert paths(inserted(made(name), skip_first=False)) == [first, *PLACES[name]]


def test_the_first_block_is_one_at_the_size_of_the_input():
    full = UNet(2, 1, 2, channels=(8, 16, 24), strides=(1, 2), num_res_units=2)
    assert "model.0.conv.unit1" not in paths(inserted(full))
    assert "model.0.conv.unit1" in paths(inserted(full, skip_first=False))


def test_three_convolutions_of_a_stage_share_one_exchange():
    stack = inserted(UNet(2, 1, 2, **LEVELS, num_res_units=3))
    assert paths(stack) == PLACES["UNet 2"]


def test_bottlenecks_of_residual_networks_exchange_in_front_of_their_second_convolution():
    block = ResNetBottleneck(8, 8, 2, downsample=nn.Conv2d(8, 32, 1))
    assert paths(inserted(nn.Sequential(nn.Conv2d(1, 8, 1), block, nn.Conv2d(32, 2, 1)), skip_first=False)) == [
        "1.conv2"
    ]


class Plain(nn.Module):
    """Of no known block, with a module under two names and one of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.alias = self.second
        self.mix = nn.Bilinear(1, 1, 1)
        self.scale = nn.Linear(8, 8)
        self.unused = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.twice(self.twice(torch.relu(self.first(image))))
        features = self.alias(torch.relu(features))
        pooled = features.mean(dim=(2, 3))
        weight = self.mix(pooled[:, :1], pooled[:, 1:2]) + self.scale(pooled)
        return self.head(features * weight[..., None, None])


def test_modules_of_any_network_may_be_named():
    stack = inserted(Plain(), before=["head", "alias"])
    assert paths(stack) == ["second", "head"]
    assert stack.network.second is stack.network.alias
    # named is what exchanges, and nothing else
    assert paths(inserted(made("BasicUNet"), before=["conv_0.conv_1"])) == ["conv_0.conv_1"]


# ---- what it does ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("depth", [1, 3])
def test_equal_slices_have_the_logits_of_the_2d_network_where_it_starts_as_the_plain_shift(name, depth):
    network, image = made(name), volume(2, 1, 32, 64)
    stack = inserted(network, ends="replicate", start_as_plain_shift=True)
    with torch.no_grad():
        assert_equal_but_for_rounding(
            stack(image[..., None].repeat(1, 1, 1, 1, depth)), network(image)[..., None].repeat(1, 1, 1, 1, depth)
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_slice_is_seen_from_its_neighbors_and_no_further_than_the_halo(name):
    stack = shared(name)
    depth = stack.halo + 3
    values = volume(1, 1, 32, 32, depth)
    for index in (0, depth // 2):
        changed = values.clone()
        changed[..., index] = volume(1, 1, 32, 32, seed=1)
        with torch.no_grad():
            seen = (stack(values) - stack(changed)).abs().amax(dim=(0, 1, 2, 3)) > 0
        reach = [abs(other - index) for other in range(depth) if seen[other]]
        assert max(reach) <= stack.halo
        assert all(seen[other] for other in range(depth) if abs(other - index) <= 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_volumes_of_a_batch_never_meet(name):
    stack, values = shared(name), volume(2, 1, 32, 32, 3)
    changed = torch.cat([values[:1], volume(1, 1, 32, 32, 3, seed=1)])
    with torch.no_grad():
        one, other = stack(values), stack(changed)
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_exchanged_passes_through_the_module_behind_and_no_other_way(name):
    """With those modules' weights 0, identity paths and skips give what they give in the 2-D network."""
    network, values = made(name), volume(1, 1, 32, 64, 3)
    stack = inserted(network)
    with torch.no_grad():
        for path in PLACES[name]:
            convolution(network.get_submodule(path)).weight.zero_()
            convolution(stack.network.get_submodule(path).body).weight.zero_()
        slices = [network(values[..., index]) for index in range(3)]
        assert_equal_but_for_rounding(stack(values), torch.stack(slices, dim=-1))


def shifted(features: Tensor, share: int) -> Tensor:
    """Slices (D, C, H, W), their first channels one slice onward, the next one back, zeros at the ends."""
    result = features.clone()
    result[1:, :share], result[0, :share] = features[:-1, :share], 0
    result[:-1, share : 2 * share], result[-1, share : 2 * share] = features[1:, share : 2 * share], 0
    return result


def by_hand(block: nn.Module, features: Tensor, share: int) -> Tensor:
    """The forward pass of a block with a shift between its convolutions, written out."""
    if isinstance(block, TwoConv):
        return block.conv_1(shifted(block.conv_0(features), share))
    if isinstance(block, ResidualUnit):
        return block.residual(features) + block.conv.unit1(shifted(block.conv.unit0(features), share))
    if isinstance(block, ResBlock):
        inner = block.conv1(block.act(block.norm1(features.clone())))
        return features + block.conv2(shifted(block.act(block.norm2(inner)), share))
    if isinstance(block, ResNetBlock):
        inner = shifted(block.act(block.bn1(block.conv1(features))), share)
        return block.act(block.bn2(block.conv2(inner)) + features)
    if isinstance(block, MBConvBlock):
        inner = block._swish(block._bn0(block._expand_conv(shifted(features, share))))
        inner = block._swish(block._bn1(block._depthwise_conv(block._depthwise_conv_padding(inner))))
        return block._bn2(block._project_conv(inner)) + features
    inner = shifted(block.lrelu(block.norm1(block.conv1(features))), share)
    return block.lrelu(block.norm2(block.conv2(inner)) + features)


BLOCKS = {
    "TwoConv": lambda: TwoConv(2, 8, 8, "relu", "instance", True),
    "ResidualUnit": lambda: ResidualUnit(2, 8, 8),
    "ResBlock": lambda: ResBlock(2, 8, ("group", {"num_groups": 4})),
    "ResNetBlock": lambda: ResNetBlock(8, 8, 2),
    "MBConvBlock": lambda: MBConvBlock(2, 8, 8, 3, 1, [32, 32], 2, None),
    "UnetResBlock": lambda: UnetResBlock(2, 8, 8, 3, 1, "instance"),
}


@pytest.mark.parametrize("kind", ["plain", "distill"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_with_a_shift_is_the_block_written_out(name, kind):
    torch.manual_seed(0)
    block, slices = BLOCKS[name]().eval(), volume(4, 8, 12, 12)
    settings, share = ({"fraction": 0.25}, 2) if kind == "plain" else ({"start_as_plain_shift": True}, 1)
    stack = inserted(block, exchange=kind, skip_first=False, depth_axis=0, **settings)
    values = slices.movedim(1, 0)[None]
    with torch.no_grad():  # where memory is reused
        torch.testing.assert_close(stack(values.clone())[0].movedim(1, 0), by_hand(block, slices, share))
    torch.testing.assert_close(stack(values)[0].movedim(1, 0), by_hand(block, slices, share))


def test_the_residual_shift_adds_the_unshifted_features_where_their_shape_stays():
    block, slices = TwoConv(2, 8, 8, "relu", "instance", True), volume(4, 8, 12, 12)
    stack = inserted(block, exchange="residual", skip_first=False, depth_axis=0)
    first = block.conv_0(slices)
    expected = first + block.conv_1(shifted(first, 2))
    torch.testing.assert_close(stack(slices.movedim(1, 0)[None])[0].movedim(1, 0), expected)


def test_the_residual_shift_has_no_parameters_and_no_identity_path_where_channels_change():
    network = made("EfficientNet")
    stack = inserted(network, exchange="residual")
    assert sum(p.numel() for p in stack.parameters()) == sum(p.numel() for p in network.parameters())
    wrapped = [name for name, module in stack.network.named_modules() if isinstance(module, ResidualDepthShift)]
    assert wrapped == DECODER
    assert all(type(exchange) is DepthShift for exchange in stack.exchanges)


@pytest.mark.parametrize("name", NETWORKS)
def test_results_are_equal_with_and_without_gradients(name):
    """Memory is reused without gradients only: never that of an identity path or a skip."""
    stack, values = shared(name), volume(1, 1, 32, 64, 3)
    assert any(exchange.inplace for exchange in stack.exchanges) == (name not in ("UNet 0", "UNet 1"))
    with_gradients = stack(values)
    with torch.no_grad():
        assert_equal_but_for_rounding(stack(values), with_gradients)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter_that_the_2d_network_trains(name):
    network = made(name).train()
    network(volume(2, 1, 32, 32)).square().mean().backward()
    reached = {key for key, value in network.named_parameters() if value.grad is not None}
    stack = inserted(network)
    stack.zero_grad()
    assert all(module.training for module in stack.modules())
    stack(volume(1, 1, 32, 32, 3)).square().mean().backward()
    for key, value in stack.network.named_parameters():
        if ".shift." in key:
            assert value.grad is not None
            assert value.grad.any() or key.endswith("bias")  # a normalization may take a bias out again
        else:
            assert (value.grad is not None) == (key.replace(".body", "") in reached), key


# ---- knobs ----------------------------------------------------------------------------------------------------------


def test_every_setting_reaches_the_exchanges():
    settings = {"alpha": 1.0, "ends": "circular", "causal": True, "kernel_size": 1}
    stack = inserted(made("DynUNet"), **settings, exchange_norm="instance", exchange_act="relu", layout="contiguous")
    for exchange in stack.exchanges:
        assert {key: getattr(exchange, key) for key in ("alpha", "ends", "causal")} == {
            key: settings[key] for key in ("alpha", "ends", "causal")
        }
        assert exchange.conv.kernel_size == (1, 1)
        assert isinstance(exchange.norm, nn.InstanceNorm2d)
        assert isinstance(exchange.act, nn.ReLU)
    assert stack.layout == "contiguous"
    assert inserted(made("DynUNet"), depth_axis=1).depth_axis == 1
    assert inserted(made("DynUNet"), spacing=(5, 1, 1)).depth_axis == 0
    assert inserted(made("DynUNet"), exchange="plain", fraction=0.125, causal=True).exchanges[0].fraction == 0.125


def test_it_takes_the_type_and_the_modes_of_the_network():
    network = made("BasicUNet").double().train()
    network.down_1.convs.conv_1.adn.eval()  # a frozen normalization
    stack = inserted(network)
    assert stack.training
    assert not inserted(made("BasicUNet")).training
    assert {value.dtype for value in stack.parameters()} == {torch.float64}
    frozen = stack.network.down_1.convs.conv_1
    assert frozen.training
    assert frozen.shift.training
    assert not frozen.body.adn.training


def test_the_dry_run_leaves_statistics_and_random_numbers_alone():
    network = UNet(2, 1, 2, **LEVELS, num_res_units=2, norm="batch", dropout=0.5).train()
    torch.manual_seed(0)
    stack = insert_depth_shift(network, exchange="plain")
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    assert all(int(value) == 0 for key, value in stack.state_dict().items() if key.endswith("num_batches_tracked"))


# ---- life -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_pickles_and_weights_give_equal_logits(name):
    stack, values = shared(name), volume(1, 1, 32, 64, 3)
    other = inserted(made(name))
    for parameter in other.parameters():
        parameter.data.zero_()
    file = io.BytesIO()
    torch.save(stack.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected = stack(values)
        for twin in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack)), other):
            assert_equal_but_for_rounding(twin(values), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_heads_of_deep_supervision_come_as_volumes(axis):
    network = DynUNet(**DYN, deep_supervision=True, deep_supr_num=1)
    stack = inserted(network, depth_axis=axis, ends="replicate", start_as_plain_shift=True).train()
    values = volume(2, 1, 32, 32, 1).movedim(4, 2 + axis)
    heads = stack(values)
    assert heads.shape == (2, 2, 2, *values.shape[2:])
    network.load_state_dict({key.replace(".body.", "."): value for key, value in inner(stack).items()})
    flat = network.train()(values.squeeze(2 + axis))
    assert_equal_but_for_rounding(heads.squeeze(3 + axis), flat)


def inner(stack: SliceStack) -> dict[str, Tensor]:
    """The weights of the 2-D network in a stack."""
    state = {key.removeprefix("network."): value for key, value in stack.state_dict().items()}
    return {key: value for key, value in state.items() if ".shift." not in key}


def test_a_forward_pass_that_is_computed_again_in_the_thread_of_the_backward_pass_sees_the_same_slices():
    torch.manual_seed(0)
    settings = {**LEVELS, "num_res_units": 2, "norm": "instance"}
    plain = insert_depth_shift(UNet(2, 1, 2, **settings))
    checkpointed = insert_depth_shift(CheckpointUNet(2, 1, 2, **settings))
    checkpointed.load_state_dict(
        dict(zip(checkpointed.state_dict(), plain.state_dict().values(), strict=True))  # another path to each module
    )
    for stack in (plain, checkpointed):
        loss = stack.train()(volume(1, 1, 32, 32, 5)).square().mean()
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    for ours, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_network_that_returns_a_list_is_refused_on_use():
    class Listed(nn.Module):
        def forward(self, slices: Tensor) -> list[Tensor]:
            return [slices]

    with pytest.raises(TypeError, match="Listed returned a list; a network of slices must return one tensor"):
        SliceStack(Listed())(volume(1, 1, 8, 8, 3))


def exported(stack: SliceStack) -> torch.export.ExportedProgram:
    depth = torch.export.Dim("depth", min=2, max=64)
    return torch.export.export(stack, (volume(1, 1, 32, 32, 4),), dynamic_shapes=({4: depth},), strict=False)


def test_an_exported_program_takes_another_depth():
    stack, values = inserted(made("DynUNet"), exchange="residual"), volume(1, 1, 32, 32, 7)
    assert_equal_but_for_rounding(exported(stack).module()(values), stack(values))


def test_an_exported_program_and_its_onnx_file_take_another_depth(tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    stack, values = shared("UNet 2"), volume(1, 1, 32, 32, 7)
    program, file = exported(stack), tmp_path / "model.onnx"
    assert_equal_but_for_rounding(program.module()(values), stack(values))
    torch.onnx.export(program, (), file, dynamo=True, verbose=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: values.numpy()})
    assert_equal_but_for_rounding(torch.from_numpy(found), stack(values).detach())


@pytest.fixture
def process_group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_it_trains_within_ddp(process_group):
    stack, values = inserted(made("UNet 2")).train(), volume(1, 1, 32, 32, 3)
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(stack))
    parallel(values).square().mean().backward()
    stack(values).square().mean().backward()
    for mine, theirs in zip(stack.parameters(), parallel.module.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


# ---- what cannot be -------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """Reads a setting of its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image) * self.conv.weight.mean()


class Keeper(nn.Module):
    """Calls its convolution by a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.steps = [self.conv]

    def forward(self, image: Tensor) -> Tensor:
        return self.steps[0](image)


ERRORS = {
    "3-D": (
        lambda: insert_depth_shift(BasicUNet(3, 1, 2)),
        "BasicUNet is a 3-D network: 'conv_0.conv_0.conv' is Conv3d",
    ),
    "no convolution": (lambda: insert_depth_shift(nn.Linear(2, 2)), "Linear has no 2-D convolution"),
    "nothing found": (
        lambda: insert_depth_shift(Plain()),
        "Plain has no block that is known.*before=.*first, twice, second, unused, head",
    ),
    "only the first": (
        lambda: insert_depth_shift(TwoConv(2, 8, 8, "relu", "batch", True)),
        "the only known block is the first, at 'conv_1'; give skip_first=False",
    ),
    "unknown path": (
        lambda: insert_depth_shift(made("BasicUNet"), before=["down1.convs.conv_1"]),
        "before names 'down1.convs.conv_1', no module of BasicUNet; near: down_1.convs.conv_1",
    ),
    "text": (lambda: insert_depth_shift(Plain(), before="head"), "before is 'head'; it must be a list"),
    "empty": (lambda: insert_depth_shift(Plain(), before=[]), "before is \\[\\]; it must be a list"),
    "named twice": (
        lambda: insert_depth_shift(Plain(), before=["second", "alias"]),
        "before names one module twice, as 'second' and 'alias'",
    ),
    "runs twice": (lambda: insert_depth_shift(Plain(), before=["twice"]), "'twice' runs 2 times"),
    "never runs": (lambda: insert_depth_shift(Plain(), before=["unused"]), "'unused' runs 0 times"),
    "no features": (
        lambda: insert_depth_shift(Plain(), before=["scale"]),
        "'scale' gets \\(\\(2, 8\\)\\) for 2 slices; an exchange needs one tensor of features \\(2, C, H, W\\)",
    ),
    "two inputs": (
        lambda: insert_depth_shift(Plain(), before=["mix"]),
        "'mix' gets \\(\\(2, 1\\), \\(2, 1\\)\\) for 2 slices",
    ),
    "few channels": (
        lambda: insert_depth_shift(BasicUNet(2, 1, 2, features=(8, 8, 4, 8, 8, 8))),
        "exchange in front of 'down_2.convs.conv_1': alpha 0.5 of 4 channels is 2",
    ),
    "few channels to shift": (
        lambda: insert_depth_shift(Plain(), "plain", before=["head"], fraction=0.1),
        "exchange in front of 'head': DepthShift got 8 channels",
    ),
    "several outputs": (
        lambda: insert_depth_shift(BasicUNetPlusPlus(2, 1, 2, features=(8, 8, 8, 8, 8, 8))),
        "BasicUNetPlusPlus returns list for 2 slices; it must be one tensor \\(2, K, H, W\\)",
    ),
    "classes": (
        lambda: insert_depth_shift(EfficientNetBN("efficientnet-b0", pretrained=False, in_channels=1)),
        "EfficientNetBN returns \\(2, 1000\\) for 2 slices",
    ),
    "already": (
        lambda: insert_depth_shift(inserted(made("UNet 2"))),
        "SliceStack exchanges between slices already, at 'network.model.0.conv.unit1.shift'",
    ),
    "size": (
        lambda: insert_depth_shift(made("UNet 2"), input_shape=(2, 1, 33, 33)),
        "UNet cannot run on slices \\(2, 1, 33, 33\\): .*; give input_shape=",
    ),
    "shape": (lambda: insert_depth_shift(made("UNet 2"), input_shape=(1, 64, 64)), "input_shape is \\(1, 64, 64\\)"),
    "reads": (
        lambda: insert_depth_shift(Reader(), before=["conv"]),
        "Reader does not run with exchanges in front of conv: .*weight",
    ),
    "keeps": (lambda: insert_depth_shift(Keeper(), before=["conv"]), "Keeper holds conv elsewhere than as a submodule"),
    "exchange": (lambda: insert_depth_shift(Plain(), "shift"), "exchange is 'shift'; known: distill, plain, residual"),
    "start": (
        lambda: insert_depth_shift(Plain(), "plain", start_as_plain_shift=True),
        "start_as_plain_shift sets the learned exchange alone; got exchange='plain'",
    ),
    "start with more": (
        lambda: insert_depth_shift(Plain(), start_as_plain_shift=True, exchange_act="relu"),
        "exchange_act='relu'",
    ),
    "ends": (lambda: insert_depth_shift(Plain(), before=["head"], ends="none"), "ends is 'none'; known"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_is_named(case):
    make, message = ERRORS[case]
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert not re.search("\n", str(caught.value))
