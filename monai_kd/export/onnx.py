"""ONNX export with dynamic sizes, kept only if ONNX Runtime agrees with PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.utils import optional_import
from torch import Tensor, nn

__all__ = ["export_onnx", "onnx_parity"]


def onnx_parity(network: nn.Module, path: str | Path, images: Sequence[Tensor]) -> dict[str, float]:
    """Compare PyTorch with ONNX Runtime on the CPU.

    Args:
        network: the exported network, in evaluation mode.
        path: ONNX file with input ``image`` and output ``pred``.
        images: inputs ``(B, C, *spatial)``; give several sizes to test dynamic axes.

    Returns:
        ``max_logit_difference`` (logit units) and ``label_agreement`` (fraction of voxels with equal argmax, 0..1).
    """
    runtime, found = optional_import("onnxruntime")
    if not found:
        raise ImportError("the ONNX parity check needs onnxruntime: pip install 'monai_kd[onnx]'")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences, equal, total = [0.0], 0, 0
    for image in images:
        with torch.inference_mode():
            expected = network(image).float().numpy()
        got = session.run(["pred"], {"image": image.numpy()})[0]
        differences.append(float(np.abs(expected - got).max()))
        equal += int((expected.argmax(1) == got.argmax(1)).sum())
        total += expected.argmax(1).size
    return {"max_logit_difference": float(np.max(differences)), "label_agreement": equal / max(total, 1)}


def write_onnx(network: nn.Module, path: Path, example: Tensor) -> None:
    """Write an ONNX file with dynamic batch and spatial axes, tensors ``image`` and ``pred``, unchecked.

    Args:
        network: network in evaluation mode on the CPU.
        path: file to write.
        example: a valid input of batch 2; a batch of 1 would be frozen into the graph.
    """
    for package in ("onnx", "onnxscript"):
        if not optional_import(package)[1]:
            raise ImportError(f"the ONNX export needs {package}: pip install 'monai_kd[onnx]'")
    convert_to_onnx, _ = optional_import("monai.networks.utils", name="convert_to_onnx")
    axes = {0: "batch", **{axis + 2: name for axis, name in enumerate("hwd"[: example.ndim - 2])}}
    model = convert_to_onnx(
        network, [example], input_names=["image"], output_names=["pred"], dynamic_axes={"image": axes, "pred": axes}
    )
    path.write_bytes(model.SerializeToString())


def export_onnx(
    network: nn.Module,
    path: str | Path,
    in_channels: int,
    spatial_size: Sequence[int],
    tolerance: float = 1e-3,
    parity_images: Sequence[Tensor] = (),
) -> dict[str, float]:
    """Export to ONNX with dynamic batch and spatial axes, tensors ``image`` and ``pred``, and check it.

    Args:
        network: network in evaluation mode on the CPU.
        path: file to write; an older file stays until the new one has passed.
        in_channels: image channels.
        spatial_size: a valid input size in voxels.
        tolerance: largest allowed logit difference between PyTorch and ONNX Runtime.
        parity_images: further inputs for the check, e.g. a real volume.

    Returns:
        The result of :func:`onnx_parity` on random inputs of two sizes and ``parity_images``.

    Raises:
        RuntimeError: the export differs by more than ``tolerance``; no file is left behind.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.stem}.{os.getpid()}.onnx")
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, in_channels, *spatial_size, generator=generator)
    other = torch.randn(1, in_channels, *(size + 8 for size in spatial_size), generator=generator)
    try:
        write_onnx(network, draft, example)
        parity = onnx_parity(network, draft, [example, other, *parity_images])
        if not parity["max_logit_difference"] <= tolerance:  # also where it is NaN
            raise RuntimeError(
                f"the ONNX export of {type(network).__name__} differs from PyTorch by "
                f"{parity['max_logit_difference']:.2e} logits, more than {tolerance:.0e}; nothing was written"
            )
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return parity
