"""Loading a network from any file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from monai_kd.export import ExportResult, load_runtime
from monai_kd.teachers import load_teacher


@pytest.mark.parametrize("name", ["onnx", "openvino", "torchscript", "torch-export"])
def test_a_runtime_works_in_a_sliding_window_and_in_evaluation_mode(
    exported: dict[str, ExportResult], small_bundle: Path, name: str
):
    runtime = load_runtime(exported[name].path, threads=1).train().eval()
    assert list(runtime.parameters()) == []
    window = SlidingWindowInferer((16, 16, 16), sw_batch_size=2, overlap=0.25)
    image = MetaTensor(torch.randn(1, 1, 24, 24, 16))
    with torch.inference_mode():
        expected, got = window(image, load_teacher(small_bundle)), window(image, runtime)
    assert isinstance(got, torch.Tensor)
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), atol=1e-3, rtol=0)


def test_two_results_of_one_runtime_do_not_share_memory(exported: dict[str, ExportResult]):
    for name in ("onnx", "openvino"):
        runtime = load_runtime(exported[name].path)
        first = runtime(torch.zeros(1, 1, 16, 16, 16))
        kept = first.clone()
        runtime(torch.randn(1, 1, 16, 16, 16))
        assert torch.equal(first, kept)


def test_weights_run_through_the_bundle_that_defines_their_network(small_bundle: Path):
    weights = small_bundle / "models" / "model.pt"
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(load_runtime(weights, bundle=small_bundle)(image), load_teacher(small_bundle)(image))
    with pytest.raises(ValueError, match="say which bundle defines their network"):
        load_runtime(weights)


@pytest.mark.parametrize("ending", [".ts", ".pt2", ".onnx", ".xml", ".zip"])
def test_an_unreadable_file_is_named_in_one_line(tmp_path: Path, ending: str):
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"no model")
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(ValueError, match=f"model{ending}' cannot be loaded: ") as refused:
        load_runtime(path)
    assert "\n" not in str(refused.value)


def test_what_is_missing_is_said(tmp_path: Path, exported: dict[str, ExportResult]):
    with pytest.raises(FileNotFoundError, match=r"nothing.onnx' does not exist"):
        load_runtime(tmp_path / "nothing.onnx")
    with pytest.raises(ValueError, match=r"known: .pt, .pth, .ts, .pt2, .onnx, .xml, .zip"):
        load_runtime(tmp_path / "model.h5")
    with pytest.raises(ValueError, match="precision is 'f16'; known: f32, bf16"):
        load_runtime(exported["openvino"].path, precision="f16")
    alone = shutil.copy(exported["openvino"].path, tmp_path / "model.xml")
    with pytest.raises(FileNotFoundError, match=r"lacks its weights 'model.bin'"):
        load_runtime(alone)
