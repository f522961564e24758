# SPDX-License-Identifier: Apache-2.0
"""What the benchmark says of its values: which pairs count, when an aim is met, and that the picture is well-formed.

Adversary: nobody.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import picture
import pytest
import report
from measure import MACHINE, OURS, PEER, Measure, by_panel
from report import Results

COST = Measure("cost", "Cost", "a transfer", "s/GB", aim=0.7, floor="floor")
RATE = Measure("rate", "Rate", "a transfer", "Gbit/s", more_is_better=True, aim=1.5, steady=True)
OWN = Measure("own", "Own count", "a < b & c", "/s", limit=2.0, sides=(OURS,))
FLOOR = Measure("floor", "The floor", "sending", "s/GB", sides=(MACHINE,))
SVG = "{http://www.w3.org/2000/svg}"


def results(*pairs: report.PairValues, has_peer: bool = True) -> Results:
    """Of these pairs."""
    return Results({"guest": "a guest"}, [FLOOR, COST, RATE, OWN], has_peer, list(pairs))


def pair(ours: float, peer: float) -> report.PairValues:
    """With a value of everything."""
    return {
        OURS: {"cost": ours, "rate": 1 / ours, "own": 1.0, "cost/read": 10.0, "cost/write": 0.01},
        PEER: {"cost": peer, "rate": 1 / peer},
        MACHINE: {"floor": 0.2},
    }


def row(found: list[report.Row], measure: Measure) -> report.Row:
    """The one of that measure."""
    return next(row for row in found if row.measure == measure)


def test_only_complete_pairs_count() -> None:
    """Of an interrupted pair, what has no partner is left out, and the rest stays."""
    cut = pair(0.5, 1.0)
    del cut[PEER]["cost"]
    found = report.rows(results(pair(0.5, 1.0), cut))
    assert row(found, COST).compared.pairs == 1
    assert row(found, RATE).compared.pairs == 2
    assert report.fewest_pairs(found) == 1


def test_a_measure_that_nobody_could_take_is_left_out() -> None:
    """A peer that always fails leaves no row, and no row of zeros."""
    failed = pair(0.5, 1.0)
    failed[PEER] = {}
    assert {row.measure.key for row in report.rows(results(failed))} == {"own", "floor"}


def test_what_only_ours_has_needs_no_partner() -> None:
    """Our own counters are shown beside a peer that has none."""
    assert row(report.rows(results(pair(0.5, 1.0))), OWN).compared.peer is None


@pytest.mark.parametrize(
    ("ours", "peer", "cost_met", "rate_met"),
    [(0.5, 1.0, True, True), (0.69, 1.0, True, False), (0.71, 1.0, False, False)],
)
def test_an_aim_is_a_ceiling_or_where_more_is_better_a_floor(
    ours: float, peer: float, cost_met: bool, rate_met: bool
) -> None:
    """Cost at most 0.7 of the peer's, rate at least 1.5 of it."""
    found = report.rows(results(pair(ours, peer)))
    assert (report.aim_met(row(found, COST)), report.aim_met(row(found, RATE))) == (cost_met, rate_met)


def test_without_a_peer_only_limits_of_our_own_are_judged() -> None:
    """No ratio, no verdict on it."""
    found = report.rows(results(pair(0.5, 1.0), has_peer=False))
    assert report.aim_met(row(found, COST)) is None
    assert report.aim_met(row(found, OWN)) is True


def test_the_floor_stands_beside_the_cost() -> None:
    """0.5 s/GB over a floor of 0.2."""
    assert row(report.rows(results(pair(0.5, 1.0))), COST).floor == 0.2
    assert "× floor 2.5 | 5.0" in report.text(results(pair(0.5, 1.0)))


def test_few_pairs_are_not_called_a_claim() -> None:
    """Twenty are."""
    assert "A claim takes 20" in report.text(results(pair(0.5, 1.0)))
    assert "A claim takes" not in report.text(results(*[pair(0.5, 1.0)] * 20))


def test_small_parts_of_a_sum_are_not_shown() -> None:
    """A part below a hundredth says nothing."""
    assert row(report.rows(results(pair(0.5, 1.0))), COST).details == {OURS: {"read": 10.0}}


def test_the_json_has_every_value_and_the_conclusions() -> None:
    """What is not in it cannot be looked at again."""
    whole = results(pair(0.5, 1.0), pair(0.4, 1.0))
    told = json.loads(json.dumps(report.as_json(whole)))
    assert told["pairs"] == whole.pairs
    assert {entry["key"]: entry["aim_met"] for entry in told["rows"]}["cost"] is True


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (12345, "12\u202f345"), (-2.5, "-2.50")],
)
def test_numbers_have_three_digits_that_say_something(value: float, expected: str) -> None:
    """And thousands a narrow space."""
    assert report.number(value) == expected


def test_the_picture_is_well_formed_and_shows_every_row_of_a_helper() -> None:
    """Two bars where there is a peer, one where there is not; titles are escaped; nothing lies outside."""
    drawn = picture.draw("ours < theirs", "a guest", report.rows(results(pair(0.5, 1.0), pair(0.6, 1.0))))
    root = ElementTree.fromstring(drawn)
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"ours < theirs", "a transfer", "a < b & c"} <= set(words)
    assert "sending" not in words
    bars = [element for element in root.iter(f"{SVG}rect") if element.get("height") == str(picture.BAR)]
    assert len(bars) == 5
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for bar in bars:
        assert float(bar.get("x", 0)) + float(bar.get("width", 0)) < width
        assert float(bar.get("y", 0)) + picture.BAR < height


def test_what_is_added_to_the_peers_value_has_a_limit_of_its_own() -> None:
    """In the measure's unit, because a ratio would say nothing of what a person waits for."""
    added = Measure("added", "Time", "a command", "ms", added_limit=40.0)

    def found(ours: float) -> report.Row:
        return report.rows(Results({}, [added], True, [{OURS: {"added": ours}, PEER: {"added": 200.0}}]))[0]

    assert report.aim_met(found(239.0)) is True
    assert report.aim_met(found(241.0)) is False
    assert report.aim_text(found(239.0)) == "≤ +40 ms"


def test_rows_under_one_heading_stand_together() -> None:
    one, other, third = (Measure(key, panel, "", "") for key, panel in (("a", "A"), ("b", "B"), ("c", "A")))
    assert by_panel([one, other, third]) == [one, third, other]


def test_an_aim_is_shown_as_it_is() -> None:
    """0.125 is not 0.12, which 0.124 would miss."""
    eighth = Measure("eighth", "Cost", "a transfer", "s/GB", aim=0.125)
    row = report.rows(Results({}, [eighth], True, [{OURS: {"eighth": 1.0}, PEER: {"eighth": 8.0}}]))[0]
    assert report.aim_text(row) == "≤ 0.125"


def test_of_an_aim_and_a_limit_one_may_suffice() -> None:
    """A helper that is quick enough need not be quicker than the other, and the other way round."""
    either = Measure("either", "Time", "an answer", "ms", aim=1.5, limit=10.0, one_suffices=True)

    def found(ours: float) -> report.Row:
        return report.rows(Results({}, [either], True, [{OURS: {"either": ours}, PEER: {"either": 8.0}}]))[0]

    assert report.aim_met(found(9.0)) and report.aim_met(found(12.0)) and not report.aim_met(found(13.0))
    assert report.aim_text(found(9.0)) == "≤ 1.50 or ≤ 10 ms"
