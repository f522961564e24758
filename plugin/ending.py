# SPDX-License-Identifier: Apache-2.0
"""Which processes are ending, and may have sockets for a moment yet that nobody will serve.

Called by port_holder.py and socket_holder.py before READY, and only where something is in the way of a start; those
who wait have their measure here.
Adversary: other users' processes, which choose their own names; they make a start wait, and fail, at worst. Invariants:
what cannot be read is not ending.

A process that is killed is told here from the kill on: first SIGKILL is pending, then it is exiting, then a zombie. One
of a helper's processes takes the others along, each after the one before: the keeper control and worker, by the signal
that they have asked for, and control, while it still imports, by the end of its channel; these the keeper, which waits
for them.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 2.0  # seconds, with a helper that was killed; it ends in some hundredths
PAUSE = 0.02  # between two looks: nothing tells when a port or a socket is free

_HELPERS = (b"passt", b"pasta", b"gvproxy")  # somewhere in their names, as for launch.py
_CHILDREN = (b"-control", b"-worker")  # at the end of the names of a keeper's children

# Columns of /proc/PID/stat behind the name, which proc_pid_stat(5) counts from 1, with two before these.
_STATE, _PARENT, _FLAGS, _PENDING = 0, 1, 6, 28
_EXITING = 0x4 | 0x400  # PF_EXITING, PF_SIGNALED: <linux/sched.h>
_SIGKILL = 1 << 8


class _Process:
    __slots__ = ("ending", "is_child", "is_helper", "parent", "pid")

    def __init__(self, stat: bytes) -> None:
        """Raises ValueError or IndexError."""
        head, _, rest = stat.rpartition(b") ")
        number, _, name = head.partition(b" (")
        columns = rest.split()
        self.pid = int(number)
        self.parent = int(columns[_PARENT])
        self.is_helper = any(one in name for one in _HELPERS)
        self.is_child = self.is_helper and name.endswith(_CHILDREN)
        killed = int(columns[_PENDING]) & _SIGKILL or int(columns[_FLAGS]) & _EXITING
        self.ending = bool(killed) or columns[_STATE] in (b"Z", b"X")


def is_ending(pid: int, proc: str = "/proc") -> bool:
    """Whether it is, or has ended; or another of its helper's processes is, or has."""
    processes = {one.pid: one for one in _processes(proc)}
    own = processes.get(pid)
    if own is None or own.ending:
        return True
    keeper = processes.get(own.parent)
    if own.is_child and not (keeper and keeper.is_helper):
        return True  # the keeper was killed: somebody else is the parent now
    related = [one for one in processes.values() if one.parent == pid]
    return any(one.ending and one.is_helper for one in [*related, *([keeper] if keeper else [])])


def helper_is_ending(proc: str = "/proc") -> bool:
    """Whether any helper's process is: one that lets go of its sockets has no names for them any more."""
    return any(one.ending and one.is_helper for one in _processes(proc))


def _processes(proc: str) -> Iterator[_Process]:
    try:
        names = os.listdir(proc)
    except OSError:
        return
    for name in names:
        if name.isdigit():
            try:
                with open(f"{proc}/{name}/stat", "rb", buffering=0) as file:
                    yield _Process(file.read(1024))
            except (OSError, ValueError, IndexError):
                continue  # ended meanwhile
