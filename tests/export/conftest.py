"""One tiny bundle and its exports, written once: exporters take seconds whatever the size of the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_bundle import make_small_bundle

from monai_kd.export import ExportResult, Limits, export_bundle

# random weights are not made to be rounded to 8 bits
ROUGH = {"openvino-int8": Limits(max_logit_difference=None, min_dice=0.5)}
ALL = ("onnx", "openvino", "openvino-f16", "openvino-int8", "torchscript", "torch-export", "slicer")


@pytest.fixture(scope="session")
def small_bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_bundle(repository / "bundles" / "student", tmp_path_factory.mktemp("bundles") / "student")


@pytest.fixture(scope="session")
def exported(small_bundle: Path, phantoms: Path) -> dict[str, ExportResult]:
    """Every format, in the bundle's own models/exported, checked on phantoms."""
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package)
    settings: dict[str, Any] = {"images": phantoms / "imagesTr", "parity_images": 2, "limits": ROUGH}
    results = export_bundle(small_bundle, ALL, **settings)
    assert [result.format for result in results] == list(ALL)
    return {result.format: result for result in results}
