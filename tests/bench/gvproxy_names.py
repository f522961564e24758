# SPDX-License-Identifier: Apache-2.0
"""Questions for names that `gvproxy` answers by itself, as fast as a busy machine of Podman's may ask them.

Called by the runner. Adversary: nobody.
Invariants: pace_queries in the guest, with the resolver that DHCP named, for an address of the zones that are built in:
nothing leaves this machine. The rate is what the guest was asked for, and the rate that it reached is a row of its own,
because one under emulation may not reach it. A passt has no such zones: beside one, only ours is measured.
"""

from __future__ import annotations

import process_cost
from machine_visit import THIS_MACHINE, visiting
from measure import OURS, PEER, Family, Measure, Settings, Side, Values
from tool_output import Queries

NAME = "host.containers.internal"
PORT = 53
RATE = 2000  # queries a second
P99_AIM, P99_LIMIT_MS = 1.5, 10.0  # either
MICROSECONDS, MILLISECONDS = 1e6, 1e3


def measures(settings: Settings) -> list[Measure]:
    """When they were answered, how many were not, what one costs, and how many were asked."""
    sides = (OURS,) if settings.peer == "passt" else (OURS, PEER)
    panel, asked = "Answers to DNS queries", f"{RATE} a second"
    return [
        Measure("names.p50", panel, f"{asked}, 50th percentile", "ms", sides=sides),
        Measure(
            *("names.p99", panel, f"{asked}, 99th percentile", "ms"),
            aim=P99_AIM,
            limit=P99_LIMIT_MS,
            one_suffices=True,
            sides=sides,
        ),
        Measure("names.lost", "DNS queries without an answer", asked, "%", limit=0, has_ratio=False, sides=sides),
        Measure("names.cpu", "Helper CPU for each DNS query", asked, "µs", sides=sides),
        Measure("names.rate", "DNS queries that the guest sent", f"of {asked}", "/s", has_ratio=False, sides=sides),
    ]


def run(side: Side, settings: Settings, values: Values) -> None:
    """One visit."""
    if side.program == "passt":
        return
    with visiting(side, settings) as visit:
        resolver = visit.guest.lease()["dns"].split()[0]
        asked = f"{NAME} {THIS_MACHINE} {RATE} {settings.seconds * MILLISECONDS:.0f}"
        before = process_cost.run_seconds(visit.helper.pid)
        done = Queries.parse(visit.load(f"pace_queries {resolver} {PORT} {asked}", settings.seconds))
        used = process_cost.run_seconds(visit.helper.pid) - before
    values["names.p50"] = done.half_microseconds / MICROSECONDS * MILLISECONDS
    values["names.p99"] = done.most_microseconds / MICROSECONDS * MILLISECONDS
    values["names.lost"] = done.lost * 100
    values["names.cpu"] = used / done.answered * MICROSECONDS
    values["names.rate"] = done.sent_per_second


FAMILY = Family("names", "DNS", measures, run)
