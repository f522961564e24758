# SPDX-License-Identifier: Apache-2.0
"""vring: what the front end has said of one ring, and whether that is enough to start it.

Called by session.py. Owns the ring's kick, call and err descriptors, as long as the front end's connection lasts, so
that a replaced worker can be given them again.

Adversary: the front end. A ring is only startable when its size is a power of two and its three parts are aligned and
lie in the guest's memory; session.py asks fault() before each start, and again when memory has changed.

Words: a ring is *started* when the front end says so (a kick descriptor came, no GET_VRING_BASE since), and *active*
when the worker runs it. It may be started and not active: after its memory went away, or while it is disabled and the
memory or the worker was replaced. User-mode Linux disables rings, frees them and never says GET_VRING_BASE, so that a
disabled ring must not be touched again unasked: it could have become anything else of the guest's.
"""

from __future__ import annotations

import os
import select
import struct
from dataclasses import dataclass
from typing import Protocol

from lockgate.plugin.vhost_user.messages import VRING_F_LOG, VRING_SIZE_MAX, VringAddr


class Memory(Protocol):
    def holds(self, user_addr: int, length: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class VringStart:
    """All that the worker must know to run a ring: `struct lg_cmd_vring` in other words.

    The descriptors are lent: the worker's side sends copies and closes none.
    """

    index: int
    size: int
    base: int  # the next avail index; means nothing with base_from_used
    desc: int  # user addresses, as in SET_VRING_ADDR
    avail: int
    used: int
    log_addr: int
    enabled: bool
    logged: bool  # writes to the used ring are marked at log_addr
    base_from_used: bool  # whoever ran the ring before is gone: go on at used->idx
    kick_fd: int
    call_fd: int | None
    err_fd: int | None


def size_fault(size: int) -> str | None:
    # virtio 1.2, 2.7: "Queue Size ... is always a power of 2. The maximum Queue Size value is 32768."
    if size == 0 or size & (size - 1) or size > VRING_SIZE_MAX:
        return f"a ring of {size} descriptors: a power of two from 1 to {VRING_SIZE_MAX} is expected"
    return None


def parts(addr: VringAddr, size: int) -> tuple[tuple[str, int, int, int], ...]:
    """Name, address, bytes and alignment of the three parts of a split ring; virtio 1.2, 2.7 (table of alignments).

    flags and idx are two bytes each, and the event index behind the entries is counted whether it is used or not.
    """
    return (
        ("descriptor table", addr.desc, 16 * size, 16),
        ("avail ring", addr.avail, 6 + 2 * size, 2),
        ("used ring", addr.used, 6 + 8 * size, 4),
    )


class Vring:
    """One ring of the session."""

    __slots__ = ("index", "size", "addr", "base", "base_known", "kick_fd", "call_fd", "err_fd", "enabled", "active")

    def __init__(self, index: int) -> None:
        self.index = index
        self.size = 0  # not said yet
        self.addr: VringAddr | None = None
        self.base = 0
        self.base_known = True  # False: a worker has it; if that dies, used->idx in the guest's memory is what is left
        self.kick_fd: int | None = None  # what makes the ring started
        self.call_fd: int | None = None
        self.err_fd: int | None = None
        self.enabled = False
        self.active = False

    @property
    def started(self) -> bool:
        return self.kick_fd is not None

    @property
    def running(self) -> bool:
        """Frames pass."""
        return self.active and self.enabled

    def set_kick(self, fd: int | None) -> None:
        self.kick_fd = _exchange(self.kick_fd, fd)

    def set_call(self, fd: int | None) -> None:
        self.call_fd = _exchange(self.call_fd, fd)

    def set_err(self, fd: int | None) -> None:
        self.err_fd = _exchange(self.err_fd, fd)

    def fault(self, memory: Memory) -> str | None:
        """Why this ring cannot be started with this memory, or None."""
        if not self.size:
            return f"ring {self.index} has no size: SET_VRING_NUM must come before"
        if self.addr is None:
            return f"ring {self.index} has no addresses: SET_VRING_ADDR must come before"
        return self.addr_fault(self.addr, memory)

    def addr_fault(self, addr: VringAddr, memory: Memory | None) -> str | None:
        """Why the ring cannot be at these addresses, or None. Without `memory`, as long as that or the ring's size is
        not known, only their alignment is looked at."""
        for name, start, length, alignment in parts(addr, self.size):
            if start % alignment:
                return f"the {name} of ring {self.index} is at {start:#x}: a multiple of {alignment} is expected"
            if memory is not None and not memory.holds(start, length):
                return f"the {name} of ring {self.index}, {length} bytes at {start:#x}, is outside the guest's memory"
        return None

    def moves(self, addr: VringAddr) -> bool:
        """Whether these addresses are others than before."""
        before = self.addr
        return before is None or (before.desc, before.avail, before.used) != (addr.desc, addr.avail, addr.used)

    def overlaps(self, user_addr: int, size: int) -> bool:
        """Whether a part of the ring lies in these bytes of the front end."""
        if self.addr is None:
            return False
        return any(start < user_addr + size and user_addr < start + n for _, start, n, _ in parts(self.addr, self.size))

    def start(self) -> VringStart:
        """What to tell the worker. Only after fault() found nothing, and while started."""
        assert self.addr is not None and self.kick_fd is not None, "checked by fault() and started"
        return VringStart(
            index=self.index,
            size=self.size,
            base=self.base,
            desc=self.addr.desc,
            avail=self.addr.avail,
            used=self.addr.used,
            log_addr=self.addr.log,
            enabled=self.enabled,
            logged=bool(self.addr.flags & VRING_F_LOG),
            base_from_used=not self.base_known,
            kick_fd=self.kick_fd,
            call_fd=self.call_fd,
            err_fd=self.err_fd,
        )

    def signal(self) -> None:
        """Has the worker look at the ring, and the guest too."""
        if self.kick_fd is not None:
            _signal(self.kick_fd)
        self.signal_call()

    def signal_call(self) -> None:
        if self.call_fd is not None:
            _signal(self.call_fd)

    def reset(self) -> None:
        """As after connecting: nothing is known, no descriptor is held."""
        self.set_kick(None)
        self.set_call(None)
        self.set_err(None)
        self.size = 0
        self.addr = None
        self.base = 0
        self.base_known = True
        self.enabled = False
        self.active = False


def _exchange(old: int | None, new: int | None) -> int | None:
    if old is not None:
        os.close(old)
    return new


def _signal(fd: int) -> None:
    """Adds one to an eventfd of the front end, which may be a pipe (User-mode Linux) or anything else.

    Not when it would block: then a signal is pending anyway. That nobody is left to read it is the front end's affair.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    try:
        if poll.poll(0):
            os.write(fd, struct.pack("=Q", 1))
    except OSError:
        pass
