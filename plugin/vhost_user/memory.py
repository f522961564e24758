# SPDX-License-Identifier: Apache-2.0
"""memory: which pieces of the guest's memory the front end has shared, and with which descriptors.

Called by session.py. It owns the descriptors: control keeps them for as long as the regions last, so that a worker that
replaces another one can be given the same memory. Nothing is mapped here.

Adversary: the front end. Every region is checked before it is kept: the sums cannot wrap, no two regions share an
address of the guest or of the front end, and a file is as long as its region says (a shorter one would end the worker
with SIGBUS at the first touch of what is missing).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from lockgate.plugin.vhost_user.messages import MEM_SLOTS, Region

ADDRESS_END = 1 << 64
OFFSET_END = 1 << 63  # off_t is signed


class SharedRegion:
    """One region and the descriptor that it is mapped from, which lives exactly as long as this object is kept."""

    __slots__ = ("at", "fd")

    def __init__(self, at: Region, fd: int) -> None:
        self.at = at
        self.fd = fd


def describe(at: Region) -> str:
    return f"region of {at.size} bytes at guest address {at.guest_addr:#x}"


def _file_fault(what: str, fd: int, offset: int, size: int) -> str | None:
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        if status.st_size < offset + size:
            return f"the {what} is at offset {offset} of a file that has only {status.st_size} bytes"
    elif not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        # A device (/dev/dax and the like) has no size that fstat() tells: there mmap() has the last word.
        return f"the {what} came with a descriptor that cannot be mapped: a memory file is expected"
    return None


def _overlap(one: int, one_size: int, other: int, other_size: int) -> bool:
    return one < other + other_size and other < one + one_size


def region_fault(at: Region, fd: int, others: Sequence[Region]) -> str | None:
    """Why this region cannot be taken beside `others`, or None."""
    if at.size == 0:
        return f"the {describe(at)} is empty"
    if max(at.guest_addr, at.user_addr) + at.size > ADDRESS_END or at.mmap_offset + at.size > OFFSET_END:
        return f"the {describe(at)}, user address {at.user_addr:#x}, offset {at.mmap_offset:#x}, ends beyond 64 bits"
    for other in others:
        if _overlap(at.guest_addr, at.size, other.guest_addr, other.size):
            return f"the {describe(at)} overlaps the {describe(other)}"
        if _overlap(at.user_addr, at.size, other.user_addr, other.size):
            return f"the {describe(at)} overlaps the {describe(other)} in the front end's addresses"
    return _file_fault(describe(at), fd, at.mmap_offset, at.size)


class GuestMemory:
    """The regions in force."""

    __slots__ = ("regions",)

    def __init__(self) -> None:
        self.regions: list[SharedRegion] = []

    def table_fault(self, table: Sequence[Region], fds: Sequence[int]) -> str | None:
        """Why these regions cannot replace all, or None."""
        for i, (at, fd) in enumerate(zip(table, fds, strict=True)):
            if fault := region_fault(at, fd, table[:i]):
                return fault
        return None

    def replace(self, table: Sequence[Region], fds: Sequence[int]) -> None:
        """Takes the descriptors over and closes those of before."""
        self.clear()
        self.regions = [SharedRegion(at, fd) for at, fd in zip(table, fds, strict=True)]

    def add_fault(self, at: Region, fd: int) -> str | None:
        if len(self.regions) >= MEM_SLOTS:
            return f"the {describe(at)} is one too many: {MEM_SLOTS} regions are the most (GET_MAX_MEM_SLOTS says so)"
        return region_fault(at, fd, [region.at for region in self.regions])

    def add(self, at: Region, fd: int) -> SharedRegion:
        region = SharedRegion(at, fd)
        self.regions.append(region)
        return region

    def find(self, at: Region) -> SharedRegion | None:
        """The region that REM_MEM_REG means: by guest address, user address and size; the offset is ignored."""
        for region in self.regions:
            if region.at[:3] == at[:3]:
                return region
        return None

    def remove(self, region: SharedRegion) -> None:
        self.regions.remove(region)
        os.close(region.fd)

    def holds(self, user_addr: int, length: int) -> bool:
        """Whether all these bytes, at an address of the front end, lie in one region."""
        return any(
            at.user_addr <= user_addr and user_addr + length <= at.user_addr + at.size
            for at in (region.at for region in self.regions)
        )

    def clear(self) -> None:
        for region in self.regions:
            os.close(region.fd)
        self.regions = []


class DirtyLog:
    """Where the pages that we write are marked during a migration, and what tells the front end of it."""

    __slots__ = ("fd", "size", "offset", "event_fd")

    def __init__(self) -> None:
        self.fd: int | None = None
        self.size = 0
        self.offset = 0
        self.event_fd: int | None = None

    def fault(self, size: int, offset: int, fd: int) -> str | None:
        """Why the log cannot be there, or None. That it covers all memory is not asked: the worker checks each mark."""
        if size == 0:
            return "the dirty log is empty"
        if offset + size > OFFSET_END:
            return f"the dirty log of {size} bytes at offset {offset:#x} ends beyond 63 bits"
        return _file_fault(f"dirty log of {size} bytes", fd, offset, size)

    def set_table(self, fd: int, size: int, offset: int) -> None:
        if self.fd is not None:
            os.close(self.fd)
        self.fd, self.size, self.offset = fd, size, offset

    def set_event(self, fd: int) -> None:
        if self.event_fd is not None:
            os.close(self.event_fd)
        self.event_fd = fd

    def close(self) -> None:
        for fd in (self.fd, self.event_fd):
            if fd is not None:
                os.close(fd)
        self.fd = self.event_fd = None
