# SPDX-License-Identifier: Apache-2.0
"""core/datapath/link_vhost.c, frames to the guest, against a queue of buffers that is filled byte by byte."""

from __future__ import annotations

import errno
import faulthandler
import mmap
import os
import signal
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from core_pieces import EXAMPLES, ffi, lib
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from virtqueue import LEFT, NEXT, RIGHT, RINGS, WRITE, Descriptor, Driver, Link, Memory

RECEIVEQ, FRAME_MIN = lib.RECEIVEQ, lib.FRAME_BYTES_MIN
MRG, LOG_ALL, EVENT_IDX = 1 << lib.VIRTIO_NET_F_MRG_RXBUF, 1 << lib.VHOST_F_LOG_ALL, 1 << lib.VIRTIO_RING_F_EVENT_IDX
NET_HEADER = 12
SLOT = 0x1100  # two parts of 2048, and a byte behind each
DATA = RINGS.guest + 0x80000
# Where the buffers of each head lie: some end in one region and go on in the next.
PLACES = [LEFT.guest - 100, LEFT.end - 30, *(DATA + SLOT * at for at in range(10))]


class Buffer(NamedTuple):
    """One chain that the guest offers: the bytes of each of its descriptors."""

    head: int
    parts: list[tuple[int, int]]  # (guest address, bytes)

    @property
    def size(self) -> int:
        return sum(size for _, size in self.parts)


class Reserved(NamedTuple):
    buffers: list[Buffer]
    header: int
    payload: int
    header_iov: list[Any]
    payload_iov: list[Any]


class Receiver:
    """A driver's receiveq and our link, and what is reserved of it."""

    def __init__(self, size: int = 64, start: int = 0, features: int = MRG) -> None:
        self.memory = Memory()
        self.link = Link(self.memory, features)
        self.driver = Driver(self.memory, size, start)
        assert self.link.start(self.driver.setup(RECEIVEQ)) == 0
        self.pieces = ffi.new("struct payload_pieces *")

    def offer(self, buffer: Buffer) -> None:
        for at, (addr, size) in enumerate(buffer.parts):
            last = at + 1 == len(buffer.parts)
            index = buffer.head + at
            self.driver.describe(index, Descriptor(addr, size, WRITE | (0 if last else NEXT), 0 if last else index + 1))
            self.memory.write(addr, b"\xee" * size)
        self.driver.offer(buffer.head)

    def reserve(self, header: int, payload: int) -> tuple[int, Any, list[Any], list[Any]]:
        """The result, the bytes of payload, and writable views of the header's and the payload's pieces."""
        room, before = ffi.new("struct guest_room *"), self.pieces.count
        err = self.link.operations.reserve(self.link.link, header, payload, self.pieces if payload else ffi.NULL, room)
        if err:
            assert self.pieces.count == before, "what was refused has left nothing"
            return err, 0, [], []
        header_iov = [ffi.buffer(p.iov_base, p.iov_len) for p in room.header[0 : room.header_count]]
        payload_iov = [ffi.buffer(p.iov_base, p.iov_len) for p in self.pieces.iov[before : self.pieces.count]]
        assert sum(map(len, header_iov)) == header and all(map(len, header_iov + payload_iov))
        assert sum(map(len, payload_iov)) == room.payload
        return 0, room.payload, header_iov, payload_iov

    def commit(self, length: int, offload: tuple[int, ...] = (0, 0, 0, 0, 0, 0)) -> None:
        self.link.operations.commit(self.link.link, length, ffi.new("struct offload *", offload))

    def rollback(self) -> None:
        self.link.operations.rollback(self.link.link)
        self.pieces.count = 0

    def flush(self) -> list[tuple[int, int]]:
        self.link.flush()
        return self.driver.take_back()

    def close(self) -> None:
        self.link.close()


def fill(iov: list[Any], data: bytes) -> None:
    for view in iov:
        view[:] = data[: len(view)].ljust(len(view), b"\xdd")
        data = data[len(view) :]


def pattern(length: int, seed: int) -> bytes:
    return bytes((seed + 7 * at) % 251 for at in range(length))


@pytest.fixture(name="receivers")
def fresh_receivers() -> Iterator[Any]:
    made: list[Receiver] = []

    def make(*args: Any, **kwargs: Any) -> Receiver:
        made.append(Receiver(*args, **kwargs))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


# ---- any order of steps ----

sizes = st.one_of(
    st.lists(st.integers(0, 90), min_size=1, max_size=4),
    st.lists(st.sampled_from([12, 66, 72, 74, 200, 1526, 2048]), min_size=1, max_size=2),
)


class Reception(RuleBasedStateMachine):
    """Reserves, commits short and whole, rolls back and flushes, over buffers of odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.receiver: Receiver
        self.mergeable = False
        self.log: Any = None
        self.free: list[int] = []
        self.offered: list[Buffer] = []
        self.reserved: list[Reserved] = []
        self.committed: list[tuple[list[tuple[Buffer, int]], bytes]] = []  # buffers with bytes used, and what they hold
        self.seed = 0

    @initialize(
        mergeable=st.booleans(), start=st.sampled_from([0, 65500, 65535]), log=st.booleans(), csum=st.booleans()
    )
    def begin(self, mergeable: bool, start: int, log: bool, csum: bool) -> None:
        self.mergeable = mergeable
        features = (MRG if mergeable else 0) | (LOG_ALL if log else 0) | (EVENT_IDX if csum else 0)
        self.receiver = Receiver(64, start, features)
        self.free = list(range(len(PLACES)))
        if log:
            self.log = ffi.new("uint8_t[]", RIGHT.end // 4096 // 8 + 1)
            self.receiver.link.vhost.log.table, self.receiver.link.vhost.log.size = self.log, len(self.log)

    def teardown(self) -> None:
        if hasattr(self, "receiver"):
            self.receiver.link.vhost.log.table = ffi.NULL
            self.receiver.close()

    @precondition(lambda self: self.free)
    @rule(parts=sizes)
    def offer(self, parts: list[int]) -> None:
        slot = self.free.pop(0)
        at, placed = PLACES[slot], []
        for size in parts:
            placed.append((at, size))
            at += size + 1
        buffer = Buffer(4 * slot, placed)
        self.receiver.offer(buffer)
        self.offered.append(buffer)

    def _claim(self, header: int, payload: int) -> tuple[list[Buffer], int]:
        """What a reservation takes: buffers until the frame fits, or just the next one; and how many bytes that is."""
        wanted = NET_HEADER + max(FRAME_MIN, header + payload)
        claimed: list[Buffer] = []
        while sum(b.size for b in claimed) < wanted and len(claimed) < len(self.offered):
            claimed.append(self.offered[len(claimed)])
            if not self.mergeable:
                break
        return claimed, sum(b.size for b in claimed)

    def _header_pieces(self, claimed: list[Buffer], header: int) -> int:
        """In how many places the header's bytes lie."""
        pieces, at = 0, 0
        for addr, size in (part for buffer in claimed for part in buffer.parts):
            for _, length in self.receiver.link.host(addr, size):
                pieces += max(at, NET_HEADER) < min(at + length, NET_HEADER + header)
                at += length
        return pieces

    @rule(header=st.integers(14, 74), payload=st.one_of(st.just(0), st.integers(0, 200), st.integers(0, 3000)))
    def reserve(self, header: int, payload: int) -> None:
        claimed, got = self._claim(header, payload)
        least = NET_HEADER + max(FRAME_MIN, header + (1 if payload else 0))
        err, room, header_iov, payload_iov = self.receiver.reserve(header, payload)
        if got < least:
            assert err == -errno.EAGAIN, "full"
            return
        if self._header_pieces(claimed, header) > lib.LINK_HEADER_PIECES:
            assert err in (-errno.EAGAIN, -errno.ENOBUFS), "a header in crumbs is not worth the trouble"
            return
        assert (err, room) == (0, min(payload, got - NET_HEADER - header))
        self.reserved.append(Reserved(claimed, header, room, header_iov, payload_iov))
        del self.offered[: len(claimed)]

    @precondition(lambda self: self.reserved)
    @rule(
        less=st.one_of(st.just(0), st.integers(0, 3000)), offload=st.tuples(st.booleans(), *[st.integers(0, 255)] * 5)
    )
    def commit(self, less: int, offload: tuple[int, ...]) -> None:
        frame = self.reserved.pop(0)
        length = frame.header + max(0, frame.payload - less)
        self.seed += 1
        data = pattern(length, self.seed)  # of a shorter frame, less than the room: a read that found less
        fill(frame.header_iov, data)
        fill(frame.payload_iov, data[frame.header :])
        if self.log is not None:
            ffi.buffer(self.log)[:] = bytes(len(self.log))
        self.receiver.commit(length, offload)
        self._expect(frame, data, offload)

    def _expect(self, frame: Reserved, data: bytes, offload: tuple[int, ...]) -> None:
        content = data.ljust(FRAME_MIN, b"\0")
        left, used = NET_HEADER + len(content), list[tuple[Buffer, int]]()
        rest = list(frame.buffers)
        while left:
            buffer = rest.pop(0)
            used.append((buffer, min(left, buffer.size)))
            left -= used[-1][1]
        needs_csum, gso_type, header_length, gso_size, csum_start, csum_offset = offload
        numbers = (header_length, gso_size, csum_start, csum_offset, len(used))
        header = struct.pack("<BBHHHHH", 1 if needs_csum else 0, gso_type, *numbers)
        self.committed.append((used, header + content))
        if rest:  # shorter than planned: this and all later reservations give back what they do not need
            later = [buffer for reserved in self.reserved for buffer in reserved.buffers]
            self.offered[:0] = rest + later
            self.reserved.clear()
        if self.log is not None:
            self._expect_logged(used)

    def _expect_logged(self, used: list[tuple[Buffer, int]]) -> None:
        pages = set()
        for buffer, written in used:
            for addr, size in buffer.parts:
                pages |= {byte // 4096 for byte in range(addr, addr + min(size, written))}
                written -= min(size, written)
        marked = {8 * at + bit for at, byte in enumerate(self.log) if byte for bit in range(8) if byte >> bit & 1}
        assert marked == pages, "exactly the pages that were written"

    @rule()
    def rollback(self) -> None:
        self.offered[:0] = [buffer for reserved in self.reserved for buffer in reserved.buffers]
        self.reserved.clear()
        self.receiver.rollback()

    @rule()
    def flush(self) -> None:
        used = self.receiver.flush()
        assert used == [(buffer.head, written) for frame, _ in self.committed for buffer, written in frame]
        for frame, expected in self.committed:
            assert self._read(frame) == expected
            self.free += [buffer.head // 4 for buffer, _ in frame]
        self.committed.clear()

    def _read(self, frame: list[tuple[Buffer, int]]) -> bytes:
        """As a driver puts a frame together: the used bytes of each buffer, one behind the other."""
        data = b""
        for buffer, written in frame:
            whole = b"".join(self.receiver.memory.read(addr, size) for addr, size in buffer.parts)
            assert set(whole[written:]) <= {0xEE, 0xDD}, "nothing of ours behind the frame"
            data += whole[:written]
        return data

    @rule()
    def wait_for_room(self) -> None:
        """Full or not, it may be asked; then the driver kicks for the next buffer."""
        if self.reserved:
            return
        link = self.receiver.link
        while not link.operations.wait_room(link.link):
            pass
        since = self.receiver.driver.offered
        if self.free:
            self.offer([100])
            assert self.receiver.driver.must_kick(since, bool(link.ring(RECEIVEQ).event_idx))

    @invariant()
    def the_ring_is_well(self) -> None:
        if hasattr(self, "receiver"):
            assert self.receiver.link.fault(RECEIVEQ) == "none"
            assert not self.reserved or self.receiver.pieces.count <= lib.LINK_PIECES
            if not self.reserved:
                self.receiver.pieces.count = 0


ReceptionTest = Reception.TestCase
ReceptionTest.settings = settings(max_examples=4 * EXAMPLES, stateful_step_count=40)


# ---- by name ----


def send(receiver: Receiver, header: bytes, payload: bytes = b"") -> None:
    err, room, header_iov, payload_iov = receiver.reserve(len(header), len(payload))
    assert (err, room) == (0, len(payload))
    fill(header_iov, header)
    fill(payload_iov, payload)
    receiver.commit(len(header) + len(payload))
    receiver.pieces.count = 0


@pytest.mark.parametrize(("count", "size"), [(17, 4096), (33, 2048), (65562 // 100 + 1, 100)])
def test_the_largest_frame_is_merged_from_as_many_buffers_as_it_takes(receivers: Any, count: int, size: int) -> None:
    """num_buffers tells how many; the last is used in part."""
    receiver = receivers(1024)
    for at in range(count):
        receiver.offer(Buffer(at, [(DATA + (size + 4) * at, size)]))
    data = pattern(lib.FRAME_BYTES_MAX, 3)
    send(receiver, data[:74], data[74:])
    used = receiver.flush()
    total = NET_HEADER + len(data)
    assert used == [(at, min(size, total - size * at)) for at in range(-(-total // size))]
    got = b"".join(receiver.memory.read(DATA + (size + 4) * head, written) for head, written in used)
    assert got[NET_HEADER:] == data and int.from_bytes(got[10:12], "little") == len(used)


def test_without_merging_a_frame_takes_one_buffer_and_not_more(receivers: Any) -> None:
    """Big receive buffers of 65562 bytes: the guest's other way to take super-segments."""
    receiver = receivers(64, features=0)
    receiver.offer(Buffer(0, [(DATA, 65562)]))
    receiver.offer(Buffer(1, [(DATA + 0x11000, 1526)]))
    data = pattern(lib.FRAME_BYTES_MAX, 5)
    send(receiver, data[:54], data[54:])
    assert receiver.reserve(54, 5000)[:2] == (0, 1526 - 12 - 54)
    receiver.commit(54)
    assert receiver.flush() == [(0, 65562), (1, 72)]
    assert receiver.memory.read(DATA, 65562) == bytes(10) + b"\x01\x00" + data


@pytest.mark.parametrize("size", [0, 1, 12, 71])
def test_a_buffer_that_holds_no_frame_is_full_and_counted(receivers: Any, size: int) -> None:
    """Without merging it can never be used, and nothing behind it either: the guest's own choice, and no fault."""
    receiver = receivers(8, features=0)
    receiver.offer(Buffer(0, [(DATA, size)]))
    receiver.offer(Buffer(1, [(DATA + 100, 2000)]))
    assert receiver.reserve(54, 0)[0] == -errno.EAGAIN
    assert receiver.link.count("drop_length") == 1 and receiver.link.fault(RECEIVEQ) == "none"
    assert receiver.link.operations.wait_room(receiver.link.link), "nothing is new: we sleep"
    assert receiver.flush() == []


def test_a_short_frame_is_padded_with_zeros_not_with_what_lay_there(receivers: Any) -> None:
    """Sixty bytes at least (IEEE 802.3); what stood in the guest's buffer is not sent back to it as if it were ours."""
    receiver = receivers(8)
    receiver.offer(Buffer(0, [(DATA, 30), (DATA + 31, 31), (DATA + 63, 100)]))
    send(receiver, b"\x01" * 42)
    assert receiver.flush() == [(0, 72)]
    got = receiver.memory.read(DATA, 30) + receiver.memory.read(DATA + 31, 31) + receiver.memory.read(DATA + 63, 100)
    assert got[:72] == bytes(10) + b"\x01\x00" + b"\x01" * 42 + bytes(18) and set(got[72:]) == {0xEE}


def test_no_more_frames_are_reserved_than_there_is_bookkeeping_for(receivers: Any) -> None:
    """Then the caller sends what it has, and comes again."""
    receiver = receivers(128)
    for at in range(100):
        receiver.offer(Buffer(at, [(DATA + 128 * at, 100)]))
    assert [receiver.reserve(54, 0)[0] for _ in range(lib.VHOST_RESERVED_MAX)] == [0] * lib.VHOST_RESERVED_MAX
    assert receiver.reserve(54, 0)[0] == -errno.ENOBUFS
    for _ in range(lib.VHOST_RESERVED_MAX):
        receiver.commit(54)
    assert receiver.reserve(54, 0)[0] == 0
    receiver.rollback()
    assert len(receiver.flush()) == lib.VHOST_RESERVED_MAX


def test_crumbs_are_merged_up_to_the_limit_of_pieces(receivers: Any) -> None:
    """Buffers of one byte behind one that holds the header: 1024 pieces, and the room says how much that is."""
    receiver = receivers(2048)
    receiver.offer(Buffer(0, [(DATA, 100)]))
    for at in range(1, 1400):
        receiver.offer(Buffer(at, [(DATA + 100 + 2 * at, 1)]))
    err, room, header_iov, payload_iov = receiver.reserve(54, 3000)
    assert (err, room) == (0, 100 - 12 - 54 + lib.LINK_PIECES - 1)
    assert receiver.reserve(54, 0)[0] == -errno.ENOBUFS
    data = pattern(54 + room, 9)
    fill(header_iov, data)
    fill(payload_iov, data[54:])
    receiver.commit(len(data))
    used = receiver.flush()
    assert used == [(0, 100)] + [(at, 1) for at in range(1, lib.LINK_PIECES)]
    assert int.from_bytes(receiver.memory.read(DATA + 10, 2), "little") == lib.LINK_PIECES


def test_pieces_that_find_no_room_in_the_callers_list_take_no_buffer(receivers: Any) -> None:
    """The list is what one recvmsg() takes. With frames before it the caller reads those; alone it would never fit."""
    receiver = receivers(64)
    for at in range(3):
        receiver.offer(Buffer(at, [(DATA + 256 * at, 200)]))
    receiver.pieces.count = lib.LINK_PIECES
    assert receiver.reserve(54, 50)[0] == -errno.EAGAIN
    receiver.pieces.count = lib.LINK_PIECES - 1
    assert receiver.reserve(54, 50)[0] == 0
    assert receiver.reserve(54, 50)[0] == -errno.ENOBUFS
    receiver.pieces.count = 0
    receiver.rollback()
    assert receiver.reserve(54, 400)[1] == 400, "all three buffers are there"
    receiver.rollback()


def test_a_disabled_ring_is_as_good_as_disconnected(receivers: Any) -> None:
    """Whoever has a frame then keeps it, or counts it."""
    receiver = receivers(8)
    receiver.offer(Buffer(0, [(DATA, 2000)]))
    receiver.link.ring(RECEIVEQ).enabled = False
    assert receiver.reserve(54, 0)[0] == -errno.ENOTCONN
    assert receiver.link.operations.wait_room(receiver.link.link)


def test_what_is_captured_is_the_frame_without_padding_or_net_header(receivers: Any) -> None:
    """As it was sent, in the order of the commits."""
    receiver = receivers(64)
    reader = receiver.link.capture()
    for at in range(3):
        receiver.offer(Buffer(2 * at, [(DATA + 512 * at, 40), (DATA + 512 * at + 50, 300)]))
    frames = [pattern(42, 1), pattern(54 + 200, 2)]
    send(receiver, frames[0])
    send(receiver, frames[1][:54], frames[1][54:])
    assert [(frame.data, frame.to_guest) for frame in reader.read()] == [(data, True) for data in frames]


@pytest.mark.parametrize("where", ["data", "used ring"])
def test_a_page_is_marked_only_after_it_was_written(receivers: Any, where: str) -> None:
    """A migration copies a page when it sees the mark: what was written later would be lost. The log here cannot be
    written, so that a child dies at its first mark, and all must be in the guest's memory by then."""
    receiver = receivers(8, features=MRG | LOG_ALL)
    receiver.offer(Buffer(0, [(DATA, 2000)]))
    log = mmap.mmap(-1, 4096, prot=mmap.PROT_READ)
    table = ffi.from_buffer("uint8_t[]", log)
    receiver.link.vhost.log.table, receiver.link.vhost.log.size = table, 4096
    if where == "used ring":
        assert receiver.link.start(receiver.driver.setup(RECEIVEQ, lib.LG_VRING_LOG)) == 0
    _, _, header_iov, payload_iov = receiver.reserve(54, 100)
    fill(header_iov, pattern(54, 1))
    fill(payload_iov, pattern(154, 1)[54:])
    child = os.fork()
    if not child:
        faulthandler.disable()
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        receiver.commit(154)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV, "it was marked"
    if where == "data":
        assert receiver.memory.read(DATA, 12 + 154) == bytes(10) + b"\x01\x00" + pattern(154, 1)
    else:
        assert receiver.memory.read(receiver.driver.used + 4, 8) == struct.pack("<II", 0, 166)
    receiver.link.vhost.log.table = ffi.NULL


def test_the_log_eventfd_is_signalled_once_a_flush_that_wrote(receivers: Any) -> None:
    """And not by one that did not."""
    receiver = receivers(8, features=MRG | LOG_ALL)
    receiver.offer(Buffer(0, [(DATA, 2000)]))
    event, table = os.eventfd(0, os.EFD_NONBLOCK), ffi.new("uint8_t[]", 64)
    log = receiver.link.vhost.log
    log.table, log.size, log.event_fd = table, 64, os.dup(event)
    receiver.flush()
    send(receiver, bytes(54))
    receiver.flush()
    receiver.flush()
    assert os.eventfd_read(event) == 1
    log.table = ffi.NULL
    os.close(event)
