# SPDX-License-Identifier: Apache-2.0
"""core/datapath/pcap_ring.c, the writer, against plugin/pcap.py, the reader."""

from __future__ import annotations

import mmap
import os
import select
import time
from collections import deque
from typing import Any

import pytest
from core_pieces import COUNTERS, EXAMPLES, ffi, iovec_array, lib
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lockgate.plugin import pcap

RECORD = ffi.sizeof("struct lg_pcap_record")
ROOM = lib.LG_PCAP_RING_BYTES
DROPPED = COUNTERS.index("pcap_dropped")


def record_bytes(length: int) -> int:
    return int(-(-(RECORD + length) // 8) * 8)


class Ring:
    """The shared pages with a writer and a reader on them."""

    def __init__(self, start: int = 0) -> None:
        self.fd = os.memfd_create("pcap", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, lib.LG_PCAP_HEAD_BYTES + ROOM)
        self.pages = mmap.mmap(self.fd, 0)
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.counters = ffi.new("uint64_t[]", len(COUNTERS))
        self.writer = ffi.new("struct pcap_ring *")
        assert lib.pcap_ring_map(self.writer, self.fd, self.event_fd, self.counters) == 0
        self.head: Any = self.writer.head
        self.head.written = self.head.read = start
        self.reader = pcap.RingReader(self.pages)

    def put(self, parts: list[bytes], to_guest: bool = False, length: int | None = None) -> None:
        array, kept = iovec_array(parts)
        total = sum(map(len, parts)) if length is None else length
        lib.pcap_ring_put(self.writer, array, len(kept), total, to_guest)

    def signalled(self) -> bool:
        return bool(select.select([self.event_fd], [], [], 0)[0])

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.event_fd)


@pytest.fixture(name="ring")
def fresh_ring() -> Any:
    ring = Ring()
    yield ring
    ring.close()


frames = st.tuples(st.lists(st.binary(max_size=40), max_size=5), st.booleans())
big = st.builds(
    lambda size, byte: ([bytes([byte]) * size], False), st.sampled_from([65535, 65550, 30000]), st.integers(0, 255)
)
starts = st.sampled_from([0, ROOM - 8, ROOM - 16, ROOM - 24, ROOM - 64, ROOM * 3 - 32])


@settings(max_examples=EXAMPLES)
@given(starts, st.lists(st.one_of(frames, st.none()), max_size=20))
@example(ROOM - 8, [([b"abc"], True)])
@example(ROOM - 16, [([b"abc"], True)])
def test_the_reader_gets_each_frame_as_it_was_put_also_around_the_end(
    start: int, steps: list[tuple[list[bytes], bool] | None]
) -> None:
    """Pieces of any length, in both directions; None reads. The end of the data may cut a head or a frame anywhere."""
    ring = Ring(start)
    expected: deque[tuple[bytes, bool]] = deque()
    before = time.time_ns()
    for step in [*steps, None]:
        if step is not None:
            ring.put(*step)
            expected.append((b"".join(step[0]), step[1]))
            continue
        got = ring.reader.read()
        ring.reader.release()
        assert [(frame.data, frame.to_guest) for frame in got] == list(expected)
        assert all(before <= frame.time_ns <= time.time_ns() and frame.port == 0 for frame in got)
        expected.clear()
    assert ring.head.written == ring.head.read and ring.head.dropped == 0
    ring.close()


@settings(max_examples=max(5, EXAMPLES // 10))
@given(starts, st.lists(st.one_of(big, big, big, st.none()), min_size=100, max_size=200))
def test_frames_without_room_are_left_out_and_counted(start: int, steps: list[tuple[list[bytes], bool] | None]) -> None:
    """A full ring drops the newest frames as a whole; what it has stays as it is, and a read makes room again."""
    ring = Ring(start)
    held: deque[bytes] = deque()
    used = dropped = 0
    for step in steps:
        if step is not None:
            data = b"".join(step[0])
            ring.put(*step)
            if used + record_bytes(len(data)) <= ROOM:
                used += record_bytes(len(data))
                held.append(data)
            else:
                dropped += 1
            continue
        for frame in ring.reader.read():
            assert frame.data == held.popleft()
            used -= record_bytes(len(frame.data))
        ring.reader.release()
    assert ring.head.written - ring.head.read == used
    assert ring.head.dropped == ring.reader.dropped == ring.counters[DROPPED] == dropped
    ring.close()


def test_a_ring_can_be_filled_to_its_last_byte(ring: Ring) -> None:
    """Neither a byte of room is lost, nor does a full ring look like an empty one."""
    size = 65536 - RECORD
    for _ in range(ROOM // 65536):
        ring.put([bytes(size)])
    assert ring.head.written - ring.head.read == ROOM and ring.head.dropped == 0
    ring.put([b""])
    assert ring.head.dropped == 1
    assert [len(frame.data) for frame in ring.reader.read()][0] == size


def test_a_frame_is_cut_at_its_length_though_its_pieces_are_longer(ring: Ring) -> None:
    """What lies behind a frame in the guest's buffers belongs to nobody."""
    ring.put([b"abcdef", b"ghi"], length=4)
    ring.put([b"x"])
    assert [frame.data for frame in ring.reader.read()] == [b"abcd", b"x"]


@pytest.mark.parametrize(
    "read", [1, ROOM, 2**63, 2**64 - ROOM - 1], ids=["ahead", "a turn ahead", "half way", "behind"]
)
def test_a_read_word_that_makes_no_sense_counts_as_no_room(ring: Ring, read: int) -> None:
    """It is a word in shared memory: whatever stands there, nothing is written over what may still be read."""
    ring.head.read = read
    ring.put([b"frame"])
    assert ring.head.written == 0 and ring.head.dropped == 1


def test_the_reader_is_told_once_a_batch_and_only_of_frames(ring: Ring) -> None:
    """A flush without a frame before it makes no system call that wakes anybody."""
    lib.pcap_ring_flush(ring.writer)
    assert not ring.signalled()
    ring.put([b"one"])
    ring.put([b"two"])
    assert not ring.signalled()
    lib.pcap_ring_flush(ring.writer)
    assert os.eventfd_read(ring.event_fd) == 1
    lib.pcap_ring_flush(ring.writer)
    assert not ring.signalled()


def test_a_batch_whose_frames_all_found_no_room_tells_nobody(ring: Ring) -> None:
    """The reader has been told of all that is there."""
    ring.head.read = 1
    ring.put([b"frame"])
    lib.pcap_ring_flush(ring.writer)
    assert not ring.signalled()
