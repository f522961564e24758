# SPDX-License-Identifier: Apache-2.0
"""UDP each way: the highest paced rate that loses less than one datagram in a hundred, and what a datagram costs.

Called by the runner. Adversary: nobody.
Invariants: pace_datagrams in the guest and on this machine's loopback, through the gateway's address; every receiving
socket has the same large buffer, because with the default one the loopback alone loses datagrams long before a helper
does; the cost is taken at the same rates for both helpers, since a helper finds larger batches the faster datagrams
come.
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
from visit import Client, Visit, visiting

LOSS_LIMIT = 0.01
SLOWEST, FASTEST = 50e6, 12.8e9  # bit/s: between them lies whatever a guest can do here
STEPS = 7  # of the 8 octaves: to within 5 %
STEP_SECONDS = 0.5
CALM, BUSY = 20e6, 400e6  # bit/s: a datagram at a time, and as many as a slow helper passes
RATE_AIM, CPU_AIM = 1.5, 0.7
BUFFER_BYTES = 4 << 20
BUFFER_LIMITS = ("/proc/sys/net/core/rmem_max", "/proc/sys/net/core/wmem_max")
MICROSECONDS = 1e6


@dataclass(frozen=True)
class Kind:
    """One way to send them."""

    key: str
    title: str
    size: int  # of the payload
    mtu: str  # a key of throughput.MTUS
    joined: bool  # as QUIC does: UDP_SEGMENT and UDP_GRO at the ends


KINDS = (
    Kind("size_1400", "1400 bytes", 1400, "1500", joined=False),
    Kind("size_8000", "8000 bytes", 8000, "dhcp", joined=False),
    Kind("joined_1400", "1400 bytes, many in a call (UDP_SEGMENT)", 1400, "1500", joined=True),
)


@dataclass(frozen=True)
class Case:
    """One kind in one direction."""

    kind: Kind
    direction: str  # a key of DIRECTIONS

    @property
    def key(self) -> str:
        return f"{self.kind.key}.{self.direction}"

    @property
    def title(self) -> str:
        return f"{self.kind.title}, {DIRECTIONS[self.direction][0]}"

    @property
    def paces(self) -> dict[str, float]:
        """At which the cost is taken; a call of many has no calm one."""
        return {"busy": BUSY} if self.kind.joined else {"calm": CALM, "busy": BUSY}


def cases() -> Iterator[Case]:
    """Every combination."""
    for kind, direction in product(KINDS, DIRECTIONS):
        yield Case(kind, direction)


RATE_PANEL, COST_PANEL = "UDP: highest rate with under 1 % loss", "Helper CPU for each datagram"


def measures(_settings: Settings) -> list[Measure]:
    """A rate for each case, and its costs."""
    rates = [Measure(f"udp.rate.{case.key}", RATE_PANEL, case.title, "Mbit/s", True, RATE_AIM) for case in cases()]
    costs = [
        Measure(f"udp.cpu.{pace}.{case.key}", COST_PANEL, f"{case.title}, {rate / 1e6:.0f} Mbit/s", "µs", aim=CPU_AIM)
        for case in cases()
        for pace, rate in case.paces.items()
    ]
    return rates + costs


def large_buffers(visit: Visit) -> int:
    """Allows them in the guest; the size that this machine allows too."""
    size = min(BUFFER_BYTES, *(int(Path(limit).read_text()) for limit in BUFFER_LIMITS))
    visit.guest.output(f"for limit in {' '.join(BUFFER_LIMITS)}; do echo {size} >$limit; done")
    return size


def send(client: Client, port: int, case: Case, rate: float, seconds: float, buffer: int) -> Datagrams:
    """One run at one rate, in bit/s."""
    size, way = case.kind.size, {"from_guest": "send", "to_guest": "receive"}[case.direction]
    pace = f"{way} {size} {rate / 8 / size:.0f} {seconds * 1000:.0f} {case.kind.joined:d} {buffer}"
    return Datagrams.parse(client.load(f"pace_datagrams {client.gateway} {port} {pace}", seconds), size)


def highest_rate(client: Client, port: int, case: Case, buffer: int) -> float:
    """In Mbit/s."""

    def attempt(rate: float) -> Try:
        done = send(client, port, case, rate, STEP_SECONDS, buffer)
        return Try(done.sent_bits_per_second, done.received_bits_per_second, done.loss)

    return highest(attempt, SLOWEST, FASTEST, STEPS, LOSS_LIMIT) / 1e6


def cost(client: Client, port: int, case: Case, rate: float, seconds: float, buffer: int, pid: int) -> float:
    """Of that helper for each datagram that arrived, in µs."""
    before = process_cost.run_seconds(pid)
    done = send(client, port, case, rate, seconds, buffer)
    return (process_cost.run_seconds(pid) - before) / done.received * MICROSECONDS


def run(side: Side, settings: Settings, values: Values) -> None:
    """All cases in one visit."""
    with visiting(side, settings) as visit, servers.pace_datagrams() as port:
        buffer = large_buffers(visit)
        for case in cases():
            set_mtu(visit, case.kind.mtu)
            values[f"udp.rate.{case.key}"] = highest_rate(visit, port, case, buffer)
            for pace, rate in case.paces.items():
                values[f"udp.cpu.{pace}.{case.key}"] = cost(
                    visit, port, case, rate, settings.seconds, buffer, visit.helper.pid
                )


FAMILY = Family("udp", "UDP", measures, run)
