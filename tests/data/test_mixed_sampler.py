"""MixedSampler: as many labelled cases a batch with unlabelled ones as without."""

from __future__ import annotations

from collections import Counter

import pytest

from monai_kd.data import MixedSampler

CASES = [{"labelled": int(number % 3 == 0)} for number in range(9)]  # 0, 3, 6 are labelled


def test_each_labelled_case_is_followed_by_unlabelled_ones():
    drawn = list(MixedSampler(CASES, 6, unlabelled=2))
    assert len(drawn) == len(MixedSampler(CASES, 6, unlabelled=2)) == 18
    assert all(index in (0, 3, 6) for index in drawn[::3])
    assert not {0, 3, 6} & {*drawn[1::3], *drawn[2::3]}
    assert Counter(drawn) == {0: 2, 3: 2, 6: 2, 1: 2, 2: 2, 4: 2, 5: 2, 7: 2, 8: 2}


def test_the_labelled_cases_come_as_without_unlabelled_ones():
    assert list(MixedSampler(CASES, 7, unlabelled=1))[::2] == list(MixedSampler(CASES, 7))


def test_every_epoch_and_seed_has_its_own_order_which_can_be_chosen():
    sampler = MixedSampler(CASES, 12, unlabelled=1)
    first, second = list(sampler), list(sampler)
    assert first != second
    again = MixedSampler(CASES, 12, unlabelled=1)
    again.set_epoch(1)
    assert list(again) == second
    assert list(MixedSampler(CASES, 12, unlabelled=1, seed=1)) != first


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="none of the training cases is labelled"):
        MixedSampler([{"labelled": 0}], 2)
    with pytest.raises(ValueError, match="unlabelled is 1, and every training case is labelled; keep the others"):
        MixedSampler([{}, {}], 2, unlabelled=1)
    with pytest.raises(ValueError, match="num_samples is 0; it must be a whole number of at least 1"):
        MixedSampler(CASES, 0)
    with pytest.raises(ValueError, match="unlabelled is -1; it must be a whole number of at least 0"):
        MixedSampler(CASES, 2, unlabelled=-1)
    with pytest.raises(ValueError, match="rank is 2 of 2 processes; ranks count from 0"):
        MixedSampler(CASES, 2, num_replicas=2, rank=2)


@pytest.mark.parametrize("num_samples", [6, 5], ids=["even", "rounded up"])
def test_processes_share_out_what_one_would_draw(num_samples):
    alone = list(MixedSampler(CASES, 6, unlabelled=1))
    pairs = list(zip(alone[::2], alone[1::2], strict=True))
    for rank in (0, 1):
        sampler = MixedSampler(CASES, num_samples, unlabelled=1, num_replicas=2, rank=rank)
        own = list(sampler)
        assert len(sampler) == len(own) == 6
        assert list(zip(own[::2], own[1::2], strict=True)) == pairs[rank::2]
