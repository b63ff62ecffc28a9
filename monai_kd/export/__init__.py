"""Exports for other runtimes, each checked against PyTorch, and prediction with them."""

from monai_kd.export.exporter import ExportResult, export_bundle
from monai_kd.export.onnx import export_onnx, onnx_parity
from monai_kd.export.parity import Limits, Parity, measure_parity
from monai_kd.export.predict import predict_images
from monai_kd.export.runtimes import Runtime, load_runtime

__all__ = [
    "ExportResult",
    "Limits",
    "Parity",
    "Runtime",
    "export_bundle",
    "export_onnx",
    "load_runtime",
    "measure_parity",
    "onnx_parity",
    "predict_images",
]
