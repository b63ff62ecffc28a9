"""A network of slices in another runtime: cut into chunks as the network would be, with the same labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_kd.data import labelled_cases
from monai_kd.export import export_bundle, load_runtime
from monai_kd.export.predict import predict_images
from monai_kd.hub.compare import compare_cases

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with its weights and an ONNX file; volumes of the phantoms take several chunks."""
    folder = tmp_path_factory.mktemp("slices") / "distill-dsm"
    for name in ("configs", "models"):
        shutil.copytree(repository / "bundles" / "distill-dsm" / name, folder / name)
    for name in ("train.yaml", "inference.yaml"):
        path = folder / "configs" / name
        text = path.read_text()
        assert "\nchunk: 64 " in text
        path.write_text(text.replace("\nchunk: 64 ", "\nchunk: 9 "))
    export_bundle(folder, ["onnx"])
    return folder


@pytest.mark.slow
def test_an_export_takes_the_halo_of_its_network_and_gives_its_labels(bundle, phantoms, tmp_path):
    export = bundle / "models" / "exported" / "model.onnx"
    assert load_runtime(export, bundle=bundle).halo == 8
    assert not hasattr(load_runtime(export), "halo")
    found = []
    for engine in ("pytorch", "onnx"):
        files = predict_images(bundle, phantoms / "imagesTs", tmp_path / engine, engine)
        found.append([np.asarray(nib.load(path).dataobj) for path in files])
    assert found[0][0].shape[2] > 9, "several chunks"
    for ours, theirs in zip(*found, strict=True):
        assert (ours != theirs).mean() < 1e-4


@pytest.mark.slow
def test_an_export_is_compared_with_its_network_case_by_case(bundle, phantoms, tmp_path):
    weights, export = bundle / "models" / "model.pt", bundle / "models" / "exported" / "model.onnx"
    comparison = compare_cases(bundle, weights, export, phantoms, "", "all", threads=1)
    assert len(comparison.a.cases) == len(labelled_cases(phantoms)) == 6
    assert comparison.label_agreement > 0.9999
