"""labelled_part: a seeded part of the patients keeps its labels."""

from __future__ import annotations

import pytest

from monai_kd.data import labelled_part

CASES = [{"image": f"data/imagesTr/case_{number:02}.nii.gz", "label": "x"} for number in range(11)]


def names(cases):
    return [case["image"] for case in cases]


def test_half_of_the_cases_rounded_up_in_their_order():
    half = labelled_part(CASES, 0.5)
    assert len(half) == 6
    assert all(case["labelled"] == 1 for case in half)
    assert names(half) == [name for name in names(CASES) if name in names(half)]
    assert labelled_part(CASES, 1.0) == [{**case, "labelled": 1} for case in CASES]


def test_the_seed_alone_draws_and_a_larger_part_holds_a_smaller_one():
    assert names(labelled_part(CASES[::-1], 0.5)) == names(labelled_part(CASES, 0.5))[::-1]
    assert names(labelled_part(CASES, 0.5, seed=1)) != names(labelled_part(CASES, 0.5))
    assert set(names(labelled_part(CASES, 0.2))) < set(names(labelled_part(CASES, 0.5)))


def test_the_others_can_be_kept_without_their_labels():
    everything = labelled_part(CASES, 0.5, keep_unlabelled=True)
    assert names(everything) == names(CASES)
    assert names(case for case in everything if case["labelled"]) == names(labelled_part(CASES, 0.5))


def test_groups_are_drawn_whatever_the_order_and_counts_are_exact():
    cases = [{**case, "group": f"patient {number // 3}"} for number, case in enumerate(CASES)]
    turned = labelled_part(cases[5:] + cases[:5], 0.5)
    assert set(names(turned)) == set(names(labelled_part(cases, 0.5)))
    many = [{"image": f"case_{number:03}.nii.gz", "label": "x"} for number in range(100)]
    assert [len(labelled_part(many, fraction)) for fraction in (0.07, 0.55, 0.551)] == [7, 55, 56]


def test_a_case_less_changes_little():
    many = [{"image": f"case_{number:03}.nii.gz", "label": "x"} for number in range(100)]
    before, after = set(names(labelled_part(many, 0.5))), set(names(labelled_part(many[1:], 0.5)))
    assert len(before ^ after) <= 2


def test_cases_of_a_patient_share_their_flag():
    cases = [{**case, "group": f"patient {number // 3}"} for number, case in enumerate(CASES)]
    for seed in range(5):
        flags = {}
        for case in labelled_part(cases, 0.5, seed, keep_unlabelled=True):
            flags.setdefault(case["group"], set()).add(case["labelled"])
        assert all(len(found) == 1 for found in flags.values())
        assert sum(found == {1} for found in flags.values()) == 2


@pytest.mark.parametrize("fraction", [0, -0.5, 1.1, True, "half"])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"it must be above 0 and at most 1, e\.g\. 0\.5 for half of the labels"):
        labelled_part(CASES, fraction)
    with pytest.raises(ValueError, match="there is no case"):
        labelled_part([], 0.5)
