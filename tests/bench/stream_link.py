# SPDX-License-Identifier: Apache-2.0
"""Bulk TCP over QEMU's stream socket of frames, which is what a helper costs where no memory is shared.

Called by the runner, and by gvproxy_throughput.py for some of it. Adversary: nobody.
Invariants: always in QEMU, because nothing else has this link: the one that was chosen, or the one beside the chosen
User-mode Linux. Without KVM the guest is the bottleneck, so that the helper's CPU says more than the throughput.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import process_cost
import servers
import throughput
from measure import Family, Measure, Settings, Side, Values
from throughput import Case
from visit import Visit, visiting

CASES = [Case(mtu, 1, direction) for mtu in throughput.MTUS for direction in throughput.DIRECTIONS]
RATE_AIMS = dict.fromkeys(throughput.DIRECTIONS, 0.97)
CPU_AIMS = {"from_guest": 0.85, "to_guest": 1.0}


def kind(chosen: str) -> str:
    """Of machine.KINDS, the one with this link."""
    return "qemu-peer-stream" if "-peer" in chosen else "qemu-stream"


def rows(cases: Sequence[Case], rate_aims: Mapping[str, float], cpu_aims: Mapping[str, float]) -> list[Measure]:
    """Two for each case, with aims by direction."""
    rates = [
        Measure(
            f"stream.throughput.{case.key}",
            "Throughput, stream link",
            case.title,
            "Gbit/s",
            more_is_better=True,
            aim=rate_aims.get(case.direction),
        )
        for case in cases
    ]
    costs = [
        Measure(
            f"stream.cpu_per_gb.{case.key}",
            "Helper CPU for each gigabyte, stream link",
            case.title,
            "s/GB",
            aim=cpu_aims.get(case.direction),
            floor=f"floor.{case.direction}",
        )
        for case in cases
    ]
    return rates + costs


def measures(_settings: Settings) -> list[Measure]:
    """Of all cases."""
    return rows(CASES, RATE_AIMS, CPU_AIMS)


def transfer_all(visit: Visit, cases: Sequence[Case], settings: Settings, values: Values) -> None:
    """One after the other."""
    with servers.iperf3() as port:
        for case in cases:
            throughput.set_mtu(visit, case.mtu)
            before = process_cost.run_seconds(visit.helper.pid)
            done = throughput.transfer(visit, port, case.streams, case.direction, settings.seconds)
            used = process_cost.run_seconds(visit.helper.pid) - before
            values[f"stream.throughput.{case.key}"] = done.gigabits_per_second
            values[f"stream.cpu_per_gb.{case.key}"] = used / done.gigabytes


def run(side: Side, settings: Settings, values: Values) -> None:
    """All cases in one visit."""
    with visiting(side, settings, kind(settings.guest)) as visit:
        transfer_all(visit, CASES, settings, values)


FAMILY = Family("stream", "stream link", measures, run)
