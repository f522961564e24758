# SPDX-License-Identifier: Apache-2.0
"""One visit: a helper, a guest behind it with its addresses, and the few things that every measure does there.

Called by the families of measures. Adversary: nobody.
Invariants: every visit boots afresh, so that no measure inherits another's flows, timers or memory; helper and guest
are gone when it ends, however it ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import process_cost
import process_tree
from guest import Guest
from helper import Helper
from measure import Settings, Side

CLIENTS = {"aria2c": "aria2", "sockperf": "sockperf", "wrk": "wrk"}  # with Debian's packages
MEMORY_MB = 1024  # the paced download lies in the guest's memory
PATIENCE = 60  # seconds beyond what a command should take: then it hangs


@dataclass(frozen=True)
class Window:
    """What a helper did in a stretch of time."""

    cpu_seconds: float
    waits_per_second: float  # of all its tasks, by the kernel
    wakeups_per_second: float | None  # of our worker, by its own count


class Client(Protocol):
    """Where a load comes from, and by what address it finds its server."""

    gateway: str

    def load(self, command: str, seconds: float) -> str:
        """The output of a client that should take about so long."""


class Watched(Protocol):
    """A helper that runs."""

    @property
    def pid(self) -> int:
        """Of its first process."""

    def watch(self, seconds: float) -> None:
        """Lets time pass, and fails if it ends meanwhile."""


def window(helper: Watched, seconds: float) -> Window:
    """Lets time pass, and tells what the helper did in it."""
    pid = helper.pid
    before = process_cost.run_seconds(pid), process_cost.waits(pid), process_cost.our_wakeups(pid)
    helper.watch(seconds)
    after = process_cost.run_seconds(pid), process_cost.waits(pid), process_cost.our_wakeups(pid)
    ours = None if before[2] is None or after[2] is None else (after[2] - before[2]) / seconds
    return Window(after[0] - before[0], (after[1] - before[1]) / seconds, ours)


class Visit:
    """A booted guest and what it reaches this machine's loopback by. Use `visiting`."""

    def __init__(self, helper: Helper, guest: Guest) -> None:
        self.helper = helper
        self.guest = guest
        self.gateway = guest.gateway()
        self.dhcp_mtu = int(guest.output("cat /sys/class/net/eth0/mtu"))

    def load(self, command: str, seconds: float) -> str:
        """The output of a client that should take about so long."""
        return self.guest.output(command, seconds + PATIENCE)

    def received_bytes(self) -> int:
        """By the guest's interface."""
        return int(self.guest.output("cat /sys/class/net/eth0/statistics/rx_bytes"))

    def own_pss_bytes(self) -> int:
        """Of the helper's tree, without the guest's memory."""
        return process_cost.own_pss_bytes(self.helper.pid, self.guest.pid)

    def window(self, seconds: float) -> Window:
        """Of this visit's helper."""
        return window(self.helper, seconds)


def bind(pid: int, processor: int) -> None:
    """A process tree to one processor, with what it will start.

    User-mode Linux has one virtual processor, but is two processes that hand over to each other at each system call.
    Where the scheduler has them on two processors that fall asleep in between, that costs more than all else, so that
    the guest is the slower the less its helper works; bound to one, it is what its kernel takes itself for.
    """
    for member in process_tree.tree(pid):
        for task in Path(f"/proc/{member}/task").iterdir():
            os.sched_setaffinity(int(task.name), {processor})


@contextmanager
def visiting(
    side: Side,
    settings: Settings,
    kind: str | None = None,
    more_files: Mapping[str, bytes] | None = None,
    mac: str | None = None,
) -> Iterator[Visit]:
    """Boots the guest behind that helper, of the chosen kind or another, with an IPv4 address by DHCP."""
    name, kind = f"bench-{side.name}", kind or settings.guest
    with ExitStack() as ends:
        helper = Helper(name, command=side.command_for(kind))
        ends.callback(helper.close)
        helper.wait_ready()
        guest = Guest.boot(name, kind, helper.socket, MEMORY_MB, mac, more_programs=CLIENTS, more_files=more_files)
        ends.callback(guest.kill)
        if settings.processor is not None:
            bind(guest.pid, settings.processor)
        guest.network_up("inet")
        yield Visit(helper, guest)
