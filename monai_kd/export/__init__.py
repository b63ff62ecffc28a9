"""Exports for other runtimes, each checked against PyTorch."""

from monai_kd.export.onnx import export_onnx, onnx_parity

__all__ = ["export_onnx", "onnx_parity"]
