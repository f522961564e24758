# SPDX-License-Identifier: Apache-2.0
"""The highest rate that passes is found in few tries, whatever limits it, and one burst lost by bad luck is forgiven.

Adversary: nobody.
"""

from __future__ import annotations

import pytest
from bisection import Try, highest

LIMIT = 0.01
LOW, HIGH, STEPS = 1.0, 256.0, 7
PRECISION = 2 ** (8 / 2**STEPS)


def lossy_above(rate: float, knee: float) -> Try:
    """A path that takes so much and no more."""
    return Try(rate, min(rate, knee), max(0.0, 1 - knee / rate))


@pytest.mark.parametrize("knee", [1.5, 16.0, 100.0, 250.0])
def test_the_knee_of_a_lossy_path_is_found(knee: float) -> None:
    found = highest(lambda rate: lossy_above(rate, knee), LOW, HIGH, STEPS, LIMIT)
    assert knee / PRECISION <= found <= knee


def test_a_sender_that_reaches_no_more_has_passed_with_what_it_reached() -> None:
    tried: list[float] = []

    def attempt(rate: float) -> Try:
        tried.append(rate)
        return Try(min(rate, 5.0), min(rate, 5.0), 0.0)

    assert highest(attempt, LOW, HIGH, STEPS, LIMIT) == 5.0
    assert len(tried) == 2


def test_one_unlucky_try_does_not_fail_a_rate() -> None:
    unlucky = {1}
    tried: list[float] = []

    def attempt(rate: float) -> Try:
        tried.append(rate)
        return Try(rate, rate, 0.5) if len(tried) in unlucky else lossy_above(rate, 100.0)

    assert 100.0 / PRECISION <= highest(attempt, LOW, HIGH, STEPS, LIMIT) <= 100.0


def test_a_path_that_loses_at_every_rate_is_no_measurement() -> None:
    tried: list[float] = []

    def attempt(rate: float) -> Try:
        tried.append(rate)
        return Try(rate, rate / 2, 0.5)

    with pytest.raises(ValueError, match="too many datagrams were lost"):
        highest(attempt, LOW, HIGH, STEPS, LIMIT)
    assert len(tried) == 2 * STEPS


def test_nothing_received_is_no_pass() -> None:
    with pytest.raises(ValueError, match="too many"):
        highest(lambda rate: Try(rate, 0.0, 0.0), LOW, HIGH, STEPS, LIMIT)
