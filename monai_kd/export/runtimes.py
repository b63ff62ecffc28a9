"""Run a network from any file that ``export`` writes, as a PyTorch module: the bundle's pipeline stays as it is."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import optional_import
from torch import Tensor, nn

from monai_kd.export.pipeline import inference_flow
from monai_kd.inferers.slice_stacks import as_slice_stack
from monai_kd.teachers import load_teacher

__all__ = ["Runtime", "load_runtime"]


class Runtime(nn.Module):
    """A network that lives in another runtime; it has no parameters and is always in evaluation mode.

    Args:
        path: the file it was read from.
        call: takes and returns a tensor on the CPU, or on the device it was loaded for.
    """

    def __init__(self, path: Path, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.path = path
        self._call = [call]  # in a list: a module there would become a submodule, and exported ones refuse eval()

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *spatial)`` -> logits ``(B, K, *spatial)``."""
        plain = image.as_tensor() if hasattr(image, "as_tensor") else image
        return self._call[0](plain)


def load_runtime(
    path: str | Path,
    bundle: str | Path | None = None,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "f32",
) -> nn.Module:
    """Load a network file as a module that takes ``(B, C, *spatial)`` and returns logits.

    Args:
        path: weights (.pt, .pth), TorchScript (.ts), torch.export (.pt2), ONNX (.onnx), OpenVINO (.xml), or a Slicer
            model (.zip).
        bundle: the bundle that defines the network; needed for weights. Where that network sees across slices, a file
            of another kind is asked for slices as the network would be, so that chunks of them are exact.
        threads: CPU threads of ONNX Runtime and OpenVINO; None leaves it to them. PyTorch's formats use PyTorch's own
            setting.
        device: where weights, TorchScript and torch.export run; the others run on the CPU.
        precision: of OpenVINO, f32 or bf16. Its own choice on a CPU with bfloat16 would be bf16, whose logits differ.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown ending or precision, weights without a bundle, or an unreadable file.
        ImportError: the runtime is not installed.
    """
    file = Path(path)
    if file.suffix not in _LOADERS:
        raise ValueError(f"'{file}' is no known model file; known: {', '.join(_LOADERS)}")
    if not file.is_file():
        raise FileNotFoundError(f"model '{file}' does not exist")
    if precision not in ("f32", "bf16"):
        raise ValueError(f"precision is '{precision}'; known: f32, bf16")
    try:
        network = _LOADERS[file.suffix](file, bundle, threads, device, precision)
        return as_slice_stack(network, _defined(bundle)) if bundle and isinstance(network, Runtime) else network
    except (ImportError, FileNotFoundError, ValueError):
        raise
    except Exception as error:  # each runtime has its own types
        reason = str(error).strip().splitlines()
        raise ValueError(f"'{file}' cannot be loaded: {reason[0] if reason else type(error).__name__}") from error


def _defined(bundle: str | Path) -> nn.Module:
    """Return the bundle's network with the weights it is made with; nothing in particular if it defines none."""
    parser = inference_flow(bundle, network=nn.Identity(), load_pretrain=False).parser
    network: nn.Module = parser.get_parsed_content("network_def") if "network_def" in parser else nn.Identity()
    return network


def _weights(path: Path, bundle: str | Path | None, _threads: int | None, device: str, _precision: str) -> nn.Module:
    if bundle is None:
        raise ValueError(f"'{path}' holds weights alone; say which bundle defines their network")
    return load_teacher(bundle, weights=path.resolve(), map_location=device)


def _torchscript(path: Path, _bundle: Any, _threads: Any, device: str, _precision: str) -> nn.Module:
    optional_import("torch_tensorrt")  # where it is installed, files with TensorRT engines need it loaded
    module = torch.jit.load(str(path), map_location=device).eval()
    return Runtime(path, module)


def _torch_export(path: Path, _bundle: Any, _threads: Any, device: str, _precision: str) -> nn.Module:
    program = torch.export.load(path)
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return Runtime(path, program.module())


def _onnx(path: Path, _bundle: Any, threads: int | None, _device: str, _precision: str) -> nn.Module:
    onnxruntime, found = optional_import("onnxruntime")
    if not found:
        raise ImportError("ONNX files need onnxruntime: pip install 'monai_kd[onnx]'")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["pred"], {"image": image.cpu().numpy()})[0]).to(image.device)

    return Runtime(path, call)


def _openvino(path: Path, _bundle: Any, threads: int | None, _device: str, precision: str) -> nn.Module:
    openvino, found = optional_import("openvino")
    if not found:
        raise ImportError("OpenVINO files need openvino: pip install 'monai_kd[openvino]'")
    if not path.with_suffix(".bin").is_file():
        raise FileNotFoundError(f"'{path}' lacks its weights '{path.with_suffix('.bin').name}' beside it")
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def call(image: Tensor) -> Tensor:
        result = compiled([image.cpu().numpy()])[0]
        return torch.from_numpy(result.copy()).to(image.device)  # the next inference writes into OpenVINO's own memory

    return Runtime(path, call)


def _slicer(path: Path, _bundle: Any, _threads: Any, device: str, _precision: str) -> nn.Module:
    """Build the network as 3D Slicer's MONAIAuto3DSeg does: from the configuration beside the weights."""
    with zipfile.ZipFile(path) as archive:
        content = torch.load(io.BytesIO(archive.read("model.pt")), map_location=device, weights_only=True)
    network = ConfigParser(content["config"]["network"]).get_parsed_content()
    network.load_state_dict(content["state_dict"], strict=True)
    return network.to(device).eval()


_LOADERS: dict[str, Callable[..., nn.Module]] = {
    ".pt": _weights,
    ".pth": _weights,
    ".ts": _torchscript,
    ".pt2": _torch_export,
    ".onnx": _onnx,
    ".xml": _openvino,
    ".zip": _slicer,
}
