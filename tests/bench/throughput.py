# SPDX-License-Identifier: Apache-2.0
"""Bulk TCP each way: throughput, and the helper's CPU for each gigabyte, which is the steadier figure of the two.

Called by the runner. Adversary: nobody.
Invariants: iperf3 in the guest, its server on this machine's loopback through the gateway's address; the CPU is that of
the helper's whole process tree around the run, and the bytes are those that arrived.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import process_cost
import servers
from image import program_path
from measure import MACHINE, Family, Measure, Settings, Side, Values
from tool_output import Transfer
from visit import Client, Visit, visiting

RATE_PANEL, CPU_PANEL = "Throughput", "Helper CPU for each gigabyte"
DIRECTIONS = {"from_guest": ("from the guest", ""), "to_guest": ("to the guest", "-R")}
MTUS = {"1500": "MTU 1500", "dhcp": "MTU by DHCP"}
STREAMS = (1, 8)
RATE_AIMS = {
    ("1500", 1, "from_guest"): 1.5,
    ("1500", 1, "to_guest"): 1.5,
    ("dhcp", 1, "from_guest"): 1.1,
    ("dhcp", 1, "to_guest"): 1.3,
    ("1500", 8, "from_guest"): 1.3,
    ("1500", 8, "to_guest"): 1.3,
    ("dhcp", 8, "from_guest"): 1.0,
    ("dhcp", 8, "to_guest"): 1.0,
}
CPU_AIMS = {
    ("1500", "from_guest"): 0.7,
    ("dhcp", "from_guest"): 0.9,
    ("1500", "to_guest"): 0.45,
    ("dhcp", "to_guest"): 0.6,
}


@dataclass(frozen=True)
class Case:
    """One transfer."""

    mtu: str  # a key of MTUS
    streams: int
    direction: str  # a key of DIRECTIONS

    @property
    def key(self) -> str:
        return f"mtu_{self.mtu}.streams_{self.streams}.{self.direction}"

    @property
    def title(self) -> str:
        streams = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return f"{MTUS[self.mtu]}, {streams}, {DIRECTIONS[self.direction][0]}"


def cases() -> Iterator[Case]:
    """Every combination."""
    for mtu, streams, direction in product(MTUS, STREAMS, DIRECTIONS):
        yield Case(mtu, streams, direction)


def measures(_settings: Settings) -> list[Measure]:
    """Two for each case."""
    rates = [
        Measure(
            f"throughput.{case.key}",
            RATE_PANEL,
            case.title,
            "Gbit/s",
            more_is_better=True,
            aim=RATE_AIMS[case.mtu, case.streams, case.direction],
            steady=case.streams == 1,
        )
        for case in cases()
    ]
    costs = [
        Measure(
            f"cpu_per_gb.{case.key}",
            CPU_PANEL,
            case.title,
            "s/GB",
            aim=CPU_AIMS[case.mtu, case.direction],
            floor=f"floor.{case.direction}",
        )
        for case in cases()
    ]
    return rates + costs


def transfer(client: Client, port: int, streams: int, direction: str, seconds: float) -> Transfer:
    """One run, at the MTU that is set; the direction is a key of DIRECTIONS."""
    flag = DIRECTIONS[direction][1]
    return Transfer.parse(
        client.load(f"iperf3 -c {client.gateway} -p {port} -t {seconds:g} -P {streams} {flag} -i 0 -J", seconds)
    )


def set_mtu(visit: Visit, mtu: str) -> None:
    """The guest announces its MSS by its own MTU, so nothing has to be told to the helper."""
    visit.guest.output(f"ip link set eth0 mtu {1500 if mtu == '1500' else visit.dhcp_mtu}")


def run(side: Side, settings: Settings, values: Values) -> None:
    """All cases in one visit."""
    with visiting(side, settings) as visit, servers.iperf3() as port:
        for case in cases():
            set_mtu(visit, case.mtu)
            before = process_cost.run_seconds(visit.helper.pid)
            done = transfer(visit, port, case.streams, case.direction, settings.seconds)
            used = process_cost.run_seconds(visit.helper.pid) - before
            values[f"throughput.{case.key}"] = done.gigabits_per_second
            values[f"cpu_per_gb.{case.key}"] = used / done.gigabytes


def floor_measures(_settings: Settings) -> list[Measure]:
    """What no helper can be cheaper than: the system calls of one process that has no guest to serve."""
    panel = "The floor: an iperf3 client's own CPU over this machine's loopback"
    return [
        Measure("floor.from_guest", panel, "sending", "s/GB", sides=(MACHINE,)),
        Measure("floor.to_guest", panel, "receiving", "s/GB", sides=(MACHINE,)),
    ]


def run_floor(_side: Side, settings: Settings, values: Values) -> None:
    """Both directions without guest and helper."""
    program = str(program_path("iperf3", "iperf3"))
    with servers.iperf3() as port:
        for direction, (_, flag) in DIRECTIONS.items():
            command = [program, "-c", "127.0.0.1", "-p", str(port), "-t", f"{settings.seconds:g}", "-i", "0", "-J"]
            process = subprocess.Popen([*command, *flag.split()], stdout=subprocess.PIPE)
            assert process.stdout is not None
            output = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                raise servers.ServerFailed(f"{' '.join(command)}: {output.decode()}")
            values[f"floor.{direction}"] = (used.ru_utime + used.ru_stime) / Transfer.parse(output.decode()).gigabytes


FAMILY = Family("throughput", "bulk TCP", measures, run)
FLOOR = Family("floor", "the floor", floor_measures, run_floor, without_helper=True)
