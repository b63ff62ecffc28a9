"""PixelScores: beside CaseScores on a real evaluator, into the state, metrics.csv and the printed table."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd, AsDiscreted, Compose, CopyItemsd
from torch import Tensor, nn

from monai_kd.handlers import CaseScores, PixelScores, write_metrics_csv
from monai_kd.handlers.evaluation_record import _summary_lines

NAMES = ["background", "vessel"]
LABEL = torch.tensor([[[1.0, 1, 1], [0, 0, 0]]])
PROBABILITY = torch.tensor([[[0.9, 0.6, 0.4], [0.45, 0.2, 0.1]]])
HALF = torch.tensor([[[1.0, 1, 0], [0, 1, 1]]])


def case(name: str, probability: Tensor, label: Tensor, fov: Tensor | None = None) -> dict[str, Any]:
    """A batch item whose image is the network's two logits, because the network returns what it gets."""
    logits = torch.cat([torch.zeros_like(probability), probability.logit()])
    parts = {"image": logits, "label": label, "fov": torch.ones_like(label) if fov is None else fov}
    return {
        key: MetaTensor(value, affine=torch.eye(4), meta={"filename_or_obj": f"/data/images/{name}.png"})
        for key, value in parts.items()
    }


def evaluator_of(cases: list[dict[str, Any]], handlers: list[Any] | None = None) -> SupervisedEvaluator:
    postprocessing = Compose(
        [
            Activationsd("pred", softmax=True),
            CopyItemsd("pred", names="probability"),
            AsDiscreted("pred", argmax=True, to_onehot=2),
            AsDiscreted("label", to_onehot=2),
        ]
    )
    return SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(cases), batch_size=1),
        network=nn.Identity(),
        postprocessing=postprocessing,
        val_handlers=[CaseScores(NAMES), PixelScores()] if handlers is None else handlers,
    )


def test_scores_of_pixels_stand_beside_those_of_classes():
    evaluator = evaluator_of([case("b", PROBABILITY, LABEL), case("a", PROBABILITY, LABEL, HALF)])
    evaluator.run()
    first, second = evaluator.state.case_scores
    assert (first["case"], second["case"]) == ("a", "b")
    assert second["dice"]["vessel"] == pytest.approx(second["pixels"]["dice"]) == pytest.approx(0.8)
    assert second["pixels"]["sensitivity"] == pytest.approx(2 / 3)
    assert second["pixels"]["auc"] == pytest.approx(8 / 9)
    assert first["pixels"]["dice"] == first["pixels"]["auc"] == 1
    summary = evaluator.state.case_summary
    assert summary["pixels"]["mean"]["sensitivity"] == pytest.approx((1 + 2 / 3) / 2)
    assert summary["pixels"]["pooled"]["sensitivity"] == pytest.approx(4 / 5)
    assert evaluator.state.metrics["pixel_auc"] == pytest.approx((1 + 8 / 9) / 2)
    assert evaluator.state.metrics["dice_vessel"] == pytest.approx(0.8)


def test_options_change_the_scores():
    for options, metric, value in (
        ({}, "sensitivity", 2 / 3),
        ({"threshold": 0.3}, "sensitivity", 1.0),
        ({"probability_key": "pred"}, "auc", (2 + 1 / 2) / 3),
        ({"mask_key": "label"}, "specificity", None),
        ({"label_key": "fov"}, "sensitivity", 2 / 6),
    ):
        evaluator = evaluator_of([case("a", PROBABILITY, LABEL)], [CaseScores(NAMES), PixelScores(**options)])
        evaluator.run()
        found = evaluator.state.case_scores[0]["pixels"][metric]
        assert found == (None if value is None else pytest.approx(value)), options
    for options, value in (({}, 1.0), ({"mask_key": ""}, 2 / 3)):
        evaluator = evaluator_of([case("a", PROBABILITY, LABEL, HALF)], [CaseScores(NAMES), PixelScores(**options)])
        evaluator.run()
        assert evaluator.state.case_scores[0]["pixels"]["sensitivity"] == pytest.approx(value), options
    evaluator = evaluator_of([case("a", PROBABILITY, LABEL)], [CaseScores(NAMES), PixelScores(cldice=False)])
    evaluator.run()
    assert "cldice" not in evaluator.state.case_scores[0]["pixels"]


def test_a_second_run_starts_from_nothing_and_a_repeated_image_counts_once():
    item = case("a", PROBABILITY, LABEL)
    evaluator = evaluator_of([item, case("b", PROBABILITY, LABEL), item])
    evaluator.run()
    evaluator.run()
    assert evaluator.state.case_summary["pixels"]["n"]["dice"] == 2


def test_csv_has_columns_of_pixels_only_where_they_were_scored(tmp_path):
    for handlers, extra in (([CaseScores(NAMES)], []), (None, ["pixel_dice", "pixel_iou", "pixel_sensitivity"])):
        evaluator = evaluator_of([case("a", PROBABILITY, LABEL)], handlers)
        evaluator.run()
        write_metrics_csv(tmp_path / "metrics.csv", evaluator.state.case_scores)
        with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        assert list(row)[:7] == ["case", "class", "dice", "hd95_mm", "missed", "false_positive", "inference_s"]
        assert list(row)[7:10] == extra
    assert float(row["pixel_sensitivity"]) == pytest.approx(2 / 3)
    write_metrics_csv(tmp_path / "empty.csv", [])
    assert (tmp_path / "empty.csv").read_text().startswith("case,class,dice")


def test_records_can_hold_them_also_where_there_is_no_score():
    evaluator = evaluator_of([case("a", PROBABILITY, LABEL * 0)])
    evaluator.run()
    text = json.dumps([evaluator.state.case_scores, evaluator.state.case_summary], allow_nan=False)
    assert '"auc": null' in text
    assert "pixel_auc" not in evaluator.state.metrics
    assert evaluator.state.metrics["pixel_specificity"] == pytest.approx(4 / 6)


def test_the_printed_table_shows_them():
    evaluator = evaluator_of([case("a", PROBABILITY, LABEL)])
    evaluator.run()
    text = _summary_lines({"summary": evaluator.state.case_summary, "skipped_cases": {}})
    assert "sensitivity       0.6667         -       1      0.6667" in text
    assert "cldice" in text


def test_wrong_places_keys_and_channels_are_named():
    item = case("a", PROBABILITY, LABEL)
    with pytest.raises(RuntimeError, match="place it behind CaseScores"):
        evaluator_of([item], [PixelScores(), CaseScores(NAMES)]).run()
    with pytest.raises(KeyError, match="case 'a' has no 'probabilities' to score, it has image, label"):
        evaluator_of([item], [CaseScores(NAMES), PixelScores("probabilities")]).run()
    three = {**item, "fov": MetaTensor(torch.ones(3, 2, 3))}
    with pytest.raises(ValueError, match=r"case 'a': 'fov' has the shape \(3, 2, 3\); pixel scores are of \(1, H, W\)"):
        evaluator_of([three]).run()
    other = {**item, "fov": MetaTensor(torch.ones(1, 4, 3))}
    with pytest.raises(ValueError, match=r"case 'a': probability, label and mask have the shapes"):
        evaluator_of([other]).run()
