"""A bundle whose images are photographs: exported on those of its training section, and predicted with an engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vessels import vessel_photographs

from monai_kd.export import export_bundle, predict_images
from monai_kd.export.exporter import RECORD
from monai_kd.export.pipeline import find_images, image_endings
from monai_kd.hub import compare_cases


@pytest.fixture(scope="module")
def bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ignore = shutil.ignore_patterns("runs", "eval", "exported", "stages")
    return shutil.copytree(repository / "bundles" / "gkd", tmp_path_factory.mktemp("gkd") / "gkd", ignore=ignore)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return vessel_photographs(tmp_path_factory.mktemp("vessels") / "data")


@pytest.fixture(scope="module")
def exported(bundle: Path, photographs: tuple[Path, Path]) -> Path:
    (export,) = export_bundle(bundle, ["onnx"], images=photographs[0] / "images", parity_images=2)
    return export.path


def test_an_export_is_checked_on_training_photographs_alone(bundle: Path, photographs: tuple[Path, Path], exported):
    entry = json.loads((exported.parent / RECORD).read_text())["onnx"]
    assert entry["parity"]["dice"] > 0.999
    assert entry["parity"]["foreground"] > 0
    assert entry["parity"]["limits"] == {"max_logit_difference": 1e-3, "min_dice": 0.999, "max_outliers": 0.1}
    assert entry["parity"]["outliers"] <= 0.1
    export = export_bundle(bundle, ["onnx"], exported.parents[1] / "all", photographs[0] / "images", parity_images=64)
    checked = json.loads((export[0].path.parent / RECORD).read_text())["onnx"]["parity"]["images"]
    every = [path.stem for path in (photographs[0] / "images").iterdir()]
    assert 1 <= len(checked) < len(every)
    assert set(checked) < set(every)


def test_engines_write_the_same_picture(bundle: Path, photographs: tuple[Path, Path], exported, tmp_path: Path):
    out = {engine: predict_images(bundle, photographs[1], tmp_path / engine, engine) for engine in ("pytorch", "onnx")}
    assert [path.name for path in out["onnx"]] == [path.name for path in out["pytorch"]]
    for one, other, image in zip(out["pytorch"], out["onnx"], sorted(photographs[1].iterdir()), strict=True):
        assert one.name == f"{image.stem}_seg.png"
        pixels = np.asarray(Image.open(one))
        assert Image.open(one).size == Image.open(image).size
        assert (pixels != np.asarray(Image.open(other))).mean() < 1e-3
        assert set(np.unique(pixels)) == {0, 255}


def test_a_truncated_photograph_is_named_with_its_reason_and_the_others_are_written(bundle, photographs, tmp_path):
    folder = tmp_path / "photographs"
    shutil.copytree(photographs[1], folder)
    first = min(folder.iterdir())
    (folder / "cut.png").write_bytes(b"")
    Image.open(first).save(folder / "cut.png")
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        RuntimeError, match=r"1 of 3 images failed, 2 files .* 'cut.png' \(OSError: it cannot be read, it is"
    ):
        predict_images(bundle, folder, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_two_models_are_compared_on_photographs(bundle: Path, photographs: tuple[Path, Path], exported):
    found = compare_cases(bundle, bundle / "models" / "model.pt", exported, photographs[0])
    assert found.label_agreement > 0.999
    assert found.class_names == ["vessel"]
    assert len(found.a.cases) == 6


def test_other_files_are_refused_by_name(
    bundle: Path, repository: Path, photographs: tuple[Path, Path], tmp_path: Path
):
    (tmp_path / "image.nii.gz").touch()
    with pytest.raises(ValueError, match=r"image.nii.gz' is no photograph: its name must end in .png, "):
        predict_images(bundle, tmp_path / "image.nii.gz", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"holds no .png, .* or .pgm image"):
        predict_images(bundle, tmp_path, tmp_path / "out")
    photograph = min(photographs[1].iterdir())
    with pytest.raises(ValueError, match="is no NIfTI image"):
        predict_images(repository / "bundles" / "teacher", photograph, tmp_path / "out")
    (twice := tmp_path / "twice").mkdir()
    for ending in (photograph.suffix, ".PNG"):
        shutil.copy(photograph, twice / f"a{ending}")
    with pytest.raises(ValueError, match=r"would write one output: a\.PNG beside a\.tif"):
        find_images(twice, image_endings(bundle))
    assert not (tmp_path / "out").exists()
