"""Stages of eight MONAI networks are where the table says, and taps record what those stages return."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import (
    AttentionUnet,
    BasicUNet,
    DynUNet,
    FlexibleUNet,
    MedNeXt,
    SegResNet,
    SegResNetVAE,
    SwinUNETR,
    UNet,
)
from monai.networks.nets.unet import CheckpointUNet
from torch import nn

from monai_kd.distillers.taps import FeatureTaps, stage_paths


def unet(dims: int) -> nn.Module:
    return UNet(dims, 1, 2, channels=(4, 8, 16, 32), strides=(2, 2, 2), num_res_units=1)


def plain_unet(dims: int) -> nn.Module:
    inplace_relu = ("relu", {"inplace": True})
    return UNet(dims, 1, 2, channels=(4, 8, 16), strides=(1, 2), num_res_units=0, act=inplace_relu)


def checkpoint_unet(dims: int) -> nn.Module:
    return CheckpointUNet(dims, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)


def basic_unet(dims: int) -> nn.Module:
    return BasicUNet(dims, 1, 2, features=(4, 4, 8, 16, 32, 6))


def segresnet(dims: int) -> nn.Module:
    return SegResNet(dims, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1, 1), blocks_up=(1, 1))


def dynunet(dims: int) -> nn.Module:
    return DynUNet(dims, 1, 2, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=(4, 8, 12, 16))


def residual_dynunet(dims: int) -> nn.Module:
    return DynUNet(
        dims, 1, 2, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=(4, 8, 12, 16), res_block=True, deep_supervision=True
    )


def swin_unetr(dims: int, use_v2: bool = False) -> nn.Module:
    heads_and_depths = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
    return SwinUNETR(1, 2, feature_size=12, window_size=2, spatial_dims=dims, use_v2=use_v2, **heads_and_depths)


def swin_unetr_v2(dims: int) -> nn.Module:
    return swin_unetr(dims, use_v2=True)


def mednext(dims: int) -> nn.Module:
    blocks = {"blocks_down": (1, 1, 1), "blocks_bottleneck": 1, "blocks_up": (1, 1, 1)}
    return MedNeXt(dims, init_filters=4, in_channels=1, out_channels=2, kernel_size=3, **blocks)


def attention_unet(dims: int) -> nn.Module:
    return AttentionUnet(dims, 1, 2, channels=(4, 8, 16), strides=(2, 2))


def flexible_resnet(dims: int) -> nn.Module:
    return FlexibleUNet(1, 2, "resnet18", spatial_dims=dims, decoder_channels=(32, 16, 12, 8, 4))


def flexible_efficientnet(dims: int) -> nn.Module:
    return FlexibleUNet(1, 2, "efficientnet-b0", spatial_dims=dims, decoder_channels=(32, 16, 12, 8, 4))


# network, input edge in voxels, (stage, channels, edge) in the order of the U
TABLE: list[tuple[Callable[[int], nn.Module], int, str]] = [
    (unet, 16, "encoder_1 4 8, encoder_2 8 4, encoder_3 16 2, bottleneck 32 2, decoder_2 8 4, decoder_1 4 8"),
    (plain_unet, 16, "encoder_1 4 16, encoder_2 8 8, bottleneck 16 8, decoder_1 4 16"),
    (checkpoint_unet, 16, "encoder_1 4 8, encoder_2 8 4, bottleneck 16 4, decoder_1 4 8"),
    (
        basic_unet,
        32,
        "encoder_1 4 32, encoder_2 4 16, encoder_3 8 8, encoder_4 16 4, bottleneck 32 2, "
        "decoder_4 16 4, decoder_3 8 8, decoder_2 4 16, decoder_1 6 32",
    ),
    (segresnet, 16, "encoder_1 8 16, encoder_2 16 8, bottleneck 32 4, decoder_2 16 8, decoder_1 8 16"),
    (
        dynunet,
        16,
        "encoder_1 4 16, encoder_2 8 8, encoder_3 12 4, bottleneck 16 2, decoder_3 12 4, decoder_2 8 8, decoder_1 4 16",
    ),
    (
        residual_dynunet,
        16,
        "encoder_1 4 16, encoder_2 8 8, encoder_3 12 4, bottleneck 16 2, decoder_3 12 4, decoder_2 8 8, decoder_1 4 16",
    ),
    (
        swin_unetr,
        64,
        "encoder_1 12 64, encoder_2 12 32, encoder_3 24 16, encoder_4 48 8, encoder_5 96 4, bottleneck 192 2, "
        "decoder_5 96 4, decoder_4 48 8, decoder_3 24 16, decoder_2 12 32, decoder_1 12 64",
    ),
    (
        mednext,
        16,
        "encoder_1 4 16, encoder_2 8 8, encoder_3 16 4, bottleneck 32 2, decoder_3 16 4, decoder_2 8 8, decoder_1 4 16",
    ),
    (attention_unet, 16, "encoder_1 4 16, encoder_2 8 8, bottleneck 16 4, decoder_2 8 8, decoder_1 4 16"),
    (
        flexible_resnet,
        32,
        "encoder_1 64 16, encoder_2 64 8, encoder_3 128 4, encoder_4 256 2, bottleneck 512 1, "
        "decoder_4 32 2, decoder_3 16 4, decoder_2 12 8, decoder_1 8 16, decoder_0 4 32",
    ),
    (
        flexible_efficientnet,
        32,
        "encoder_1 16 16, encoder_2 24 8, encoder_3 40 4, encoder_4 112 2, bottleneck 320 1, "
        "decoder_4 32 2, decoder_3 16 4, decoder_2 12 8, decoder_1 8 16, decoder_0 4 32",
    ),
]
TWO_D = {unet, checkpoint_unet, segresnet, dynunet, swin_unetr, swin_unetr_v2, flexible_resnet, flexible_efficientnet}
SMALL = [row for row in TABLE if row[0] in (unet, basic_unet, segresnet, dynunet)]


def parse(stages: str) -> list[tuple[str, int, int]]:
    rows = [stage.split() for stage in stages.split(", ")]
    return [(name, int(channels), int(edge)) for name, channels, edge in rows]


def name_of(row: tuple[Callable[[int], nn.Module], int, str]) -> str:
    return row[0].__name__


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def image(edge: int, dims: int = 3, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, *[edge] * dims)


# ---- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE, ids=name_of)
def test_stages_have_the_pinned_names_channels_and_sizes_in_3d(row):
    make, edge, stages = row
    network = make(3).eval()
    expected = parse(stages)
    assert list(stage_paths(network)) == [name for name, _, _ in expected]
    with torch.no_grad(), FeatureTaps(network, list(stage_paths(network))) as features:
        network(image(edge))
    shapes = {name: tuple(features[name].shape) for name, _, _ in expected}
    assert shapes == {name: (1, channels, size, size, size) for name, channels, size in expected}


@pytest.mark.parametrize("row", [row for row in TABLE if row[0] in TWO_D], ids=name_of)
def test_stages_have_the_same_names_channels_and_sizes_in_2d(row):
    make, edge, stages = row
    network = make(2).eval()
    with torch.no_grad(), FeatureTaps(network, list(stage_paths(network))) as features:
        network(image(edge, dims=2))
    shapes = {name: tuple(features[name].shape) for name in stage_paths(network)}
    assert shapes == {name: (1, channels, size, size) for name, channels, size in parse(stages)}


def test_the_table_covers_the_eight_networks():
    assert len({type(make(2)).__name__ for make, _, _ in TABLE} - {"CheckpointUNet"}) == 8


@pytest.mark.parametrize("row", TABLE, ids=name_of)
def test_decoder_k_has_the_size_of_encoder_k(row):
    sizes = {name: edge for name, _, edge in parse(row[2])}
    pairs = [(k, f"encoder_{k[8:]}") for k in sizes if k.startswith("decoder_") and k != "decoder_0"]
    assert pairs
    assert all(sizes[decoder] == sizes[encoder] for decoder, encoder in pairs)


def test_depth_is_read_from_the_instance():
    shallow = UNet(2, 1, 2, channels=(4, 8), strides=(2,))
    assert list(stage_paths(shallow)) == ["encoder_1", "bottleneck"]
    deep = DynUNet(2, 1, 2, [3] * 6, [1] + [2] * 5, [2] * 5, filters=(2, 2, 2, 2, 2, 2))
    assert len(stage_paths(deep)) == 11
    assert len(stage_paths(SegResNet(2, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)))) == 3


def test_subclasses_count_and_unknown_networks_have_no_stages():
    class StudentUNet(UNet):
        pass

    assert "bottleneck" in stage_paths(StudentUNet(2, 1, 2, channels=(4, 8), strides=(2,)))
    assert stage_paths(nn.Sequential(nn.Conv2d(1, 2, 1))) == {}


def test_a_class_that_only_shares_the_name_has_no_stages():
    assert stage_paths(type("UNet", (nn.Module,), {})()) == {}


def test_a_flexible_unet_with_a_foreign_backbone_shows_its_decoder_only():
    network = flexible_resnet(2)
    network.encoder = nn.Identity()
    assert list(stage_paths(network)) == ["decoder_4", "decoder_3", "decoder_2", "decoder_1", "decoder_0"]


# ---- what is recorded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", [*dict.fromkeys(row[0] for row in TABLE), swin_unetr_v2], ids=lambda f: f.__name__)
def test_no_stage_is_overwritten_by_a_later_layer(make, training):
    network = make(2).train(training)
    stages = stage_paths(network)
    at_the_time: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda module, args, output: at_the_time.update({name: output.clone()})

    handles = [network.get_submodule(path).register_forward_hook(keep(name)) for name, path in stages.items()]
    with FeatureTaps(network, list(stages)) as features:
        network(image(64, dims=2, batch=2))
    for handle in handles:
        handle.remove()
    assert len(at_the_time) == len(stages) > 0
    assert [name for name in stages if not torch.equal(features[name], at_the_time[name])] == []


def test_the_recorded_bottleneck_equals_the_encoder_computed_by_hand():
    network = basic_unet(2).eval()
    x = image(32, dims=2)
    with torch.no_grad():
        expected = network.down_4(network.down_3(network.down_2(network.down_1(network.conv_0(x)))))
        with FeatureTaps(network, ["bottleneck"]) as features:
            network(x)
    assert torch.equal(features["bottleneck"], expected)


@pytest.mark.parametrize("row", SMALL, ids=name_of)
def test_tapping_does_not_change_the_output(row):
    network, x = row[0](2).eval(), image(row[1], dims=2)
    alone = network(x)
    with FeatureTaps(network, list(stage_paths(network))):
        tapped = network(x)
    assert torch.equal(alone, tapped)


def test_gradient_flows_through_recorded_stages_and_inner_taps():
    network = unet(2)
    with pytest.warns(UserWarning, match="cloned"):
        taps = FeatureTaps(network, {"stage": "encoder_2", "inner": "model.1.submodule.0.conv.unit0.conv"})
    with taps as features:
        network(image(16, dims=2, batch=2))
    for feature in features.values():
        network.zero_grad()
        feature.square().mean().backward(retain_graph=True)
        assert network.model[0].conv.unit0.conv.weight.grad.abs().sum() > 0
        assert network.model[2][0].conv.weight.grad is None  # the decoder is behind the tap


def test_gradient_through_activation_checkpointing_equals_that_without():
    plain = UNet(2, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)
    checkpointed = checkpoint_unet(2)
    weights = [parameter.detach().clone() for parameter in plain.parameters()]
    for parameter, weight in zip(checkpointed.parameters(), weights, strict=True):
        parameter.data.copy_(weight)
    x, gradients = image(16, dims=2, batch=2), []
    for network in (plain, checkpointed):
        with FeatureTaps(network, ["bottleneck"]) as features:
            network(x)
        features["bottleneck"].square().mean().backward()
        gradients.append(next(network.parameters()).grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(*gradients)


def test_meta_tensors_are_recorded_as_plain_tensors():
    network = unet(2).eval()
    with FeatureTaps(network, ["bottleneck"]) as features:
        assert isinstance(network(MetaTensor(image(16, dims=2))), MetaTensor)
    assert type(features["bottleneck"]) is torch.Tensor


def test_inference_mode_is_recorded():
    network = unet(2).eval()
    with torch.inference_mode(), FeatureTaps(network, ["bottleneck"]) as features:
        network(image(16, dims=2))
    assert features["bottleneck"].shape == (1, 32, 2, 2)


def test_nothing_is_recorded_outside_the_context():
    network = unet(2).eval()
    taps = FeatureTaps(network, ["bottleneck"])
    network(image(16, dims=2))
    with taps as features:
        network(image(16, dims=2))
    inside = features["bottleneck"]
    network(image(16, dims=2) + 1)
    assert features["bottleneck"] is inside
    assert not any(module._forward_hooks for module in network.modules())


def test_no_reference_to_a_feature_is_kept_after_the_context():
    network = unet(2).eval()
    taps = FeatureTaps(network, ["bottleneck"])
    with torch.no_grad(), taps as features:
        network(image(16, dims=2))
    alive = weakref.ref(features.pop("bottleneck"))
    gc.collect()
    assert alive() is None


def test_hooks_are_removed_when_the_forward_fails():
    network = unet(2)
    taps = FeatureTaps(network, ["bottleneck"])
    with pytest.raises(RuntimeError, match="channels"), taps:
        network(torch.rand(1, 5, 16, 16))
    assert not any(module._forward_hooks for module in network.modules())
    with taps as features:
        network(image(16, dims=2))
    assert list(features) == ["bottleneck"]


def test_the_same_taps_record_again():
    network = unet(2).eval()
    taps = FeatureTaps(network, ["bottleneck"])
    recorded = []
    for shift in (0.0, 1.0):
        with taps as features:
            network(image(16, dims=2) + shift)
        recorded.append(features["bottleneck"])
    assert not torch.equal(*recorded)


def test_copies_pickles_and_state_dicts_are_unaffected():
    network = unet(2).eval()
    keys = list(network.state_dict())
    taps = FeatureTaps(network, ["bottleneck"])
    with taps:
        network(image(16, dims=2))
    assert list(network.state_dict()) == keys
    for twin in (copy.deepcopy(taps), pickle.loads(pickle.dumps(taps))):
        assert twin.network is not network
        with twin as features:
            twin.network(image(16, dims=2))
        assert list(features) == ["bottleneck"]
    assert not any(module._forward_hooks for module in copy.deepcopy(network).modules())


# ---- names, paths, aliases ------------------------------------------------------------------------------------------


def test_aliases_name_the_features():
    network = unet(2).eval()
    taps = FeatureTaps(network, {"deep": "bottleneck", "shallow": "model.0"})
    assert taps.names == ["deep", "shallow"]
    assert taps.paths == {"deep": "model.1.submodule.1.submodule.1.submodule", "shallow": "model.0"}
    with taps as features:
        network(image(16, dims=2))
    assert {alias: feature.shape[1] for alias, feature in features.items()} == {"shallow": 4, "deep": 32}


def test_no_taps_record_nothing():
    network = unet(2).eval()
    with FeatureTaps(network, {}) as features:
        network(image(16, dims=2))
    assert features == {}


def test_a_stage_given_by_its_module_path_is_not_cloned():
    network = dynunet(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureTaps(network, ["downsamples.0", "skip_layers.next_layer.downsample", "encoder_2"])


def test_an_inner_tap_survives_the_in_place_layer_behind_it():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True))
    with pytest.warns(UserWarning, match=r"taps '0' \(0\) of Sequential are not stage outputs"):
        taps = FeatureTaps(network, ["0"])
    x = torch.randn(1, 1, 8, 8)
    with taps as features:
        network(x)
    assert torch.equal(features["0"], network[0](x))
    assert (features["0"] < 0).any()


def test_inner_taps_warn_once_and_only_at_construction():
    network = basic_unet(2).eval()
    with pytest.warns(UserWarning, match="inplace|in-place") as caught:
        taps = FeatureTaps(network, ["down_1.convs.conv_0.conv", "down_2.convs.conv_0.conv"])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with taps:
                network(image(32, dims=2))


def test_an_unknown_tap_names_the_stages_and_a_module_path():
    with pytest.raises(ValueError, match="tap 'bottlneck' is not a stage or module of UNet") as caught:
        FeatureTaps(unet(2), ["bottlneck"])
    message = str(caught.value)
    assert "stages: encoder_1, encoder_2, encoder_3, bottleneck, decoder_2, decoder_1" in message
    assert "such as 'model.0.conv.unit0.conv'" in message


def test_an_unknown_target_of_an_alias_is_named_with_its_alias():
    with pytest.raises(ValueError, match="tap 'mid' reads 'layer9', which is not a stage or module of Sequential"):
        FeatureTaps(nn.Sequential(nn.ReLU()), {"mid": "layer9"})


@pytest.mark.parametrize(
    ("taps", "reason"),
    [("bottleneck", "is the string"), (["bottleneck", "bottleneck"], "more than once"), ([""], "is not a stage")],
)
def test_malformed_taps_are_refused(taps, reason):
    with pytest.raises(ValueError, match=reason):
        FeatureTaps(unet(2), taps)


def test_torchscript_can_go_without_taps_but_not_with_them():
    network = torch.jit.script(nn.Sequential(nn.ReLU()))
    with FeatureTaps(network, {}) as features:
        network(image(4, dims=2))
    assert features == {}
    with pytest.raises(ValueError, match="is TorchScript"):
        FeatureTaps(network, ["0"])


# ---- misuse while recording -----------------------------------------------------------------------------------------


class Twice(nn.Module):
    """Runs its layer twice and leaves another unused."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)
        self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x))


class Packs(nn.Module):
    """Returns a list or tuple: a copy of its input for each "x" of a pattern, None for any other letter."""

    def __init__(self, pattern: str, kind: type) -> None:
        super().__init__()
        self.pattern = pattern
        self.kind = kind

    def forward(self, x: torch.Tensor) -> list[torch.Tensor | None]:
        return self.kind(x.clone() if letter == "x" else None for letter in self.pattern)


@pytest.mark.filterwarnings("ignore:taps")
class TestMisuse:
    def test_a_module_that_runs_twice_is_refused(self):
        network = Twice()
        with (
            pytest.raises(RuntimeError, match=r"tap 'f' \(layer\) of Twice ran twice"),
            FeatureTaps(network, {"f": "layer"}),
        ):
            network(torch.rand(1, 1, 4, 4))

    def test_two_forwards_in_one_context_are_refused(self):
        network = unet(2).eval()
        with FeatureTaps(network, ["bottleneck"]):
            network(image(16, dims=2))
            with pytest.raises(RuntimeError, match="one context per forward pass"):
                network(image(16, dims=2))

    def test_a_decoder_that_the_vae_branch_runs_again_is_refused_in_training(self):
        network = SegResNetVAE(
            (16, 16), 0, spatial_dims=2, init_filters=8, vae_nz=4, blocks_down=(1, 1, 1), blocks_up=(1, 1)
        )
        with pytest.raises(RuntimeError, match=r"tap 'decoder_1' .* ran twice|tap 'decoder_2' .* ran twice"):
            self.run(network.train(), ["decoder_2", "decoder_1"])
        self.run(network.eval(), ["decoder_2", "decoder_1"])

    @staticmethod
    def run(network: nn.Module, taps: list[str]) -> None:
        with FeatureTaps(network, taps):
            network(image(16, dims=2))

    def test_a_module_that_does_not_run_is_reported(self):
        network = Twice()
        with (
            pytest.raises(RuntimeError, match=r"tap 'g' \(unused\) of Twice did not run"),
            FeatureTaps(network, {"g": "unused"}),
        ):
            network(torch.rand(1, 1, 4, 4))

    def test_a_context_without_a_forward_is_reported(self):
        with pytest.raises(RuntimeError, match="did not run"), FeatureTaps(unet(2), ["bottleneck"]):
            pass

    def test_entering_twice_is_refused(self):
        network = unet(2).eval()
        taps = FeatureTaps(network, ["bottleneck"])
        with pytest.raises(RuntimeError, match="already recording"), taps, taps:
            pass
        self.run(network, ["bottleneck"])

    @pytest.mark.parametrize("kind", [list, tuple])
    @pytest.mark.parametrize("pattern", ["x", "x-"])
    def test_the_only_tensor_of_a_list_or_tuple_is_taken(self, pattern, kind):
        network = nn.Sequential(Packs(pattern, kind))
        x = torch.rand(1, 1, 4, 4)
        with FeatureTaps(network, ["0"]) as features:
            network(x)
        assert torch.equal(features["0"], x)

    @pytest.mark.parametrize(("pattern", "got"), [("", ""), ("-", "NoneType"), ("xx", "Tensor, Tensor")])
    def test_no_tensor_or_several_are_refused(self, pattern, got):
        network = nn.Sequential(Packs(pattern, list))
        with pytest.raises(TypeError, match=rf"tap '0' \(0\) of Sequential returned list \({got}\)"):
            self.run(network, ["0"])

    def test_the_feature_list_of_a_backbone_is_refused(self):
        with pytest.raises(TypeError, match=r"tap 'encoder' .* returned list \(Tensor, Tensor, "):
            self.run(flexible_resnet(2).eval(), ["encoder"])

    def test_a_stage_that_is_overwritten_after_all_is_reported(self):
        def overwrite(module: nn.Module, args: tuple[torch.Tensor]) -> None:
            args[0].add_(1.0)

        network = unet(2).eval().requires_grad_(False)
        network.model[1].register_forward_pre_hook(overwrite)
        with pytest.raises(RuntimeError, match=r"tap 'encoder_1' \(model.0\) of UNet was overwritten in place"):
            self.run(network, ["encoder_1"])
