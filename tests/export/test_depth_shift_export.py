"""One graph of the slices' network for any batch, depth, height and width, in both runtimes."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_kd.networks.nets import DSMUNet

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")
SIZES = [(1, 1, 48, 64, 12), (2, 1, 64, 80, 7), (1, 1, 32, 32, 1), (1, 1, 50, 45, 5)]


@pytest.fixture(scope="module")
def network() -> DSMUNet:
    torch.manual_seed(0)
    network = DSMUNet(1, 2).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after a training
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return network


@pytest.fixture(scope="module")
def graph(network: DSMUNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    axis = torch.export.Dim.DYNAMIC
    shapes = ({0: axis, 2: axis, 3: axis, 4: axis},)
    names = {"input_names": ["image"], "output_names": ["pred"]}
    example = torch.randn(2, 1, 32, 48, 6)
    torch.onnx.export(network, (example,), path, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    return path


@pytest.mark.slow
def test_the_graph_has_18_convolutions_of_the_blocks_8_of_the_exchanges_and_the_head(graph):
    kinds = collections.Counter(node.op_type for node in onnx.load(graph).graph.node)
    assert kinds["Conv"] == 27
    assert kinds["BatchNormalization"] == 0  # folded


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtime_gives_the_same_logits_at_sizes_it_was_not_exported_with(runtime, network, graph):
    if runtime == "onnxruntime":
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

        def run(image: np.ndarray) -> np.ndarray:
            return session.run(None, {"image": image})[0]
    else:
        model = openvino.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(image: np.ndarray) -> np.ndarray:
            return model(image)[0]

    for size in SIZES:
        image = torch.randn(size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = network(image).numpy()
        np.testing.assert_allclose(run(image.numpy()), expected, rtol=1e-5, atol=1e-6)
