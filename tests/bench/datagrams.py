# SPDX-License-Identifier: Apache-2.0
"""UDP each way: the highest paced rate that loses less than one datagram in a hundred, and what a datagram costs.

Called by the runner. Adversary: nobody.
Invariants: iperf3 in the guest, its server on this machine's loopback through the gateway's address; every receiving
socket has the same large buffer, because with the default one the loopback alone loses datagrams long before a helper
does; the cost is taken at one rate for both helpers, since a helper finds larger batches the faster datagrams come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import process_cost
import servers
from bisection import Try, highest
from measure import Family, Measure, Settings, Side, Values
from throughput import DIRECTIONS, set_mtu
from tool_output import Datagrams
from visit import Visit, visiting

LOSS_LIMIT = 0.01
SLOWEST, FASTEST = 50e6, 12.8e9  # bit/s: between them lies whatever a guest can do here
STEPS = 7  # of the 8 octaves: to within 5 %
STEP_SECONDS = 1  # iperf3 takes whole ones
COMMON_RATE = {"1500": 20e6, "dhcp": 100e6}  # that both helpers pass with a guest that has to be emulated
RATE_AIM, CPU_AIM = 1.5, 0.7
SIZES = {"1500": 1400, "dhcp": 8000}  # of the payload, by a key of throughput.MTUS
BUFFER_BYTES = 4 << 20
BUFFER_LIMITS = ("/proc/sys/net/core/rmem_max", "/proc/sys/net/core/wmem_max")
MICROSECONDS = 1e6


@dataclass(frozen=True)
class Case:
    """One size in one direction."""

    mtu: str
    direction: str  # a key of DIRECTIONS

    @property
    def key(self) -> str:
        return f"size_{SIZES[self.mtu]}.{self.direction}"

    @property
    def title(self) -> str:
        return f"{SIZES[self.mtu]} bytes, {DIRECTIONS[self.direction][0]}"


def cases() -> Iterator[Case]:
    """Every combination."""
    for mtu, direction in product(SIZES, DIRECTIONS):
        yield Case(mtu, direction)


def measures(_settings: Settings) -> list[Measure]:
    """Two for each case."""
    rates = [
        Measure(f"udp.rate.{case.key}", "UDP: highest rate with under 1 % loss", case.title, "Mbit/s", True, RATE_AIM)
        for case in cases()
    ]
    costs = [
        Measure(
            f"udp.cpu.{case.key}",
            "Helper CPU for each datagram",
            f"{case.title}, {COMMON_RATE[case.mtu] / 1e6:.0f} Mbit/s",
            "µs",
            aim=CPU_AIM,
        )
        for case in cases()
    ]
    return rates + costs


def large_buffers(visit: Visit) -> int:
    """Allows them in the guest; the size that this machine allows too."""
    size = min(BUFFER_BYTES, *(int(Path(limit).read_text()) for limit in BUFFER_LIMITS))
    visit.guest.output(f"for limit in {' '.join(BUFFER_LIMITS)}; do echo {size} >$limit; done")
    return size


def send(visit: Visit, port: int, case: Case, rate: float, seconds: float, buffer: int) -> Datagrams:
    """One run at one rate."""
    flag = DIRECTIONS[case.direction][1]
    options = f"-u -b {rate:.0f} -l {SIZES[case.mtu]} -w {buffer} -t {max(1, round(seconds))} {flag} -i 0 -J"
    return Datagrams.parse(visit.load(f"iperf3 -c {visit.gateway} -p {port} {options}", seconds))


def run(side: Side, settings: Settings, values: Values) -> None:
    """All cases in one visit."""
    with visiting(side, settings) as visit, servers.iperf3() as port:
        buffer = large_buffers(visit)
        for case in cases():
            set_mtu(visit, case.mtu)

            def attempt(rate: float, case: Case = case) -> Try:
                done = send(visit, port, case, rate, STEP_SECONDS, buffer)
                return Try(done.sent_bits_per_second, done.received_bits_per_second, done.loss)

            best = highest(attempt, SLOWEST, FASTEST, STEPS, LOSS_LIMIT)
            values[f"udp.rate.{case.key}"] = best / 1e6
            before = process_cost.run_seconds(visit.helper.pid)
            done = send(visit, port, case, COMMON_RATE[case.mtu], settings.seconds, buffer)
            used = process_cost.run_seconds(visit.helper.pid) - before
            values[f"udp.cpu.{case.key}"] = used / done.received * MICROSECONDS


FAMILY = Family("udp", "UDP", measures, run)
