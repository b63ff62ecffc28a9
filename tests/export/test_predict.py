"""Prediction through any runtime gives the files of the bundle's own command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from commands import bundle_run

from monai_kd.data import case_id
from monai_kd.export import ExportResult, predict_images
from monai_kd.export.exporter import RECORD
from monai_kd.export.predict import ENGINES


def volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


@pytest.fixture(scope="module")
def images(phantoms: Path) -> list[Path]:
    found = sorted((phantoms / "imagesTs").glob("*.nii.gz"))
    assert len(found) == 2
    return found


@pytest.fixture(scope="module")
def by_pytorch(small_bundle: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predicted")
    predict_images(small_bundle, phantoms, out)
    return out


def test_the_files_are_those_of_monai_bundle_run(small_bundle: Path, phantoms: Path, by_pytorch: Path, tmp_path: Path):
    expected = tmp_path / "expected"
    bundle_run(small_bundle, ["inference.yaml"], tmp_path / "cwd", dataset_dir=phantoms, output_dir=expected)
    names = sorted(path.name for path in expected.iterdir())
    assert len(names) == 2
    assert sorted(path.name for path in by_pytorch.iterdir()) == names
    for name in names:
        labels, affine = volume(by_pytorch / name)
        assert labels.any()
        for got, wanted in zip((labels, affine), volume(expected / name), strict=True):
            assert np.array_equal(got, wanted)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "pytorch"])
def test_every_engine_gives_the_labels_of_pytorch(
    exported: dict[str, ExportResult], small_bundle: Path, phantoms: Path, images, by_pytorch, tmp_path, engine: str
):
    written = predict_images(small_bundle, phantoms, tmp_path, engine, threads=1)
    assert written == [tmp_path / f"{case_id(path)}_seg.nii.gz" for path in images]
    assert sorted(tmp_path.iterdir()) == written
    for path in written:
        labels, affine = volume(path)
        wanted, wanted_affine = volume(by_pytorch / path.name)
        assert labels.dtype == np.uint8
        assert np.array_equal(affine, wanted_affine)
        assert (labels == wanted).mean() > 0.999


def test_one_file_and_a_model_of_ones_own(
    exported: dict[str, ExportResult], small_bundle: Path, images: list[Path], tmp_path: Path
):
    model = exported["openvino-int8"].path
    (written,) = predict_images(small_bundle, images[0], tmp_path, "openvino", model)
    assert written.name == f"{case_id(images[0])}_seg.nii.gz"


def test_a_bad_case_is_named_and_the_others_are_written(small_bundle: Path, images: list[Path], tmp_path: Path):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    shutil.copyfile(images[0], folder / "c.nii.gz")
    shutil.copyfile(images[1], folder / "a.nii.gz")
    (folder / "b.nii.gz").write_bytes(images[0].read_bytes()[:2000])
    with pytest.raises(
        RuntimeError, match=r"1 of 3 images failed, 2 files are in .*: 'b.nii.gz' \(EOFError: "
    ) as stopped:
        predict_images(small_bundle, folder, out)
    assert "\n" not in str(stopped.value)
    assert sorted(path.name for path in out.iterdir()) == ["a_seg.nii.gz", "c_seg.nii.gz"]


def test_an_export_of_other_weights_is_refused(
    exported: dict[str, ExportResult], small_bundle: Path, images: list[Path], tmp_path: Path
):
    bundle = shutil.copytree(small_bundle, tmp_path / "student")
    record = bundle / "models" / "exported" / RECORD
    content = json.loads(record.read_text())
    content["onnx"]["weights_sha256"] = "0" * 64
    record.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model.onnx' was exported from other weights"):
        predict_images(bundle, images[0], tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_bad_requests_are_refused_before_anything_is_written(small_bundle: Path, images: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="engine 'tensorflow' is unknown; known: pytorch, torchscript"):
        predict_images(small_bundle, images[0], out, "tensorflow")
    with pytest.raises(ValueError, match=r"engine onnx reads .onnx, got 'model.pt'"):
        predict_images(small_bundle, images[0], out, "onnx", small_bundle / "models" / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"model.ts' does not exist; write it by: python -m monai_kd export "):
        predict_images(tmp_path / "empty", images[0], out, "torchscript")
    with pytest.raises(FileNotFoundError, match="images 'nowhere' do not exist"):
        predict_images(small_bundle, "nowhere", out)
    with pytest.raises(ValueError, match="holds the images; give another folder"):
        predict_images(small_bundle, images[0], images[0].parent)
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a.nii", "a.nii.gz"):
        (twice / name).touch()
    with pytest.raises(ValueError, match=r"a.nii beside a.nii.gz"):
        predict_images(small_bundle, twice, out)
    (twice / "a.png").touch()
    with pytest.raises(ValueError, match="is no NIfTI image"):
        predict_images(small_bundle, twice / "a.png", out)
    assert not out.exists()
