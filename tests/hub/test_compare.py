"""Comparing two models: the table's numbers by hand, and a run on phantoms whose result is known beforehand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from small_bundle import make_small_bundle, small_network

from monai_kd.export import export_bundle, predict_images
from monai_kd.hub.compare import Comparison, ModelScores, compare_cases


@pytest.fixture(scope="module")
def bundle(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_bundle(repository / "bundles" / "student", tmp_path_factory.mktemp("bundles") / "student")


@pytest.fixture(scope="module")
def weights(bundle: Path) -> Path:
    return bundle / "models" / "model.pt"


@pytest.fixture(scope="module")
def only_background(bundle: Path, weights: Path) -> Path:
    """The same weights, but the last bias puts background everywhere."""
    network = small_network(bundle)
    network.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        list(network.parameters())[-1][0] += 1000.0
    path = bundle / "models" / "other.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def split_file(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases to train, one to validate, two to test."""
    names = sorted(path.name.removesuffix(".nii.gz") for path in (phantoms / "imagesTr").glob("*.nii.gz"))
    assert len(names) == 6
    path = tmp_path_factory.mktemp("split") / "split.json"
    path.write_text(json.dumps({"train": names[:3], "validation": names[3:4], "test": names[4:]}))
    return path


def case(name: str, seconds: float, **dice: float | None) -> dict[str, Any]:
    return {"case": name, "dice": dice, "missed": [], "inference_s": seconds}


def test_the_numbers_of_the_table_are_those_computed_by_hand():
    a = ModelScores("a.pt", 4_000_000, 1000, [case("1", 0.4, x=0.8, y=0.6), case("2", 0.2, x=0.6, y=None)])
    b = ModelScores("b.onnx", 1_000_000, None, [case("1", 0.1, x=0.9, y=0.7), case("2", 0.1, x=0.6, y=0.0)])
    comparison = Comparison(a, b, ["x", "y"], 0.75, 2)
    # case 2: y is in no label and a leaves it empty (1), b finds some (0)
    assert comparison.differences == pytest.approx([0.1, -0.5])
    assert comparison.time_ratio == pytest.approx(3.0)  # median of 4 and 2
    low, high = comparison.interval or (0, 0)
    assert (low, high) == pytest.approx((-0.5, 0.1))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in comparison.table().splitlines()]
    assert rows[0] == ["", "a.pt", "b.onnx", "b - a"]
    assert ["Dice x", "0.7000", "0.7500", "+0.0500"] in rows
    assert ["Dice y", "0.6000", "0.3500", "-0.2500"] in rows
    mean = next(row for row in rows if row[0].startswith("Dice, mean"))
    assert mean[1:] == ["0.6500", "0.5500", "-0.2000 [-0.5000, +0.1000]"]
    assert ["file size, MB", "4.00", "1.00", "4.00 times smaller"] in rows
    assert ["parameters", "1,000", "not known", ""] in rows
    assert ["inference per case, ms, median", "300.0", "100.0", "3.00 times faster"] in rows
    assert ["voxels with equal labels", "", "", "75.000 %"] in rows


def test_a_class_that_no_case_has_is_not_scored():
    a, b = (ModelScores(name, 1, None, [case("1", 0.1, x=None)]) for name in "ab")
    comparison = Comparison(a, b, ["x"], 1.0, 1)
    assert (comparison.differences, comparison.interval) == ([], None)
    assert "| Dice x | not scored | not scored | not scored |" in comparison.table()


def test_a_model_that_sees_only_background_scores_zero_and_agrees_where_the_other_sees_background(
    bundle: Path, weights: Path, only_background: Path, phantoms: Path, split_file: Path, tmp_path: Path
):
    comparison = compare_cases(bundle, weights, only_background, phantoms, split_file)
    names = [scored["case"] for scored in comparison.a.cases]
    assert names == json.loads(split_file.read_text())["test"]
    assert all(value == 0.0 for scored in comparison.b.cases for value in scored["dice"].values())
    assert [len(scored["missed"]) for scored in comparison.b.cases] == [2, 2]
    # the same from the files that predict writes
    background = total = 0
    for name, scored in zip(names, comparison.a.cases, strict=True):
        (file,) = predict_images(bundle, phantoms / "imagesTr" / f"{name}.nii.gz", tmp_path)
        labels = np.asarray(nibabel.load(file).dataobj)
        truth = np.asarray(nibabel.load(phantoms / "labelsTr" / f"{name}.nii.gz").dataobj)
        for value, class_name in enumerate(comparison.class_names, start=1):
            mine, real = labels == value, truth == value
            assert scored["dice"][class_name] == pytest.approx(2 * (mine & real).sum() / (mine.sum() + real.sum()))
        background += (labels == 0).sum()
        total += labels.size
    assert comparison.label_agreement == pytest.approx(background / total)
    parameters = sum(parameter.numel() for parameter in small_network(bundle).parameters())
    assert comparison.a.parameters == comparison.b.parameters == parameters
    assert comparison.a.size == weights.stat().st_size


def test_an_export_is_compared_with_its_weights_and_known_by_its_record(
    bundle: Path, weights: Path, phantoms: Path, split_file: Path, tmp_path: Path
):
    (exported,) = export_bundle(bundle, ["torchscript"], tmp_path)
    comparison = compare_cases(bundle, weights, exported.path, phantoms, split_file, "validation", threads=1)
    assert (len(comparison.a.cases), comparison.threads) == (1, 1)
    assert comparison.label_agreement == 1.0
    assert comparison.differences == [0.0]
    assert comparison.b.parameters == comparison.a.parameters
    assert comparison.b.size == exported.size
    (tmp_path / "export.json").unlink()
    table = compare_cases(bundle, weights, exported.path, phantoms, split_file, "validation").table()
    assert "not known" in table
    assert "100.000 %" in table


def test_another_bundle_is_a_model_too_and_nothing_is_written(
    bundle: Path, weights: Path, phantoms: Path, split_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = shutil.copytree(bundle, tmp_path / "renamed")
    monkeypatch.chdir(tmp_path)
    table = compare_cases(bundle, other, weights, phantoms, split_file, "validation").table()
    assert table.splitlines()[0] == "|  | renamed | model.pt | b - a |"
    assert [item.name for item in tmp_path.iterdir()] == ["renamed"]
    assert not (bundle / "runs").exists()


def test_a_bundle_of_another_class_order_is_refused(
    bundle: Path, weights: Path, phantoms: Path, split_file: Path, tmp_path: Path
):
    other = shutil.copytree(bundle, tmp_path / "swapped")
    path = other / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    classes = content["network_data_format"]["outputs"]["pred"]["channel_def"]
    classes["1"], classes["2"] = classes["2"], classes["1"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"swapped' .*posterior.*anterior"):
        compare_cases(bundle, weights, other, phantoms, split_file)


def test_an_export_of_earlier_weights_is_refused_unless_the_other_model_has_them(
    bundle: Path, only_background: Path, phantoms: Path, split_file: Path, tmp_path: Path
):
    trained = shutil.copytree(bundle, tmp_path / "student")
    current, earlier = trained / "models" / "model.pt", trained / "models" / "earlier.pt"
    (export,) = export_bundle(trained, ["torchscript"])
    shutil.copyfile(current, earlier)
    shutil.copyfile(only_background, current)
    for base in (trained, bundle):  # the weights of the export's own bundle count
        with pytest.raises(ValueError, match=r"model.ts' was exported from other weights than '.*student/models/model"):
            compare_cases(base, current, export.path, phantoms, split_file, "validation")
    comparison = compare_cases(trained, earlier, export.path, phantoms, split_file, "validation")
    assert comparison.label_agreement == 1.0


def test_files_of_one_name_are_told_apart_by_their_folders(
    bundle: Path, weights: Path, phantoms: Path, split_file: Path, tmp_path: Path
):
    same = Path(shutil.copyfile(weights, tmp_path / "model.pt"))
    table = compare_cases(bundle, weights, same, phantoms, split_file, "validation").table()
    assert table.splitlines()[0] == f"|  | models/model.pt | {tmp_path.name}/model.pt | b - a |"


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"a": "nothing.pt"}, FileNotFoundError, "model 'nothing.pt' does not exist"),
        ({"a": "model.h5"}, ValueError, "no known model file"),
        ({"bundle": "nowhere"}, FileNotFoundError, "has no configs/train.yaml"),
        ({"dataset_dir": "nowhere"}, (FileNotFoundError, RuntimeError), "dataset_dir 'nowhere' is not a folder"),
        ({"section": "tests"}, (ValueError, RuntimeError), "section is 'tests'"),
    ],
)
def test_what_is_wrong_is_named(bundle: Path, weights: Path, phantoms: Path, split_file: Path, changed, error, words):
    given = {"bundle": bundle, "a": weights, "b": weights, "dataset_dir": phantoms, "split_file": split_file}
    with pytest.raises(error) as refused:
        compare_cases(**{**given, **changed})
    causes = f"{refused.value} {refused.value.__cause__}"
    assert words in causes
