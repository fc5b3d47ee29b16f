"""Verdicts need whole intervals, and intervals hold as often as they say."""

import itertools

import pytest
import torch

from studies import intervals
from studies.intervals import CONFIRMED, CONTRADICTED, NOT_SHOWN, Measured


def test_verdicts_need_the_whole_interval():
    high, low, wide = Measured(3, 2, 4, ""), Measured(0, -1, 0.5, ""), Measured(1, 0, 2, "")
    assert [intervals.above(each, 1) for each in (high, low, wide)] == [CONFIRMED, CONTRADICTED, NOT_SHOWN]
    assert [intervals.below(each, 1) for each in (high, low, wide)] == [CONTRADICTED, CONFIRMED, NOT_SHOWN]
    assert intervals.every([CONFIRMED, CONFIRMED]) == CONFIRMED
    assert intervals.every([CONFIRMED, NOT_SHOWN, CONTRADICTED]) == CONTRADICTED
    assert intervals.every([CONFIRMED, NOT_SHOWN]) == NOT_SHOWN
    assert intervals.every([]) == NOT_SHOWN


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    draws = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).tolist()
    held = [figure.low <= 0 <= figure.high for figure in map(intervals.over_seeds, draws)]
    assert 0.92 <= sum(held) / len(held) <= 0.98


def test_equal_seeds_are_not_certain():
    """They tell no scatter; a count of what was looked at does decide."""
    same = intervals.over_seeds([2.0, 2.0, 2.0], comparisons=4)
    assert str(same) == str(intervals.exact(2)) == "2"
    for verdict, bound in itertools.product((intervals.above, intervals.below), (1, 3)):
        assert verdict(same, bound) == NOT_SHOWN
        assert verdict(intervals.exact(2), bound) in (CONFIRMED, CONTRADICTED)


def test_several_comparisons_hold_together_as_often_as_one():
    draws = torch.randn(600, 4, 3, generator=torch.Generator().manual_seed(2)).tolist()
    figures = [[intervals.over_seeds(one, comparisons=4) for one in four] for four in draws]
    alone = sum(all(f.low <= 0 <= f.high for f in four) for four in figures)
    together = sum(all(f.together[0] <= 0 <= f.together[1] for f in four) for four in figures)
    assert alone / len(draws) < 0.9
    assert together / len(draws) >= 0.93
    assert "98.75%, one of 4 comparisons" in figures[0][0].interval


def test_one_of_several_is_confirmed_by_its_own_interval_and_contradicted_by_the_wider_one():
    figure = Measured(2, 1, 3, "", (-1, 5))
    assert [intervals.above(figure, bound) for bound in (0.5, 2, 4, 6)] == [
        CONFIRMED,
        NOT_SHOWN,
        NOT_SHOWN,
        CONTRADICTED,
    ]
    assert [intervals.below(figure, bound) for bound in (-2, 0, 2, 3.5)] == [
        CONTRADICTED,
        NOT_SHOWN,
        NOT_SHOWN,
        CONFIRMED,
    ]


def test_shares_stay_shares():
    values = [0.0, 0.1, 0.9]
    free, share = intervals.over_seeds(values), intervals.over_seeds(values, share=True)
    assert free.low < 0 < 1 < free.high
    assert (share.low, share.high, share.value) == (0, 1, free.value)
    curve = intervals.curve_over_seeds([[0.0, 1.0], [0.2, 0.8]], share=True)
    assert curve["value"] == pytest.approx([0.1, 0.9])
    assert curve["low"][0] == 0
    assert curve["high"][1] == 1


def test_counts_have_an_interval_even_where_nothing_happened():
    assert intervals.counted(0, 3).high == pytest.approx(1 - 0.025 ** (1 / 3))
    assert intervals.counted(0, 3).low == 0
    assert intervals.counted(3, 3).low == pytest.approx(0.025 ** (1 / 3))
