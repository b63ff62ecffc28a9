"""Regions from one count of class pairs; and a metric that is known to be wrong, kept as a warning."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from monai_kd.handlers import CaseScores, MeanCaseDice
from monai_kd.metrics import confusion_matrix, region_dice, score_case, summarize

REGIONS = {"whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]}
NAMES = ["background", *REGIONS]


def in_regions(index: torch.Tensor) -> torch.Tensor:
    """Return ``(background and regions, *spatial)`` of 0 and 1."""
    found = [torch.isin(index, torch.tensor(members)) for members in REGIONS.values()]
    return torch.stack([~found[0], *found]).float()


# ---- counts ---------------------------------------------------------------------------------------------------------


def test_pairs_are_counted_by_hand():
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    pred = torch.tensor([0, 1, 1, 1, 0, 2])
    assert confusion_matrix(pred, label, 3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float32])
def test_any_kind_of_number_and_any_shape(kind):
    label, pred = torch.randint(0, 4, (2, 1, 3, 4, 5)), torch.randint(0, 4, (2, 1, 3, 4, 5))
    counts = confusion_matrix(pred.to(kind), label.to(kind), 4)
    assert counts.dtype == torch.int64
    assert counts.sum() == 120
    for row in range(4):
        for column in range(4):
            assert counts[row, column] == ((label == row) & (pred == column)).sum()


def test_voxels_with_a_higher_label_do_not_count():
    counts = confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 255]), 2)
    assert counts.tolist() == [[1, 0], [0, 1]]


def test_nothing_is_a_table_of_zeros():
    assert confusion_matrix(torch.zeros(0), torch.zeros(0), 2).tolist() == [[0, 0], [0, 0]]


def test_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"prediction \(2,\) and label \(3,\) differ; give one grid"):
        confusion_matrix(torch.zeros(2), torch.zeros(3), 2)


# ---- Dice -----------------------------------------------------------------------------------------------------------


def test_dice_of_overlapping_regions_by_hand():
    label = torch.tensor([0, 1, 1, 2, 2, 3])
    pred = torch.tensor([1, 1, 3, 2, 0, 0])
    dice, found = region_dice(confusion_matrix(pred, label, 4), REGIONS)
    # whole: 3 common of 5 and 4; core: 2 of 3 and 3; enhancing: 0 of 1 and 1
    assert dice.tolist() == pytest.approx([2 * 3 / 9, 2 * 2 / 6, 0.0])
    assert found.tolist() == [True, True, True]


@pytest.mark.parametrize("seed", range(3))
def test_it_is_monais_dice_of_each_region(seed):
    generator = torch.Generator().manual_seed(seed)
    label, pred = (torch.randint(0, 4, (6, 5, 4), generator=generator) for _ in range(2))
    dice, found = region_dice(confusion_matrix(pred, label, 4), REGIONS)
    expected = compute_dice(in_regions(pred)[None], in_regions(label)[None])[0, 1:]
    assert found.all()
    torch.testing.assert_close(dice.float(), expected)


def test_several_tables_at_once():
    label, pred = torch.randint(0, 4, (3, 50)), torch.randint(0, 4, (3, 50))
    tables = [confusion_matrix(p, y, 4) for p, y in zip(pred, label, strict=True)]
    dice, found = region_dice(torch.stack(tables), REGIONS)
    assert dice.shape == found.shape == (3, 3)
    for row, table in zip(dice, tables, strict=True):
        assert torch.equal(row, region_dice(table, REGIONS)[0])


def test_a_region_that_neither_has_is_told_apart_from_a_missed_one():
    edema = torch.tensor([0, 2, 2])
    dice, found = region_dice(confusion_matrix(edema, edema, 4), REGIONS)
    assert dice.tolist() == [1.0, 0.0, 0.0]
    assert found.tolist() == [True, False, False]
    dice, found = region_dice(confusion_matrix(torch.zeros(3), edema, 4), REGIONS)
    assert dice.tolist() == [0.0, 0.0, 0.0]
    assert found.tolist() == [True, False, False]


def test_a_volume_of_many_voxels_is_exact():
    counts = torch.tensor([[10**9, 1], [1, 10**9 - 1]])
    dice, _ = region_dice(counts, {"all": [1]})
    assert dice.item() == pytest.approx(2 * (10**9 - 1) / (2 * 10**9), abs=1e-12)


# ---- a region that label and prediction both lack -------------------------------------------------------------------


def score(pred: torch.Tensor, label: torch.Tensor, empty: float | None = None) -> dict:
    return score_case(in_regions(pred), in_regions(label), NAMES, [1.0] * label.ndim, empty)


def test_it_has_no_score_or_the_one_that_is_asked_for():
    edema = torch.zeros(4, 4, 4, dtype=torch.long)
    edema[1:3] = 2
    plain, brats = score(edema, edema), score(edema, edema, 1.0)
    assert plain["dice"] == {"whole_tumor": 1.0, "tumor_core": None, "enhancing_tumor": None}
    assert plain["hd95_mm"] == {"whole_tumor": 0.0, "tumor_core": None, "enhancing_tumor": None}
    assert brats["dice"] == {"whole_tumor": 1.0, "tumor_core": 1.0, "enhancing_tumor": 1.0}
    assert brats["hd95_mm"] == {"whole_tumor": 0.0, "tumor_core": 0.0, "enhancing_tumor": 0.0}
    assert brats["missed"] == brats["false_positive"] == []
    assert score(edema, edema, 0.5)["dice"]["tumor_core"] == 0.5
    assert summarize([brats], NAMES)["dice"]["mean"] == 1.0


def test_a_missed_and_an_invented_region_cost_whatever_is_asked_for():
    edema = torch.zeros(4, 4, 4, dtype=torch.long)
    edema[1:3] = 2
    core = edema.clone()
    core[1] = 3
    assert score(core, edema, 1.0)["dice"]["enhancing_tumor"] == 0.0
    assert score(core, edema, 1.0)["false_positive"] == ["tumor_core", "enhancing_tumor"]
    assert score(edema, core, 1.0)["dice"]["enhancing_tumor"] == 0.0
    assert score(edema, core, 1.0)["missed"] == ["tumor_core", "enhancing_tumor"]


def test_the_selecting_metric_counts_it_alike():
    edema = torch.zeros(4, 4, 4, dtype=torch.long)
    edema[1:3] = 2
    core = edema.clone()
    core[1] = 3
    pairs = [(edema, edema), (edema, core), (core, core)]
    for empty, means in ((None, [1.0, 1 / 2, 1 / 2]), (1.0, [1.0, 2 / 3, 2 / 3])):
        metric = MeanCaseDice(NAMES, output_transform=lambda output: output, empty=empty)
        metric.update(([in_regions(pred) for pred, _ in pairs], [in_regions(label) for _, label in pairs]))
        assert metric.class_means() == pytest.approx(means)
        assert metric.compute() == pytest.approx(sum(means) / 3)
        summary = summarize([score(pred, label, empty) for pred, label in pairs], NAMES)
        assert summary["dice"]["mean"] == pytest.approx(metric.compute())
    assert CaseScores(NAMES, empty=1.0).empty == 1.0


def test_class_means_know_nothing_of_what_no_case_has():
    edema = torch.zeros(4, 4, 4, dtype=torch.long)
    edema[1:3] = 2
    metric = MeanCaseDice(NAMES, output_transform=lambda output: output)
    assert metric.class_means() == [None, None, None]
    assert metric.compute() == 0.0
    metric.update(([in_regions(edema)], [in_regions(edema)]))
    assert metric.class_means() == [1.0, None, None]
    assert metric.compute() == 1.0


# ---- a known wrong metric -------------------------------------------------------------------------------------------

FIELD_SLICES = 160  # 240 mm of 1.5 mm, which the reference looks at; files of this set are cut to the brain
# (whole tumor, core, enhancing tumor) of an all-background prediction, by the reference's code on 128 slices
EMPTY_BY_REFERENCE = {
    "BraTS2021_00410": (0.594, 0.875, 0.875),
    "BraTS2021_00620": (0.758, 0.859, 0.859),
    "BraTS2021_00625": (0.734, 0.805, 0.805),
}


def sliced_dice(pred: np.ndarray, label: np.ndarray) -> float:
    """The metric of the reference of MTCM-KD: a Dice for each slice along the first axis, 1 where both are empty."""
    values = []
    for own, other in zip(pred, label, strict=True):
        total = own.sum() + other.sum()
        values.append(1.0 if total == 0 else 2 * (own & other).sum() / total)
    return float(np.mean(values))


def test_known_wrong_slice_averaged_dice_scores_an_empty_segmentation_far_above_zero():
    label = np.zeros((40, 20, 20), dtype=int)
    label[10:18, 5:12, 5:12] = 2
    label[12:16, 6:10, 6:10] = 3
    empty = np.zeros_like(label)
    wrong = [sliced_dice(np.isin(empty, members), np.isin(label, members)) for members in REGIONS.values()]
    assert wrong == pytest.approx([32 / 40, 36 / 40, 36 / 40])
    found = score(torch.from_numpy(empty), torch.from_numpy(label), empty=1.0)
    assert list(found["dice"].values()) == [0.0, 0.0, 0.0]
    assert found["missed"] == list(REGIONS)
    assert region_dice(confusion_matrix(torch.from_numpy(empty), torch.from_numpy(label), 4), REGIONS)[0].sum() == 0


@pytest.mark.parametrize("case", EMPTY_BY_REFERENCE)
def test_known_wrong_slice_averaged_dice_scores_nothing_at_three_quarters_on_real_tumors(real_data: Path, case):
    path = real_data / "BraTS_1p5mm" / case / f"{case}_seg.nii.gz"
    if not path.is_file():
        pytest.skip(f"'{path}' is not there: this test needs the BraTS cases at 1.5 mm")
    label = np.asarray(nib.load(path).dataobj).astype(int)
    label[label == 4] = 3
    around = FIELD_SLICES - len(label)
    assert around > 0
    whole = np.pad(label, ((around // 2, around - around // 2), (0, 0), (0, 0)))
    empty = np.zeros_like(whole)
    wrong = [sliced_dice(np.isin(empty, members), np.isin(whole, members)) for members in REGIONS.values()]
    assert wrong == pytest.approx(EMPTY_BY_REFERENCE[case], abs=0.012)  # 1.5 mm slices in place of 1.875 mm
    right = score(torch.from_numpy(empty), torch.from_numpy(whole), empty=1.0)
    assert list(right["dice"].values()) == [0.0, 0.0, 0.0]
