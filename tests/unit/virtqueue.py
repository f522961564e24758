# SPDX-License-Identifier: Apache-2.0
"""The other side of our rings for tests: a front end's shared memory, a guest's driver of one split virtqueue, and a
slow device that reads a chain as virtio 1.2, 2.7 words it. Used by test_vring and the test_link_vhost files.

Adversary: nobody. Invariants: indexes are Python integers that never wrap, cut to 16 bits only where they are written
into the ring; the slow device shares no line of thought with core/datapath, and returns every fault that a chain
deserves, so that a test need not know which of two is found first.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from core_pieces import COUNTERS, ffi, lib

from lockgate.plugin import pcap

NEXT, WRITE, INDIRECT = 1, 2, 4  # of a descriptor
NO_INTERRUPT = NO_NOTIFY = 1  # of avail->flags, of used->flags
USER_SHIFT = 0x7F00_0000_0000  # what the front end adds to a guest address: nothing may mistake one for the other
KICK_SOURCE = 4


class Place(NamedTuple):
    """One region of guest memory, and where it starts in its descriptor."""

    guest: int
    size: int
    offset: int = 0

    @property
    def end(self) -> int:
        return self.guest + self.size


# The rings' own region ends where LEFT begins, and LEFT where RIGHT begins: side by side for the guest, but three
# mappings for us. RIGHT does not start at a page of its descriptor. Behind RIGHT is a hole.
RINGS = Place(0x10_0000, 0x10_0000)
LEFT = Place(0x20_0000, 0x3000, 0x1000)
RIGHT = Place(0x20_3000, 0x2000, 0x800)
HIGH = Place(1 << 40, 0x2000)
LAYOUT = (RINGS, LEFT, RIGHT, HIGH)


class Memory:
    """What the front end shares: one descriptor a region, mapped here once more."""

    def __init__(self, layout: tuple[Place, ...] = LAYOUT) -> None:
        self.layout = layout
        self.fds = [os.memfd_create(f"region {at}", os.MFD_CLOEXEC) for at in range(len(layout))]
        for fd, place in zip(self.fds, layout, strict=True):
            os.ftruncate(fd, place.offset + place.size)
        self._maps = [mmap.mmap(fd, 0) for fd in self.fds]

    def region(self, at: int) -> Any:
        place = self.layout[at]
        return ffi.new("struct lg_mem_region *", (place.guest, place.size, place.guest + USER_SHIFT, place.offset))

    def spans(self, addr: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(region, offset in it, bytes) for each region that the bytes lie in; nothing where they leave the memory."""
        while length:
            found = [at for at, place in enumerate(self.layout) if place.guest <= addr < place.end]
            if not found:
                yield -1, 0, 0
                return
            place = self.layout[found[0]]
            part = min(length, place.end - addr)
            yield found[0], addr - place.guest, part
            addr, length = addr + part, length - part

    def contains(self, addr: int, length: int) -> bool:
        return all(at >= 0 for at, _, _ in self.spans(addr, length))

    def read(self, addr: int, length: int) -> bytes:
        return b"".join(
            self._maps[at][self.layout[at].offset + offset :][:size] for at, offset, size in self.spans(addr, length)
        )

    def write(self, addr: int, data: bytes) -> None:
        for at, offset, size in self.spans(addr, len(data)):
            start = self.layout[at].offset + offset
            self._maps[at][start : start + size] = data[:size]
            data = data[size:]

    def close(self) -> None:
        for mapped, fd in zip(self._maps, self.fds, strict=True):
            mapped.close()
            os.close(fd)


class Descriptor(NamedTuple):
    addr: int
    length: int
    flags: int = 0
    next: int = 0

    def packed(self) -> bytes:
        return struct.pack("<QIHH", *self)


class Driver:
    """The guest's half of one ring, whose three parts lie in RINGS."""

    def __init__(self, memory: Memory, size: int, start: int = 0, base: int = RINGS.guest) -> None:
        self.memory = memory
        self.size = size
        self.desc = base
        self.avail = base + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) // 4 * 4
        self.offered = start  # chains ever offered
        self.taken_back = start  # used elements ever read
        self._write16(self.avail + 2, start)
        self._write16(self.used + 2, start)

    def _read16(self, addr: int) -> int:
        return int.from_bytes(self.memory.read(addr, 2), "little")

    def _write16(self, addr: int, value: int) -> None:
        self.memory.write(addr, (value % 65536).to_bytes(2, "little"))

    def describe(self, index: int, descriptor: Descriptor) -> None:
        self.memory.write(self.desc + 16 * index, descriptor.packed())

    def offer(self, *heads: int) -> None:
        for at, head in enumerate(heads):
            self._write16(self.avail + 4 + 2 * ((self.offered + at) % self.size), head)
        self.jump(len(heads))

    def jump(self, by: int) -> None:
        """Moves the index, whatever stands in the entries that it passes."""
        self.offered += by
        self._write16(self.avail + 2, self.offered)

    def must_kick(self, since: int, event_idx: bool) -> bool:
        """Whether the chains offered after `since` oblige the driver to notify (2.7.13.4)."""
        if not event_idx:
            return not self._read16(self.used) & NO_NOTIFY
        event = self._read16(self.used + 4 + 8 * self.size)
        return any(index % 65536 == event for index in range(since, self.offered))

    def want_calls(self, flags: int, event: int) -> None:
        self._write16(self.avail, flags)
        self._write16(self.avail + 4 + 2 * self.size, event)

    def used_index(self) -> int:
        """The device's index, as a number that never wraps."""
        return self.taken_back + (self._read16(self.used + 2) - self.taken_back) % 65536

    def take_back(self) -> list[tuple[int, int]]:
        """The (head, bytes written) that the device has published since the last time."""
        elements = []
        for index in range(self.taken_back, self.used_index()):
            raw = self.memory.read(self.used + 4 + 8 * (index % self.size), 8)
            elements.append(struct.unpack("<II", raw))
        self.taken_back = self.used_index()
        return elements

    def setup(self, queue: int, flags: int = 0, base: int | None = None) -> Any:
        """The command that starts the ring."""
        made = ffi.new("struct lg_cmd_vring *")
        made.index, made.size, made.flags = queue, self.size, flags | lib.LG_VRING_ENABLED
        made.base = (self.offered if base is None else base) % 65536
        made.desc, made.avail, made.used = (at + USER_SHIFT for at in (self.desc, self.avail, self.used))
        made.log_addr = self.used
        return made


# ---- the slow device ----


class Buffers(NamedTuple):
    """What a chain is made of: (address, bytes) of each descriptor, in order."""

    parts: list[tuple[int, int]]


def slow_walk(memory: Memory, driver: Driver, head: int, writable: bool, indirect: bool) -> Buffers | set[str]:
    """The buffers of a chain, or every fault that may be found in its first descriptor that has one."""
    table, entries, inside = driver.desc, driver.size, False
    parts: list[tuple[int, int]] = []
    visited: set[int] = set()
    index = head
    if index >= entries:
        return {"head_range"}
    while True:
        if index in visited:
            return {"loop", "too_long"}  # the same way for ever: whichever limit is met first
        visited.add(index)
        if [size for _, _, size in memory.spans(table + 16 * index, 16)] != [16]:
            return {"address"}  # outside, or cut in two by the edge of a region: no table that starts at 16 is
        descriptor = Descriptor(*struct.unpack("<QIHH", memory.read(table + 16 * index, 16)))
        if descriptor.flags & INDIRECT:
            faults = _indirect_faults(memory, descriptor, inside or not indirect)
            if faults:
                return faults
            table, entries, inside = descriptor.addr, descriptor.length // 16, True
            index, visited = 0, set()
            continue
        faults = _buffer_faults(memory, descriptor, writable)
        if descriptor.flags & NEXT and descriptor.next >= entries:
            faults.add("next_range")
        if faults:
            return faults
        parts.append((descriptor.addr, descriptor.length))
        if not descriptor.flags & NEXT:
            return Buffers(parts)
        index = descriptor.next


def _indirect_faults(memory: Memory, descriptor: Descriptor, forbidden: bool) -> set[str]:
    faults = set()
    if forbidden or descriptor.flags & NEXT or not descriptor.length or descriptor.length % 16:
        faults.add("indirect")
    if descriptor.length // 16 > lib.VRING_SIZE_MAX:
        faults.add("indirect")  # 2.7.5.3.1: no chain is longer than a queue
    if not memory.contains(descriptor.addr, 1) or descriptor.addr % 8:
        faults.add("address")
    return faults


def _buffer_faults(memory: Memory, descriptor: Descriptor, writable: bool) -> set[str]:
    faults = set()
    if bool(descriptor.flags & WRITE) != writable:
        faults.add("direction")
    if not memory.contains(descriptor.addr, descriptor.length):
        faults.add("address")
    return faults


# ---- our link under test ----


class Link:
    """A struct link_vhost with its counters, its epoll and a front end's memory."""

    def __init__(self, memory: Memory, features: int = 0) -> None:
        self.memory = memory
        self.counters = ffi.new("uint64_t[]", len(COUNTERS))
        self.epoll = select.epoll()
        self.pcap: Any = ffi.new("struct pcap_ring *")
        self.vhost: Any = ffi.new("struct link_vhost *")
        lib.link_vhost_init(self.vhost, self.counters, self.pcap, self.epoll.fileno(), KICK_SOURCE)
        for at, fd in enumerate(memory.fds):
            assert lib.memory_add(ffi.addressof(self.vhost, "memory"), memory.region(at), fd) == 0
        lib.link_vhost_features(self.vhost, features)
        self.link = ffi.addressof(self.vhost, "link")
        self.operations = self.vhost.link.operations

    def start(self, setup: Any, kick: int = -1, call: int = -1, err: int = -1) -> int:
        return int(lib.link_vhost_start(self.vhost, setup, kick, call, err))

    def stop(self, queue: int) -> int:
        """The next avail index."""
        next_avail = ffi.new("uint16_t *")
        assert lib.link_vhost_stop(self.vhost, queue, next_avail) == 0
        return int(next_avail[0])

    def flush(self, now_ms: int = 0) -> None:
        self.operations.flush(self.link, now_ms)

    def ring(self, queue: int) -> Any:
        return ffi.addressof(self.vhost.ring, queue)

    def fault(self, queue: int) -> str:
        return str(ffi.string(lib.lg_fault_name(self.vhost.ring[queue].fault)), "ascii")

    def count(self, name: str) -> int:
        return int(self.counters[COUNTERS.index(name)])

    def host(self, addr: int, length: int) -> list[tuple[int, int]]:
        """(our address, bytes) of each region that the guest's bytes lie in."""
        found = []
        for at, offset, size in self.memory.spans(addr, length):
            (region,) = [
                region
                for region in self.vhost.memory.region[0 : self.vhost.memory.count]
                if region.at.guest_addr == self.memory.layout[at].guest
            ]
            found.append((int(ffi.cast("uintptr_t", region.host)) + offset, size))
        return found

    def capture(self) -> pcap.RingReader:
        """Turns on the copying of frames; what reads the copies."""
        fd = os.memfd_create("pcap", os.MFD_CLOEXEC)
        os.ftruncate(fd, lib.LG_PCAP_HEAD_BYTES + lib.LG_PCAP_RING_BYTES)
        assert lib.pcap_ring_map(self.pcap, fd, -1, self.counters) == 0
        self.pcap.on = True
        reader = pcap.RingReader(mmap.mmap(fd, 0))
        os.close(fd)
        return reader

    def close(self) -> None:
        lib.link_vhost_reset(self.vhost)
        self.epoll.close()
        self.memory.close()


def joined(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pieces of which none continues another."""
    out: list[tuple[int, int]] = []
    for at, size in pieces:
        if out and sum(out[-1]) == at:
            out[-1] = (out[-1][0], out[-1][1] + size)
        else:
            out.append((at, size))
    return out


def iovecs(array: Any, count: int) -> list[tuple[int, int]]:
    return [(int(ffi.cast("uintptr_t", array[at].iov_base)), array[at].iov_len) for at in range(count)]
