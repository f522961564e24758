# SPDX-License-Identifier: Apache-2.0
"""What a process and all its descendants cost: CPU seconds and memory, read from /proc.

Called by helper.py. Adversary: nobody. Invariants: only reads; a process that ends while we look counts as gone.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

GONE_SECONDS = 10
TICKS = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name, field 3 (state) first; see proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def tree(pid: int) -> list[int]:
    """The process and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found.extend(children.get(parent, []))
    return found


def name(pid: int) -> str:
    """The process's own name, as `ps -o comm` shows it; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def cpu_seconds(pid: int) -> float:
    """User and system time of the tree, with that of descendants that have ended and were waited for."""
    ticks = 0
    for member in tree(pid):
        if fields := _stat(member):
            ticks += sum(int(value) for value in fields[11:15])  # utime stime cutime cstime
    return ticks / TICKS


def pss_bytes(pid: int) -> int | None:
    """Proportional memory of the tree; None if we may not see it: that of a sandboxed process is root's to see."""
    total = 0
    for member in tree(pid):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            return None
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def await_gone(pids: list[int]) -> list[int]:
    """Those of the processes that are still there when the time is over."""
    descriptors = {}
    for pid in pids:
        try:
            descriptors[os.pidfd_open(pid)] = pid
        except ProcessLookupError:
            pass
    still = []
    for descriptor, pid in descriptors.items():
        watched = select.poll()
        watched.register(descriptor, select.POLLIN)
        if not watched.poll(GONE_SECONDS * 1000):
            still.append(pid)
        os.close(descriptor)
    return still
