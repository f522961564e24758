# SPDX-License-Identifier: Apache-2.0
"""Bulk TCP each way between a machine of Podman's and this one: throughput, and the helper's CPU for each gigabyte.

Called by the runner. Adversary: nobody. Invariants: as stream_link.py, at the MTU that Podman names.
"""

from __future__ import annotations

import stream_link
from machine_visit import MTU, visiting
from measure import Family, Measure, Settings, Side, Values
from throughput import DIRECTIONS, Case

CASES = [Case(MTU, 1, direction) for direction in DIRECTIONS]
RATE_AIMS = {"from_guest": 1.6, "to_guest": 1.25}
CPU_AIMS = dict.fromkeys(DIRECTIONS, 0.125)
RATE_AIMS_BESIDE_PASST = dict.fromkeys(DIRECTIONS, 0.97)


def measures(settings: Settings) -> list[Measure]:
    """Two for each direction."""
    if settings.peer == "passt":
        return stream_link.rows(CASES, RATE_AIMS_BESIDE_PASST, {})
    return stream_link.rows(CASES, RATE_AIMS, CPU_AIMS)


def run(side: Side, settings: Settings, values: Values) -> None:
    """Both directions in one visit."""
    with visiting(side, settings) as visit:
        stream_link.transfer_all(visit, CASES, settings, values)


FAMILY = Family("stream", "stream link", measures, run)
