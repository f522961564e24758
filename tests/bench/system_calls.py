# SPDX-License-Identifier: Apache-2.0
"""System calls for each gigabyte and each request, counted in runs of their own whose speed is not reported.

Called by the runner. Adversary: nobody.
Invariants: counted by the kernel's tracepoints through `perf stat`, exactly between the start and the end of the load.
strace would not do: a helper that it slows down finds more work at each wake-up, and was seen to make a sixth of its
calls for each gigabyte. Needs root, or kernel.perf_event_paranoid at most -1.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import process_tree
import request_response
import servers
import throughput
from guest import DIES_WITH_US
from image import program_path
from measure import Family, Measure, Settings, Side, Values
from tool_output import perf_counts
from visit import Visit, visiting

ALL = "raw_syscalls:sys_enter"
# Shown one by one; the others count in the sum.
NAMES = (
    *("epoll_wait", "epoll_ctl", "read", "write", "recvmsg", "recvfrom", "sendmsg", "sendto", "timerfd_settime"),
    *("getsockopt", "setsockopt", "ioctl", "socket", "bind", "connect", "shutdown", "close", "timerfd_create"),
)
CASES = [throughput.Case(mtu, 1, direction) for mtu in throughput.MTUS for direction in throughput.DIRECTIONS]


def measures(_settings: Settings) -> list[Measure]:
    """The bulk cases with one stream, and both kinds of requests."""
    bulk = "System calls for each gigabyte (separate runs)"
    small = "System calls for each request (separate runs)"
    rows = [Measure(f"calls_per_gb.{case.key}", bulk, case.title, "/GB") for case in CASES]
    for kind, (title, _) in request_response.KINDS.items():
        rows.append(Measure(f"calls_per_request.{kind}", small, title, ""))
    return rows


class PerfFailed(Exception):
    """The counters cannot be had."""


class Counts:
    """Counts of a tree's system calls by name, filled when `counting` ends."""

    def __init__(self) -> None:
        self.by_name: dict[str, int] = {}

    def note(self, key: str, units: float, values: Values) -> None:
        """Puts the sum and its parts down, for each of so many units."""
        if ALL not in self.by_name:
            raise PerfFailed(f"perf stat counted nothing for {key}")
        values[key] = self.by_name[ALL] / units
        for name in NAMES:
            values[f"{key}/{name}"] = self.by_name.get(f"syscalls:sys_enter_{name}", 0) / units


@contextmanager
def counting(visit: Visit) -> Iterator[Counts]:
    """Counts the helper's system calls while the body runs; perf answers "ack" once a switch has been thrown."""
    events = ",".join([ALL, *(f"syscalls:sys_enter_{name}" for name in NAMES)])
    pids = ",".join(str(pid) for pid in process_tree.tree(visit.helper.pid))
    orders, switch = os.pipe()
    answers, answer = os.pipe()
    command = [str(program_path("perf", "linux-perf")), "stat", "-x,", "-D", "-1", "-e", events, "-p", pids]
    process = subprocess.Popen(
        [*DIES_WITH_US, *command, f"--control=fd:{orders},{answer}"],
        pass_fds=[orders, answer],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for theirs in (orders, answer):
        os.close(theirs)
    counts = Counts()
    try:
        _order("enable", switch, answers, process)
        yield counts
        _order("disable", switch, answers, process)
        process.send_signal(signal.SIGINT)
        counts.by_name = perf_counts(process.communicate()[1])
    finally:
        process.kill()
        process.wait()
        os.close(switch)
        os.close(answers)


def _order(order: str, switch: int, answers: int, process: subprocess.Popen[str]) -> None:
    try:
        os.write(switch, f"{order}\n".encode())
        answered = os.read(answers, 16)
    except BrokenPipeError:
        answered = b""
    if not answered:
        raise PerfFailed(f"perf stat counts no system calls: {process.communicate()[1]}")


def run(side: Side, settings: Settings, values: Values) -> None:
    """One visit."""
    with visiting(side, settings) as visit, servers.iperf3() as bulk, servers.nginx() as web:
        for case in CASES:
            throughput.set_mtu(visit, case.mtu)
            with counting(visit) as counts:
                done = throughput.transfer(visit, bulk, case.streams, case.direction, settings.seconds)
            counts.note(f"calls_per_gb.{case.key}", done.gigabytes, values)
        for kind in request_response.KINDS:
            with counting(visit) as counts:
                requests = request_response.request(visit, web, kind, settings.seconds)
            counts.note(f"calls_per_request.{kind}", requests.count, values)


FAMILY = Family("calls", "system calls", measures, run)
