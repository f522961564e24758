# SPDX-License-Identifier: Apache-2.0
"""The highest rate that still passes, found by halving, where every try costs time and may fail by bad luck.

Called by datagrams.py. Adversary: nobody.
Invariants: pure; a bounded number of tries; what is returned did pass, and was measured, not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

SATURATED = 0.9  # a sender that does not reach this share of what it was asked for gives all that it has
TRIES = 2  # a noisy machine loses a burst now and then: a rate has failed when it failed twice


@dataclass(frozen=True)
class Try:
    """What came of one rate."""

    sent: float
    received: float
    loss: float  # a share

    def passes(self, loss_limit: float) -> bool:
        """An empty one does not."""
        return self.received > 0 and self.loss < loss_limit


def highest(attempt: Callable[[float], Try], low: float, high: float, steps: int, loss_limit: float) -> float:
    """The received rate of the highest paced one, between `low` and `high`, that loses less than the limit; ValueError
    if none that was tried did.

    Halves the logarithm, because nothing is known of the order of magnitude. A sender that cannot reach a rate has
    passed with what it reached, and nothing above need be tried; but once more what it reaches, for the better of both.
    """
    best = 0.0
    for _ in range(steps):
        rate = sqrt(low * high)
        tried = _persistently(attempt, rate, loss_limit)
        if not tried.passes(loss_limit):
            high = rate
            continue
        best = max(best, tried.received)
        if tried.sent < SATURATED * rate:
            again = attempt(rate)
            return max(best, again.received if again.passes(loss_limit) else 0.0)
        low = rate
    if not best:
        raise ValueError(f"at every rate down to {high:g} bit/s too many datagrams were lost")
    return best


def _persistently(attempt: Callable[[float], Try], rate: float, loss_limit: float) -> Try:
    for _ in range(TRIES - 1):
        if (tried := attempt(rate)).passes(loss_limit):
            return tried
    return attempt(rate)
