"""CaseScores: one row a case on a real evaluator, in millimeters, with misses counted."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted
from torch import Tensor, nn

from monai_kd.handlers import CaseScores, write_metrics_csv
from monai_kd.handlers.case_scores import _check_same_grid

NAMES = ["background", "head", "tail"]


def boxes(head: tuple[int, int] | None = None, tail: tuple[int, int] | None = None, axis: int = 0) -> Tensor:
    """Class indices ``(1, 10, 10, 10)`` with boxes of 4 x 4 voxels across and the given extent along ``axis``."""
    label = torch.zeros(1, 10, 10, 10)
    for value, extent in ((1, head), (2, tail)):
        if extent is not None:
            where = [slice(2, 6)] * 3
            where[axis] = slice(*extent)
            label[(0, *where)] = value
    return label


def case(name: str, pred: Tensor, label: Tensor, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> dict[str, Any]:
    """A batch item whose image *is* the prediction, because the evaluator's network returns what it gets."""
    affine = torch.diag(torch.tensor([*spacing_mm, 1.0], dtype=torch.float64))
    path = f"/data/imagesTr/{name}.nii.gz"
    return {
        key: MetaTensor(value, affine=affine, meta={"filename_or_obj": path})
        for key, value in (("image", pred), ("label", label))
    }


def evaluator_of(cases: Sequence[dict[str, Any]], batch_size: int = 1, **options: Any) -> SupervisedEvaluator:
    options.setdefault("postprocessing", AsDiscreted(keys=["pred", "label"], to_onehot=3))
    return SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(list(cases)), batch_size=batch_size),
        network=nn.Identity(),
        val_handlers=[CaseScores(NAMES)],
        **options,
    )


def test_every_case_is_scored_under_its_file_name_and_sorted():
    perfect = boxes(head=(2, 6))
    # 4 and 4 voxels along the axis, 3 of them shared: 2 * 3 / (4 + 4) = 0.75
    evaluator = evaluator_of([case("b_02", boxes(head=(3, 7)), perfect), case("a_01", perfect, perfect)], batch_size=2)
    evaluator.run()
    scored = evaluator.state.case_scores
    assert [row["case"] for row in scored] == ["a_01", "b_02"]
    assert [row["dice"]["head"] for row in scored] == [1.0, 0.75]
    assert [row["hd95_mm"]["head"] for row in scored] == [0.0, 1.0]
    assert all(0 < row["inference_s"] < 60 for row in scored)
    assert evaluator.state.case_summary["dice"] == {"head": 0.875, "tail": None, "mean": 0.875}


def test_metrics_of_the_engine_are_the_class_means_and_leave_out_what_was_never_scored():
    evaluator = evaluator_of([case("a", boxes(head=(3, 7)), boxes(head=(2, 6)))])
    evaluator.run()
    assert evaluator.state.metrics == {"dice_head": 0.75, "hd95_mm_head": 1.0}


@pytest.mark.parametrize(("axis", "spacing_mm", "expected_mm"), [(0, (2.5, 1, 1), 2.5), (2, (2.5, 1, 4), 4.0)])
def test_distances_are_in_the_spacing_of_the_case(axis, spacing_mm, expected_mm):
    pred, label = boxes(head=(3, 7), axis=axis), boxes(head=(2, 6), axis=axis)
    evaluator = evaluator_of([case("a", pred, label, spacing_mm)])
    evaluator.run()
    assert evaluator.state.case_scores[0]["hd95_mm"]["head"] == pytest.approx(expected_mm)


def test_a_missed_class_scores_zero_and_the_diagonal_and_is_warned_about(caplog, monkeypatch):
    both = boxes(head=(2, 4), tail=(4, 6))
    evaluator = evaluator_of([case("a", boxes(head=(2, 4)), both, (1, 1, 3)), case("b", both, both, (1, 1, 3))])
    monkeypatch.setattr(logging.getLogger("monai_kd"), "propagate", True)  # a bundle's logging.conf switches it off
    with caplog.at_level("WARNING", logger="monai_kd"):
        evaluator.run()
    assert evaluator.state.case_summary["missed"] == {"head": 0, "tail": 1}
    assert evaluator.state.metrics["dice_tail"] == 0.5
    assert evaluator.state.case_scores[0]["hd95_mm"]["tail"] == pytest.approx((10**2 + 10**2 + 30**2) ** 0.5)
    assert "'tail': 1" in caplog.text


def test_a_case_that_padding_handed_out_twice_counts_once():
    label = boxes(head=(2, 6))
    evaluator = evaluator_of([case("a", label, label), case("b", boxes(head=(3, 7)), label), case("a", label, label)])
    evaluator.run()
    assert evaluator.state.case_summary["n_cases"] == 2
    assert evaluator.state.metrics["dice_head"] == 0.875


def test_a_second_run_starts_from_nothing():
    label = boxes(head=(2, 6))
    evaluator = evaluator_of([case("a", label, label)])
    evaluator.run()
    evaluator.run()
    assert [row["case"] for row in evaluator.state.case_scores] == ["a"]


def test_images_and_labels_without_metadata_are_refused():
    one_hot = torch.zeros(3, 4, 4, 4)
    evaluator = evaluator_of([{"image": one_hot, "label": one_hot}], postprocessing=None)
    with pytest.raises(TypeError, match="needs the image as MetaTensor, got Tensor"):
        evaluator.run()


def test_a_label_on_another_grid_than_its_image_is_refused_by_name():
    label = boxes(head=(2, 6))
    item = case("a_01", label, label)
    item["label"].affine = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"case 'a_01': the affines of image and label differ, by up to"):
        evaluator_of([item]).run()


@pytest.mark.parametrize("ending", [".png", ".nii.gz"])
def test_only_photographs_that_were_resized_go_uncompared(ending):
    item = case("a_01", boxes(head=(2, 6)), boxes(head=(2, 6)))
    moved = torch.eye(4, dtype=torch.float64)
    moved[0, 3] = 2
    resized = MetaTensor(
        torch.zeros(1, 8, 10, 10), affine=moved, meta={"filename_or_obj": f"/data/images/a_01{ending}"}
    )
    assert "original_affine" not in resized.meta
    differ = pytest.raises(ValueError, match="case 'a_01': the affines of image and label differ, by up to 2 voxels")
    with nullcontext() if ending == ".png" else differ:
        _check_same_grid("a_01", resized, item["label"])


def test_image_and_label_that_were_both_resampled_are_compared_as_they_are():
    label = case("a_01", boxes(head=(2, 6)), boxes(head=(2, 6)))["label"]
    coarse, moved = (torch.eye(4, dtype=torch.float64) for _ in range(2))
    coarse[0, 0], moved[0, 3] = 2, 4
    label.affine = coarse
    image = MetaTensor(
        torch.zeros_like(label.as_tensor()), affine=coarse, meta={"filename_or_obj": "/data/a_01.nii.gz"}
    )
    image.meta["original_affine"] = torch.eye(4, dtype=torch.float64)
    _check_same_grid("a_01", image, label)
    label.affine = coarse @ moved
    with pytest.raises(ValueError, match="case 'a_01': the affines of image and label differ"):
        _check_same_grid("a_01", image, label)


def test_cases_are_named_after_their_images():
    """Labels may share one file name, e.g. labelsTr/<case>/seg.nii.gz."""
    label = boxes(head=(2, 6))
    items = [case(name, label, label) for name in ("a", "b")]
    for item in items:
        item["label"].meta["filename_or_obj"] = "/data/labelsTr/seg.nii.gz"
    evaluator = evaluator_of(items)
    evaluator.run()
    assert [row["case"] for row in evaluator.state.case_scores] == ["a", "b"]


def test_csv_has_one_row_per_case_and_class_with_gaps_where_nothing_was_scored(tmp_path):
    both = boxes(head=(2, 4), tail=(4, 6))
    evaluator = evaluator_of([case("a", boxes(head=(2, 4)), both), case("b", boxes(head=(2, 6)), boxes(head=(2, 6)))])
    evaluator.run()
    write_metrics_csv(tmp_path / "metrics.csv", evaluator.state.case_scores)
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shown = [(row["case"], row["class"], row["dice"], row["missed"], row["false_positive"]) for row in rows]
    assert shown == [
        ("a", "head", "1.0", "0", "0"),
        ("a", "tail", "0.0", "1", "0"),
        ("b", "head", "1.0", "0", "0"),
        ("b", "tail", "", "0", "0"),
    ]
    assert [row["hd95_mm"] == "" for row in rows] == [False, False, False, True]
    assert all(float(row["inference_s"]) > 0 for row in rows)
