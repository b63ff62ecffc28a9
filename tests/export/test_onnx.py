"""ONNX export: any size, equal logits, and nothing left behind when they differ."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet, UNet
from torch import nn

from monai_kd.export import export_onnx, onnx_parity

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

NETWORKS = {
    "DynUNet": lambda: DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], upsample_kernel_size=[2, 2], filters=[4, 4, 8]),
    "UNet": lambda: UNet(3, 1, 3, channels=(4, 8), strides=(2,), num_res_units=1),
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


@pytest.fixture(scope="module", params=list(NETWORKS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, dict]:
    """A network, its ONNX file and the parity that the export reported."""
    network = built(request.param)
    path = tmp_path_factory.mktemp("onnx") / "models" / "model.onnx"
    return network, path, export_onnx(network, path, in_channels=1, spatial_size=(16, 16, 16))


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch, exported: tuple[Any, Path, dict]) -> None:
    """Make torch's exporter return the graph of before: its seconds are not what is tested."""
    monkeypatch.setattr("monai.networks.utils.convert_to_onnx", lambda *_, **__: onnx.load(exported[1]))


def test_logits_of_pytorch_and_onnx_runtime_agree(exported):
    _, path, parity = exported
    assert parity["max_logit_difference"] < 1e-3
    assert parity["label_agreement"] > 0.999
    assert [item.name for item in path.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(str(path))


def test_batch_and_every_spatial_axis_are_dynamic(exported):
    network, path, _ = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (graph_input,), (graph_output,) = session.get_inputs(), session.get_outputs()
    assert (graph_input.name, graph_output.name) == ("image", "pred")
    assert not any(isinstance(axis, int) for axis in (graph_input.shape[0], *graph_input.shape[2:]))
    assert graph_input.shape[1] == 1
    image = torch.randn(3, 1, 8, 24, 32)
    assert onnx_parity(network, path, [image])["max_logit_difference"] < 1e-3
    assert session.run(["pred"], {"image": image.numpy()})[0].shape == (3, 3, 8, 24, 32)


def test_parity_notices_one_weight_that_changed_after_the_export(exported):
    network, path, parity = exported
    changed = copy.deepcopy(network)
    with torch.no_grad():
        list(changed.parameters())[-1][0] += 0.5  # the bias of the first class
    found = onnx_parity(changed, path, [torch.randn(1, 1, 16, 16, 16)])
    assert found["max_logit_difference"] == pytest.approx(0.5, abs=1e-3)
    assert found["label_agreement"] < 1
    assert parity["max_logit_difference"] < 1e-3


def test_parity_takes_the_worst_of_all_images(exported):
    network, path, _ = exported

    class WrongWhereBright(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return network(image) + (image.mean() > 0.5) * 2.0

    dark, bright = torch.zeros(1, 1, 16, 16, 16), torch.ones(1, 1, 16, 16, 16)
    for images in ([dark, bright], [bright, dark]):
        found = onnx_parity(WrongWhereBright(), path, images)
        assert found["max_logit_difference"] == pytest.approx(2.0, abs=1e-3)
    assert onnx_parity(WrongWhereBright(), path, [dark])["max_logit_difference"] < 1e-3


def test_logits_that_are_not_numbers_do_not_pass(exported):
    network, path, _ = exported
    broken = copy.deepcopy(network)
    with torch.no_grad():
        list(broken.parameters())[-1][0] = torch.nan
    found = onnx_parity(broken, path, [torch.zeros(1, 1, 16, 16, 16)])
    assert not found["max_logit_difference"] < 1e-3


@pytest.mark.usefixtures("no_export")
def test_a_difference_above_the_tolerance_raises_and_leaves_no_file(exported, tmp_path):
    network, _, parity = exported
    assert parity["max_logit_difference"] > 0
    with pytest.raises(
        RuntimeError, match=rf"export of {type(network).__name__} differs from PyTorch by .* more than 0e"
    ):
        export_onnx(network, tmp_path / "model.onnx", 1, (16, 16, 16), tolerance=0.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_export")
def test_an_older_file_stays_until_the_new_one_has_passed(exported, tmp_path):
    network, _, _ = exported
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError):
        export_onnx(network, path, 1, (16, 16, 16), tolerance=0.0)
    assert path.read_bytes() == b"older"
    export_onnx(network, path, 1, (16, 16, 16))
    assert path.read_bytes() != b"older"
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.usefixtures("no_export")
def test_images_of_the_caller_are_part_of_the_verdict(exported, tmp_path):
    network, _, _ = exported
    seen = []

    class Watched(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(image.shape))
            return network(image)

    export_onnx(Watched(), tmp_path / "model.onnx", 1, (16, 16, 16), parity_images=[torch.zeros(1, 1, 32, 16, 16)])
    assert seen == [(2, 1, 16, 16, 16), (1, 1, 24, 24, 24), (1, 1, 32, 16, 16)]
