"""Stages inside wrapped teachers and ensembles: how they are named, and that terms read them by address."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from monai_kd import teachers
from monai_kd.distillers import Distiller, FeatureTaps, Term, stage_paths
from monai_kd.teachers import (
    EnsembleTeacher,
    MapClasses,
    PadToMultiple,
    Reorient,
    Resample,
    RescaleIntensity,
    SelectChannels,
    load_teacher,
)

STAGES = ["encoder_1", "encoder_2", "bottleneck", "decoder_1"]
WRAPPERS: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
    MapClasses: lambda network: MapClasses(network, [[0], [2, 1]]),
    PadToMultiple: lambda network: PadToMultiple(network, [4, 4, 4]),
    Reorient: lambda network: Reorient(network, [2, 1, 0], [True, False, False]),
    Resample: lambda network: Resample(network, [2.0, 1.0, 1.0]),
    RescaleIntensity: lambda network: RescaleIntensity(network, 2.0, -1.0),
    SelectChannels: lambda network: SelectChannels(network, [0]),
}


def unet(seed: int = 0, channels: Sequence[int] = (4, 8, 8), classes: int = 3) -> UNet:
    torch.manual_seed(seed)
    return UNet(3, 1, classes, channels=channels, strides=(2, 2), norm="batch").eval()


def image(*size: int) -> torch.Tensor:
    return torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1))


def recorded(network: nn.Module, x: torch.Tensor, stage: str) -> torch.Tensor:
    with torch.no_grad(), FeatureTaps(network, [stage]) as features:
        network(x)
    return features[stage]


# ---- names ----------------------------------------------------------------------------------------------------------


def test_every_wrapper_shows_the_stages_inside_under_their_own_names():
    base = MapClasses.__mro__[1]
    known = {getattr(teachers, name) for name in teachers.__all__}
    assert {item for item in known if isinstance(item, type) and issubclass(item, base)} == set(WRAPPERS)
    bare = stage_paths(unet())
    assert list(bare) == STAGES
    for wrap in WRAPPERS.values():
        assert stage_paths(wrap(unet())) == {name: f"network.{path}" for name, path in bare.items()}


def test_an_ensemble_numbers_its_members_and_both_nest():
    bare = stage_paths(unet())
    ensemble = EnsembleTeacher([unet(), WRAPPERS[PadToMultiple](unet(1))])
    first = {f"member_0.{name}": f"networks.0.{path}" for name, path in bare.items()}
    second = {f"member_1.{name}": f"networks.1.network.{path}" for name, path in bare.items()}
    assert stage_paths(ensemble) == first | second
    assert list(stage_paths(ensemble)) == [f"member_{number}.{name}" for number in (0, 1) for name in STAGES]
    outer = stage_paths(WRAPPERS[MapClasses](EnsembleTeacher([nn.Conv3d(1, 3, 1), ensemble])))
    assert outer == {f"member_1.{name}": f"network.networks.1.{path}" for name, path in stage_paths(ensemble).items()}


def test_modules_of_another_build_show_no_stages():
    beside = WRAPPERS[MapClasses](unet())
    beside.head = nn.Conv3d(3, 3, 1)
    several = nn.Module()
    several.networks = nn.Sequential(unet(), unet())
    assert [stage_paths(network) for network in (beside, several, WRAPPERS[MapClasses](nn.Identity()))] == [{}] * 3


def test_torchscript_inside_a_wrapper_is_refused():
    wrapped = WRAPPERS[MapClasses](torch.jit.script(nn.Sequential(nn.Conv3d(1, 3, 1))))
    assert stage_paths(wrapped) == {}
    with pytest.raises(ValueError, match=r"tap 'network.0' \(network.0\) of MapClasses is TorchScript"):
        FeatureTaps(wrapped, ["network.0"])


# ---- values ---------------------------------------------------------------------------------------------------------


def test_features_lie_on_the_teachers_grid():
    """(8, 12, 20) voxels; turned (20, 12, 8), padded to (24, 16, 8); two strides of 2 lead to (6, 4, 2)."""
    network = unet()
    wrapped = Reorient(PadToMultiple(network, [8, 8, 8]), [2, 1, 0])
    x = image(8, 12, 20)
    seen = nn.functional.pad(x.permute(0, 1, 4, 3, 2), (0, 0, 0, 4, 0, 4), mode="replicate")
    feature = recorded(wrapped, x, "bottleneck")
    assert feature.shape == (2, 8, 6, 4, 2)
    assert torch.equal(feature, recorded(network, seen, "bottleneck"))


def test_each_members_features_are_its_own():
    members = [unet(), unet(1)]
    x = image(8, 8, 8)
    for number, member in enumerate(members):
        found = recorded(EnsembleTeacher(members), x, f"member_{number}.encoder_2")
        assert torch.equal(found, recorded(member, x, "encoder_2"))


def test_stages_inside_are_recorded_without_a_copy():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureTaps(EnsembleTeacher([WRAPPERS[Resample](unet())]), ["member_0.bottleneck", "member_0.decoder_1"])


# ---- by address in a term -------------------------------------------------------------------------------------------


def term(target: str) -> Term:
    return Term(nn.MSELoss(), "student/bottleneck", target, adapter=nn.Conv3d(4, 8, 1))


def by_hand(item: Term, student: nn.Module, feature: torch.Tensor, x: torch.Tensor) -> float:
    assert item.adapter is not None
    return nn.functional.mse_loss(item.adapter(recorded(student, x, "bottleneck")), feature).item()


def test_a_distiller_reads_a_stage_of_a_teacher_that_is_wrapped_twice():
    network, student, x = unet(), unet(2, (4, 4, 4), classes=2), image(8, 8, 8)
    teacher = WRAPPERS[MapClasses](WRAPPERS[RescaleIntensity](network))
    deep = term("teacher/bottleneck")
    distiller = Distiller(student, {"teacher": teacher}, {"deep": deep}).eval()
    output = distiller(x)
    expected = by_hand(deep, student, recorded(network, x * 2 - 1, "bottleneck"), x)
    assert output.terms["deep"].item() == pytest.approx(expected, rel=1e-6)
    output.loss.backward()
    assert deep.adapter is not None
    assert deep.adapter.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_distiller_reads_a_member_of_an_ensemble():
    members, student, x = [unet(), unet(1)], unet(2, (4, 4, 4)), image(8, 8, 8)
    ensemble = EnsembleTeacher([members[0], WRAPPERS[PadToMultiple](members[1])])
    shallow = Term(nn.MSELoss(), "student/encoder_2", "teacher/member_1.encoder_2", adapter=nn.Conv3d(4, 8, 1))
    distiller = Distiller(student, {"teacher": ensemble}, {"shallow": shallow}).eval()
    assert shallow.adapter is not None
    ours, theirs = recorded(student, x, "encoder_2"), recorded(members[1], x, "encoder_2")
    expected = nn.functional.mse_loss(shallow.adapter(ours), theirs).item()
    assert distiller(x).terms["shallow"].item() == pytest.approx(expected, rel=1e-6)


def test_an_unknown_stage_of_an_ensemble_lists_those_of_its_members():
    with pytest.raises(
        ValueError, match=r"term 'deep' reads 'teacher/bottleneck'; known: .*teacher/member_1\.bottleneck"
    ):
        Distiller(unet(), {"teacher": EnsembleTeacher([unet(), unet(1)])}, {"deep": term("teacher/bottleneck")})


def make_folder(root: Path, network: UNet, channels: Sequence[int], classes: int) -> Path:
    definition = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": classes}
    definition |= {"channels": list(channels), "strides": [2, 2], "norm": "batch"}
    for name in ("configs", "models"):
        (root / name).mkdir(parents=True)
    (root / "configs" / "infer.json").write_text(json.dumps({"network_def": definition}))
    torch.save(network.state_dict(), root / "models" / "model.pt")
    return root


def test_loaded_teachers_are_read_by_address(tmp_path):
    """As a bundle does it: a fine teacher merged onto two classes and padded, alone and in an ensemble."""
    network, student, x = unet(classes=4), unet(2, (4, 4, 4), classes=2), image(8, 8, 8)
    folder = make_folder(tmp_path / "fine", network, (4, 8, 8), 4)
    task = {"class_names": ["background", "organ"], "patch_size": (8, 8, 8)}
    settings = {"class_map": {"background": [0, 3], "organ": [1, 2]}, "size_multiple": 4}
    alone = load_teacher(folder, **task, **settings)
    assert isinstance(alone, MapClasses)
    assert isinstance(alone.network, PadToMultiple)
    both = load_teacher([folder, folder], **task, **settings)
    feature = recorded(network, x, "bottleneck")
    for teacher, address in ((alone, "teacher/bottleneck"), (both, "teacher/member_1.bottleneck")):
        deep = term(address)
        output = Distiller(student, {"teacher": teacher}, {"deep": deep}).eval()(x)
        assert output.terms["deep"].item() == pytest.approx(by_hand(deep, student, feature, x), rel=1e-6)
