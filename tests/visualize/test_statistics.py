"""Paired differences, their interval and the verdict, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from records import arm, make_record

from monai_kd.visualize.statistics import (
    PairRefused,
    bootstrap_interval,
    group_arms,
    judge,
    paired_difference,
    seed_noise,
)

# Two seeds of four cases: means 0.83 and 0.85, so the SD over seeds is 0.02 / sqrt(2) in every arm built from this.
BASE = ((0.80, 0.82, 0.84, 0.86), (0.82, 0.84, 0.86, 0.88))


def shifted(by: float) -> list[list[float]]:
    return [[value + by for value in seed] for seed in BASE]


def test_interval_is_the_same_for_the_same_seed_and_encloses_the_mean() -> None:
    differences = [0.01, 0.03, -0.02, 0.05, 0.02]
    low, high = bootstrap_interval(differences)
    assert (low, high) == bootstrap_interval(differences)
    assert (low, high) != bootstrap_interval(differences, seed=1, resamples=50)
    assert low < 0.018 < high


def test_interval_of_equal_differences_is_that_difference() -> None:
    assert bootstrap_interval([0.25] * 6) == (0.25, 0.25)


def test_interval_of_two_cases_has_the_cases_as_ends() -> None:
    # Resampled means are 0, 0.5 and 1 with weights 1/4, 1/2, 1/4: the 2.5 % quantile is 0, the 97.5 % quantile 1.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)


def test_interval_widens_with_confidence() -> None:
    differences = [0.01, 0.03, -0.02, 0.05, 0.02]
    narrow, wide = bootstrap_interval(differences, confidence=0.5), bootstrap_interval(differences, confidence=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1],), "at least 2 differences"),
        (([0.1, math.nan],), "finite"),
        (([0.1, 0.2], 95.0), "between 0 and 1"),
        (([0.1, 0.2], 0.95, 0), "at least 1"),
    ],
)
def test_interval_refuses_what_has_no_interval(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(*arguments)


def test_seed_noise_is_two_standard_errors() -> None:
    assert seed_noise(0.03, 0.04, 4) == pytest.approx(2 * 0.05 / 2)
    assert seed_noise(0.03, 0.04, 16) == pytest.approx(2 * 0.05 / 4)


def test_difference_beyond_interval_and_seed_noise_is_a_gain() -> None:
    found = paired_difference(arm("baseline", BASE), arm("distilled", shifted(0.05)))
    assert found.mean == pytest.approx(0.05)
    assert found.interval == pytest.approx((0.05, 0.05))
    assert found.sd_a == pytest.approx(0.02 / math.sqrt(2))
    assert found.sd_b == pytest.approx(0.02 / math.sqrt(2))
    assert found.seed_noise == pytest.approx(2 * math.sqrt((0.0002 + 0.0002) / 2))  # 0.0283
    assert (found.n_cases, found.seeds) == (4, (0, 1))
    assert found.verdict == "gain"


def test_difference_inside_the_seed_noise_is_within_noise_although_every_case_improves() -> None:
    found = paired_difference(arm("baseline", BASE), arm("distilled", shifted(0.02)))
    assert found.interval[0] > 0
    assert found.mean < found.seed_noise
    assert found.verdict == "within noise"


def test_difference_whose_interval_holds_zero_is_within_noise_although_seeds_agree() -> None:
    same = [[0.5, 0.5, 0.5, 0.5]] * 2
    found = paired_difference(arm("baseline", same), arm("distilled", [[0.9, 0.3, 0.6, 0.4]] * 2))
    assert found.seed_noise == pytest.approx(0.0)
    assert found.mean == pytest.approx(0.05)
    assert found.interval[0] < 0 < found.interval[1]
    assert found.verdict == "within noise"


def test_loss_mirrors_gain() -> None:
    found = paired_difference(arm("baseline", BASE), arm("distilled", shifted(-0.05)))
    assert found.mean == pytest.approx(-0.05)
    assert found.verdict == "loss"
    assert judge(-0.05, (-0.06, -0.04), 0.05) == "within noise"


def test_one_seed_says_that_no_seed_noise_is_known() -> None:
    found = paired_difference(arm("baseline", BASE[:1]), arm("distilled", shifted(0.05)[:1]))
    assert found.seed_noise is None
    assert found.verdict == "1 seed: no seed noise known"


def test_differences_are_averaged_over_matching_seeds() -> None:
    found = paired_difference(
        arm("baseline", [[0.5, 0.6], [0.6, 0.7]]), list(reversed(arm("distilled", [[0.6, 0.6], [0.9, 0.7]])))
    )
    assert found.differences == pytest.approx({"hippocampus_000": 0.2, "hippocampus_001": 0.0})


def test_cases_are_matched_by_name_not_by_order() -> None:
    a, b = arm("baseline", BASE), arm("distilled", shifted(0.05))
    b[0]["cases"][0]["dice"]["anterior"] += 0.03
    expected = paired_difference(a, b)
    b[0]["cases"].reverse()
    assert paired_difference(a, b) == expected
    for record in a:
        record["cases"].reverse()
    assert paired_difference(a, b) == expected


def test_class_absent_everywhere_is_left_out_and_a_false_positive_counts_against_an_empty_answer() -> None:
    a, b = arm("baseline", [[0.8, 0.8]], gap=0.0), arm("distilled", [[0.8, 0.8]], gap=0.0)
    for record in (*a, *b):
        record["cases"][0]["dice"]["posterior"] = None
    a[0]["cases"][1]["dice"]["posterior"] = 0.0  # false positive
    b[0]["cases"][1]["dice"]["posterior"] = None  # rightly empty
    found = paired_difference(a, b)
    assert found.a_dice == pytest.approx({"hippocampus_000": 0.8, "hippocampus_001": 0.4})
    assert found.b_dice == pytest.approx({"hippocampus_000": 0.8, "hippocampus_001": 0.9})


def test_case_without_any_scored_class_is_not_counted() -> None:
    a, b = arm("baseline", [[0.8, 0.7, 0.6]]), arm("distilled", [[0.8, 0.7, 0.6]])
    for record in (*a, *b):
        record["cases"][1]["dice"] = {"anterior": None, "posterior": None}
    assert list(paired_difference(a, b).differences) == ["hippocampus_000", "hippocampus_002"]


def test_other_cases_are_refused_by_name() -> None:
    a, b = arm("baseline", BASE), arm("distilled", BASE)
    b[1]["cases"][2]["case"] = "hippocampus_999"
    with pytest.raises(PairRefused, match=r"hippocampus_002.*evaluate-distilled-seed1.*hippocampus_999"):
        paired_difference(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule_hash": "9" * 64}, "schedule_hash differs: 111111111111 in evaluate-baseline-seed0"),
        ({"schedule_hash": None}, "schedule_hash is unknown in evaluate-distilled-seed0"),
        ({"protocol.split_hash": "9" * 64}, "split_hash differs"),
        ({"protocol.hash": "9" * 64}, "protocol hash differs"),
        ({"protocol.section": "validation"}, "section differs: test in .* validation in"),
        ({"network.parameters": 1}, "parameters differs: 271234 in .* 1 in"),
        ({"network.target": "UNet"}, "network differs: DynUNet in .* UNet in"),
    ],
)
def test_unlike_arms_are_refused(change: dict, message: str) -> None:
    b = arm("distilled", BASE)
    for key, value in change.items():
        place = b[0]
        *parents, last = key.split(".")
        for parent in parents:
            place = place[parent]
        place[last] = value
    with pytest.raises(PairRefused, match=message):
        paired_difference(arm("baseline", BASE), b)


def test_other_seeds_are_refused() -> None:
    with pytest.raises(PairRefused, match="seeds differ: 0, 1 in a, 0 in b"):
        paired_difference(arm("baseline", BASE), arm("distilled", BASE[:1]))


def test_one_seed_twice_in_an_arm_is_refused() -> None:
    with pytest.raises(PairRefused, match="seed 0 occurs twice in a"):
        paired_difference(arm("baseline", BASE[:1]) * 2, arm("distilled", BASE))


def test_repeated_evaluation_of_a_seed_counts_once_and_the_newest_wins() -> None:
    old = make_record("distilled", 0, (0.5, 0.5), stamp="20261121-104400")
    new = make_record("distilled", 0, (0.7, 0.7), stamp="20261122-080000")
    (found,) = group_arms([new, old, make_record("distilled", 1)])
    assert [record["run_id"] for record in found.records] == [new["run_id"], "evaluate-distilled-seed1-20261121-104400"]
    assert found.superseded == (old["run_id"],)


def test_recorded_start_decides_which_evaluation_is_newest() -> None:
    first, second = (make_record("distilled", 0, stamp=stamp) for stamp in ("20261122-000000", "20261121-000000"))
    first["started"], second["started"] = "2026-11-21T08:00:00+00:00", "2026-11-21T09:00:00+00:00"
    (found,) = group_arms([first, second])
    assert found.superseded == (first["run_id"],)


def test_arms_come_as_teacher_baseline_distilled_then_others() -> None:
    records = [make_record(method) for method in ("zoo", "distilled", "teacher", "baseline", "dkd")]
    assert [found.method for found in group_arms(records)] == ["teacher", "baseline", "distilled", "dkd", "zoo"]
