# SPDX-License-Identifier: Apache-2.0
"""Finer accounts of a process tree than CPU ticks: nanoseconds, waits, memory that is not the guest's, our counters.

Called by the families of measures. Adversary: nobody. Invariants: only reads.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import process_tree

COUNTERS = "/memfd:lockgate-counters"
NANOSECONDS = 1e9


def _tasks(pid: int) -> Iterator[Path]:
    for member in process_tree.tree(pid):
        yield from Path(f"/proc/{member}/task").glob("*")


def run_seconds(pid: int) -> float:
    """CPU time of the living tasks of the tree, not rounded to clock ticks: for windows that should cost none."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in _tasks(pid)) / NANOSECONDS


def waits(pid: int) -> int:
    """How often the tree's tasks gave up the processor to wait: each is a wake-up once it goes on."""
    lines = [line for task in _tasks(pid) for line in (task / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))


def _mappings(pid: int, file: str) -> Iterator[tuple[tuple[str, str], bool, list[str]]]:
    """Device and inode of each mapping, whether it is shared, and the lines of smaps that follow."""
    identity, shared, lines = ("", ""), False, list[str]()
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0]:  # an address range; the other lines start with a name and a colon
            yield identity, shared, lines
            identity, shared, lines = (fields[3], fields[4]), fields[1].endswith("s"), []
        else:
            lines.append(line)
    yield identity, shared, lines


def own_pss_bytes(pid: int, guest_pid: int) -> int:
    """Proportional memory of the tree, without the guest's own: a helper that has it mapped does not need it."""
    guests = {
        identity
        for member in process_tree.tree(guest_pid)
        for identity, shared, _ in _mappings(member, "maps")
        if shared and identity[1] != "0"
    }
    total = 0
    for member in process_tree.tree(pid):
        for identity, _, lines in _mappings(member, "smaps"):
            if identity not in guests:
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024


def our_wakeups(pid: int) -> int | None:
    """Returns of epoll_wait() by the page of counters that our worker shares; None for another's helper."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(entry).startswith(COUNTERS):
            with open(entry, "rb") as page:
                return int(struct.unpack_from("=Q", page.read(), 8 * _index(b"wakeups"))[0])
    return None


def _index(name: bytes) -> int:
    from lockgate.core._datapath import ffi, lib  # here: a run without our helper needs no build of ours

    names = [ffi.string(lib.lg_counter_name(index)) for index in range(lib.lg_counter_count())]
    return names.index(name)
