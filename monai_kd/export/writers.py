"""Write a bundle's network as a file for another runtime; checking it is the caller's part."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ckpt_export, trt_export
from monai.utils import optional_import
from torch import Tensor, nn

from monai_kd.export.onnx import write_onnx
from monai_kd.export.pipeline import inference_config, quiet
from monai_kd.export.slicer import write_slicer
from monai_kd.export.torchscript import axis_length, tracing

__all__ = ["FORMATS", "Format", "Job"]

MOST_VOXELS = 512  # per axis, in torch.export's bounds
MOST_WINDOWS = 64  # per batch, in torch.export's bounds


@dataclass
class Job:
    """What the writers need of a bundle.

    Attributes:
        root: the bundle's folder.
        network: with its weights, on the CPU, in evaluation mode.
        weights: where these came from.
        metadata: the bundle's metadata.json.
        window: size of the sliding window in voxels.
        work: folder for drafts.
        calibration: windows for INT8.
    """

    root: Path
    network: nn.Module
    weights: Path
    metadata: dict[str, Any]
    window: tuple[int, ...]
    work: Path
    calibration: list[Tensor] = field(default_factory=list)

    @property
    def in_channels(self) -> int:
        return int(self.metadata["network_data_format"]["inputs"]["image"]["num_channels"])

    @property
    def spatial_shape(self) -> list[int | str]:
        """The input sizes that the metadata allows, one entry per axis, e.g. ``"8*n"``."""
        return list(self.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"])

    @property
    def steps(self) -> tuple[int, ...]:
        """By how many voxels each axis may grow; 0 for an axis of fixed length."""
        return tuple(
            0 if isinstance(length, int) else 1 if length == "*" else axis_length(length, 2) - axis_length(length, 1)
            for length in self.spatial_shape
        )

    def example(self, batch: int = 2, grow: int = 0) -> Tensor:
        """Return seeded noise of the window's size, or ``grow`` steps larger on each axis."""
        size = [length + grow * step for length, step in zip(self.window, self.steps, strict=True)]
        return torch.randn(batch, self.in_channels, *size, generator=torch.Generator().manual_seed(batch))

    @cached_property
    def state_file(self) -> Path:
        """The weights as a plain state dict, whatever the form of the original file."""
        path = self.work / "state.pt"
        torch.save(self.network.state_dict(), path)
        return path

    @cached_property
    def onnx_file(self) -> Path:
        """The ONNX export, from which OpenVINO's are converted."""
        path = self.work / "source.onnx"
        with _silent():
            write_onnx(self.network, path, self.example())
        return path

    def bundle_arguments(self, path: Path) -> dict[str, Any]:
        """What MONAI's own exporters are called with."""
        return {
            "net_id": "network_def",
            "filepath": str(path),
            "ckpt_file": str(self.state_file),
            "meta_file": str(self.root / "configs" / "metadata.json"),
            "config_file": str(inference_config(self.root)),
        }


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what exporters print, log and warn of off the screen; what fails is raised."""
    with quiet(), redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _onnx(job: Job, folder: Path) -> list[Path]:
    return [Path(shutil.copyfile(job.onnx_file, folder / "model.onnx"))]


def _torchscript(job: Job, folder: Path) -> list[Path]:
    path = folder / "model.ts"
    with _silent():
        ckpt_export(**job.bundle_arguments(path), bundle_root=".", **tracing(job.network, job.metadata))
    return [path]


def _torch_export(job: Job, folder: Path) -> list[Path]:
    path = folder / "model.pt2"
    axes = {2 + axis: _dimension(axis, length) for axis, length in enumerate(job.spatial_shape)}
    shapes = {0: torch.export.Dim("batch", min=1, max=MOST_WINDOWS), **{a: d for a, d in axes.items() if d is not None}}
    with _silent():
        torch.export.save(torch.export.export(job.network, (job.example(),), dynamic_shapes=(shapes,)), path)
    return [path]


def _dimension(axis: int, length: int | str) -> Any:
    """Return the bounds of one axis for torch.export: a multiple of the step in the metadata, None if it is fixed."""
    if isinstance(length, int):
        return None
    step = 1 if length == "*" else axis_length(length, 2) - axis_length(length, 1)
    dimension = torch.export.Dim(f"{'hwd'[axis]}_steps", min=2, max=max(2, MOST_VOXELS // step))
    return step * dimension if step > 1 else dimension


def _openvino_model(job: Job) -> Any:
    openvino, found = optional_import("openvino")
    if not found:
        raise ImportError("the OpenVINO export needs openvino: pip install 'monai_kd[openvino]'")
    return openvino.convert_model(str(job.onnx_file))


def _save_openvino(model: Any, path: Path, half: bool) -> list[Path]:
    openvino, _ = optional_import("openvino")
    openvino.save_model(model, str(path), compress_to_fp16=half)
    return [path, path.with_suffix(".bin")]


def _openvino(job: Job, folder: Path) -> list[Path]:
    return _save_openvino(_openvino_model(job), folder / "model.xml", half=False)


def _openvino_f16(job: Job, folder: Path) -> list[Path]:
    return _save_openvino(_openvino_model(job), folder / "model-f16.xml", half=True)


def _openvino_int8(job: Job, folder: Path) -> list[Path]:
    nncf, found = optional_import("nncf")
    if not found:
        raise ImportError("the INT8 export needs nncf: pip install 'monai_kd[openvino]'")
    dataset = nncf.Dataset([window.numpy() for window in job.calibration])
    with _silent():
        model = nncf.quantize(
            _openvino_model(job),
            dataset,
            subset_size=len(job.calibration),
            preset=nncf.QuantizationPreset.MIXED,  # asymmetric activations: PReLU and LeakyReLU give negative ones too
        )
    return _save_openvino(model, folder / "model-int8.xml", half=False)


def _tensorrt(job: Job, folder: Path) -> list[Path]:
    path = folder / "model_trt.ts"
    with _silent():
        trt_export(
            **job.bundle_arguments(path),
            precision="fp32",
            input_shape=[1, job.in_channels, *job.window],
            dynamic_batchsize=[1, 1, 8],
        )
    return [path]


def _slicer(job: Job, folder: Path) -> list[Path]:
    return [write_slicer(job.root, job.network, job.weights, job.metadata, job.window, folder)]


@dataclass(frozen=True)
class Format:
    """How a format is written.

    Attributes:
        write: writes into a folder and returns the files, the one to be loaded first.
        any_size: the file must take other sizes than the window.
        packages: whose versions the record names.
        device: where the file runs.
    """

    write: Callable[[Job, Path], list[Path]]
    packages: Sequence[str]
    any_size: bool = True
    device: str = "cpu"


FORMATS: dict[str, Format] = {
    "onnx": Format(_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "openvino": Format(_openvino, ("onnx", "onnxscript", "openvino")),
    "openvino-f16": Format(_openvino_f16, ("onnx", "onnxscript", "openvino")),
    "openvino-int8": Format(_openvino_int8, ("onnx", "onnxscript", "openvino", "nncf")),
    "torchscript": Format(_torchscript, ()),
    "torch-export": Format(_torch_export, ()),
    "slicer": Format(_slicer, ()),
    "tensorrt": Format(_tensorrt, ("torch_tensorrt",), any_size=False, device="cuda"),
}
