# SPDX-License-Identifier: Apache-2.0
"""Which processes are ending, and may have sockets for a moment yet that nobody will serve.

Called by port_holder.py and socket_holder.py before READY, and only where something is in the way of a start;
taken_ports.py and made_files.py wait by the measure that is here.
Adversary: other users' processes, which choose their own names; they make a start wait, and fail, at worst. Invariants:
what cannot be read is not ending.

A process that is killed is told here from the kill on: first SIGKILL is pending, then it is exiting, then a zombie. One
of a helper's processes takes the others along, each after the one before: the keeper control and worker, by the signal
that they have asked for, and control, while it still imports, by the end of its channel; these the keeper, which waits
for them.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PATIENCE = 2.0  # seconds, with a helper that was killed; it ends in some hundredths
_PAUSE = 0.02  # between two looks: nothing tells when a port or a socket is free, and no loop runs yet that could wait

_HELPERS = (b"passt", b"pasta", b"gvproxy")  # somewhere in their names, as for launch.py
_CHILDREN = (b"-control", b"-worker")  # at the end of the names of a keeper's children

# Columns of /proc/PID/stat behind the name, which proc_pid_stat(5) counts from 1, with two before these.
_STATE, _PARENT, _FLAGS, _PENDING = 0, 1, 6, 28
_EXITING = 0x4 | 0x400  # PF_EXITING, PF_SIGNALED: <linux/sched.h>
_SIGKILL = 1 << 8


class Patience:
    """How long the same ports, or the same socket, are tried again."""

    def __init__(self, seconds: float = PATIENCE) -> None:
        self._deadline = time.monotonic() + seconds
        self._unseen = False  # whether nobody was seen to hold one of them a moment ago

    def waits(self, looks: Sequence[bool | None]) -> bool:
        """`looks`: whether the holder of each is leaving, as port_holder and socket_holder have it. Whether all will be
        free soon: then a moment has passed. Who is not seen at two looks is there all the same: a program that does not
        listen yet."""
        if not looks or False in looks or (self._unseen and None in looks) or time.monotonic() >= self._deadline:
            return False
        self._unseen = None in looks
        time.sleep(_PAUSE)
        return True


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
