# SPDX-License-Identifier: Apache-2.0
"""What a row of paired measurements says: medians, the ratio of two helpers with its interval, and steadiness.

Called by report.py. Adversary: nobody. Invariants: pure; the same numbers give the same answer, because the bootstrap
draws from a fixed seed.

Strategy: two measurements that follow each other meet the same state of a noisy machine, and two that lie an hour apart
do not. So every pair gives one ratio, and the claim is the median of the ratios; a ratio of medians would compare
moments that never met. Its interval is a percentile bootstrap over the pairs, which assumes nothing about the
distribution; a normal one would be wrong for ratios with a crawling run among them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 4000
CONFIDENCE = 0.9
LOW, HIGH = 0.1, 0.9  # the quantiles that stand for the bad and the good runs
_SEED = 1


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies, interpolated between neighbours (Hyndman and Fan's type 7)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    return quantile(values, 0.5)


def bootstrap_interval(
    values: Sequence[float], confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Where the median would lie in that share of repetitions of the whole series."""
    draw = random.Random(_SEED)
    medians = [median(draw.choices(values, k=len(values))) for _ in range(resamples)]
    tail = (1 - confidence) / 2
    return quantile(medians, tail), quantile(medians, 1 - tail)


def steadiness(values: Sequence[float]) -> float | None:
    """The tenth percentile over the median: 1 is perfectly steady, near 0 some runs crawl. None if the median is 0."""
    middle = median(values)
    return quantile(values, LOW) / middle if middle else None


@dataclass(frozen=True)
class Spread:
    """One helper's values of one measure."""

    median: float
    low: float
    high: float
    steadiness: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median(values), quantile(values, LOW), quantile(values, HIGH), steadiness(values))


@dataclass(frozen=True)
class Ratio:
    """The median of the paired ratios, ours over the peer's, and its interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """All that is said of one measure. Without a peer: ours alone."""

    pairs: int
    ours: Spread
    peer: Spread | None
    ratio: Ratio | None  # None also where none is wanted, or a value of the peer is 0


def compare(ours: Sequence[float], peer: Sequence[float] | None, with_ratio: bool = True) -> Comparison:
    """Ours beside the peer's; the values at one place of both were measured one after the other."""
    if peer is None:
        return Comparison(len(ours), Spread.of(ours), None, None)
    ratio = None
    if with_ratio and all(peer):
        ratios = [mine / other for mine, other in zip(ours, peer, strict=True)]
        ratio = Ratio(median(ratios), *bootstrap_interval(ratios))
    return Comparison(len(ours), Spread.of(ours), Spread.of(peer), ratio)
