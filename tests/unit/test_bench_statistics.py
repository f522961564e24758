# SPDX-License-Identifier: Apache-2.0
"""The benchmark's statistics against values worked out by hand, and its interval against what an interval is for.

Adversary: nobody.
"""

from __future__ import annotations

import random

import pytest
from bench_statistics import bootstrap_interval, compare, median, quantile, steadiness

REPETITIONS = 200


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7.0], 0.1, 7.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([0.0, 10.0, 20.0, 30.0, 40.0], 0.1, 4.0),
        ([0.0, 10.0, 20.0, 30.0, 40.0], 0.9, 36.0),
        ([5.0, 1.0], 0.0, 1.0),
        ([5.0, 1.0], 1.0, 5.0),
    ],
)
def test_a_quantile_lies_on_the_line_between_its_neighbours(values: list[float], share: float, expected: float) -> None:
    """Whatever the order of the values."""
    assert quantile(values, share) == pytest.approx(expected)


def test_the_ratio_is_the_median_of_the_ratios_and_not_the_ratio_of_the_medians() -> None:
    """Three pairs, the second in a slow moment of the machine: 2, 2 and 4, though the medians are 8 and 3."""
    compared = compare([8.0, 2.0, 12.0], [4.0, 1.0, 3.0])
    assert compared.pairs == 3
    assert (compared.ours.median, compared.peer and compared.peer.median) == (8.0, 3.0)
    assert compared.ratio is not None
    assert compared.ratio.median == 2.0


def test_the_interval_of_equal_ratios_is_a_point() -> None:
    """Where every pair says the same, no repetition says anything else."""
    compared = compare([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert compared.ratio is not None
    assert (compared.ratio.low, compared.ratio.median, compared.ratio.high) == (2.0, 2.0, 2.0)


def test_the_interval_is_the_same_each_time_and_around_the_median() -> None:
    """The draws have a fixed seed."""
    values = [1.0, 1.1, 0.9, 1.3, 1.05, 0.95, 4.0]
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    assert low < median(values) < high < 4.0


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 series of twenty, drawn around a known median, nine in ten intervals hold it, give or take."""
    draw = random.Random(7)
    series = [[draw.lognormvariate(0, 0.3) for _ in range(20)] for _ in range(REPETITIONS)]
    intervals = [bootstrap_interval(values, resamples=300) for values in series]
    covered = sum(low <= 1.0 <= high for low, high in intervals)
    assert 0.82 <= covered / REPETITIONS <= 0.97


@pytest.mark.parametrize(
    ("values", "expected"), [([5.0] * 9, 1.0), ([0.0, 10.0, 20.0, 30.0, 40.0], 0.2), ([0.0, 0.0, 0.0], None)]
)
def test_steadiness_is_the_tenth_percentile_over_the_median(values: list[float], expected: float | None) -> None:
    """And nothing at all where the median is 0."""
    assert steadiness(values) == expected


def test_without_a_peer_ours_stands_alone() -> None:
    """No ratio is made up."""
    compared = compare([1.0, 2.0, 3.0], None)
    assert (compared.ours.median, compared.peer, compared.ratio) == (2.0, None, None)


def test_a_peer_that_took_nothing_gives_no_ratio() -> None:
    """Nothing can be a multiple of 0; both values are shown."""
    compared = compare([1.0, 2.0], [0.0, 1.0])
    assert compared.ratio is None
    assert compared.peer is not None and compared.peer.median == 0.5


def test_series_of_different_lengths_are_refused() -> None:
    """A value without its partner was not dropped by whoever makes the pairs."""
    with pytest.raises(ValueError, match="shorter"):
        compare([1.0, 2.0], [1.0])
