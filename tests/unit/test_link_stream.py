# SPDX-License-Identifier: Apache-2.0
"""core/datapath/link_stream.c: frames behind their lengths, in whatever pieces the socket has them, both ways."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterator

import pytest
from core_pieces import EXAMPLES, ffi, lib
from engine_end import SocketEnd
from hypothesis import given, settings
from hypothesis import strategies as st

SOURCE = 77
LONGEST = b"l" * (14 + 65535)


def framed(frame: bytes) -> bytes:
    return struct.pack("!I", len(frame)) + frame


class Stream(SocketEnd):
    """The link, and the monitor at the other end of its socket."""

    def __init__(self) -> None:
        super().__init__("stream", SOURCE, socket.socket())
        self.connect()

    def connect(self, framing: int = 0) -> None:
        self.monitor.close()
        self.detach()
        self.monitor, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.monitor.setblocking(False)
        assert lib.link_stream_attach(self.whole, ours.detach(), framing) == 0

    def read(self, limit: int = 1 << 24) -> bytes:
        """What the monitor finds."""
        data = b""
        while len(data) < limit:
            try:
                piece = self.monitor.recv(min(1 << 16, limit - len(data)))
            except BlockingIOError:
                break
            if not piece:
                break
            data += piece
        return data

    @property
    def ended(self) -> tuple[bool, int, int]:
        return bool(self.socket.ended), int(self.socket.error), int(self.whole.length)


@pytest.fixture(name="link")
def fresh_stream() -> Iterator[Stream]:
    stream = Stream()
    yield stream
    stream.close()


FRAMES = st.lists(st.binary(min_size=14, max_size=3000), min_size=1, max_size=80)


# ---- from the guest ----


@settings(max_examples=EXAMPLES)
@given(FRAMES, st.lists(st.integers(1, 4000), min_size=1))
def test_frames_arrive_whole_however_the_stream_is_cut(frames: list[bytes], cuts: list[int]) -> None:
    link = Stream()
    wire, got, at, turn = b"".join(map(framed, frames)), [], 0, 0
    while at < len(wire):
        part = wire[at : at + cuts[turn % len(cuts)]]
        at += link.monitor.send(part)
        got += link.everything()
        turn += 1
    assert got == frames and not link.socket.ended
    link.close()


def test_many_frames_come_in_batches(link: Stream) -> None:
    """More than one batch holds, in one read of the socket."""
    frames = [bytes([number % 256]) * 100 for number in range(lib.LINK_BATCH * 2 + 10)]
    link.monitor.sendall(b"".join(map(framed, frames)))
    link.events()
    assert [len(link.batch()) for _ in range(3)] == [lib.LINK_BATCH, lib.LINK_BATCH, 10]
    assert not link.more[0]


@pytest.mark.parametrize("size", [14, 60, 1514, 65535])
def test_the_shortest_and_the_largest_frame_pass(link: Stream, size: int) -> None:
    link.monitor.sendall(framed(b"x" * size))
    assert link.everything() == [b"x" * size]


@pytest.mark.parametrize("length", [0, 13, 65536, 1 << 31, (1 << 32) - 1])
def test_a_length_that_no_frame_has_ends_the_stream(link: Stream, length: int) -> None:
    """What came before it counts."""
    link.monitor.sendall(framed(b"a" * 20) + struct.pack("!I", length) + b"b" * 100)
    assert link.everything() == [b"a" * 20]
    assert link.ended == (True, errno.EPROTO, length)
    assert link.batch() == [] and link.reserve(60, 0)[0] == -errno.ENOTCONN


@pytest.mark.parametrize("length", [0, 1, 13])
def test_a_link_that_passes_over_short_frames_goes_on_behind_them(link: Stream, length: int) -> None:
    """Of a virtual network's: they are counted."""
    link.connect(lib.LG_STREAM_SKIP)
    link.monitor.sendall(framed(b"a" * 20) + framed(b"s" * length) * 3 + framed(b"b" * 30))
    assert link.everything() == [b"a" * 20, b"b" * 30]
    assert not link.socket.ended and link.count("drop_short") == 3


def test_a_short_frame_is_passed_over_only_when_all_of_it_is_there(link: Stream) -> None:
    link.connect(lib.LG_STREAM_SKIP)
    wire = framed(b"s" * 13) + framed(b"b" * 30)
    for byte in wire[:-1]:
        link.monitor.sendall(bytes((byte,)))
        assert link.everything() == []
    link.monitor.sendall(wire[-1:])
    assert link.everything() == [b"b" * 30]


def test_such_a_link_takes_the_longest_packet_of_ip_and_passes_over_what_is_longer_than_any_frame(link: Stream) -> None:
    """65535 bytes behind an Ethernet header once ended a machine: two bytes of a length do not hold them, four do."""
    link.connect(lib.LG_STREAM_SKIP)
    wire, got, at = framed(LONGEST) + framed(b"t" * (1 << 17)) + framed(b"b" * 30), [], 0
    while at < len(wire):
        at += link.monitor.send(wire[at : at + (1 << 16)])
        got += link.everything()
    assert got == [LONGEST, b"b" * 30]
    assert not link.socket.ended and link.count("drop_length") == 1


@pytest.mark.parametrize("length", [131073, (1 << 32) - 1])
def test_a_length_that_is_too_large_ends_such_a_stream_all_the_same(link: Stream, length: int) -> None:
    link.connect(lib.LG_STREAM_SKIP)
    link.monitor.sendall(struct.pack("!I", length))
    assert link.everything() == [] and link.ended == (True, errno.EPROTO, length)


@settings(max_examples=EXAMPLES)
@given(FRAMES, st.lists(st.integers(1, 4000), min_size=1))
def test_lengths_of_two_bytes_have_the_lower_first_both_ways(frames: list[bytes], cuts: list[int]) -> None:
    link = Stream()
    link.connect(lib.LG_STREAM_LENGTH_16)
    wire, got, at, turn = b"".join(struct.pack("<H", len(frame)) + frame for frame in frames), [], 0, 0
    while at < len(wire):
        at += link.monitor.send(wire[at : at + cuts[turn % len(cuts)]])
        got += link.everything()
        turn += 1
    assert got == frames
    for frame in frames:
        assert link.queue(frame) == 0
    link.flush()
    padded = [frame.ljust(60, b"\0") for frame in frames]
    assert link.read() == b"".join(struct.pack("<H", len(frame)) + frame for frame in padded)
    link.close()


def test_a_monitor_that_leaves_ends_the_stream_after_its_last_frame(link: Stream) -> None:
    """A part of a frame dies with it."""
    link.monitor.sendall(framed(b"a" * 20) + framed(b"b" * 30)[:17])
    link.monitor.close()
    assert link.everything() == [b"a" * 20]
    assert link.ended[:2] == (True, 0)


@pytest.mark.parametrize("frames", [1, 5, lib.LINK_BATCH, lib.LINK_BATCH * 20])
def test_an_end_that_comes_with_the_last_frames_is_not_missed(link: Stream, frames: int) -> None:
    """One edge for both: a read that came short was taken for the bottom, and nobody ever looked again."""
    link.monitor.sendall(framed(b"a" * 20) * frames)
    link.monitor.close()
    assert len(link.everything()) == frames
    assert link.ended[:2] == (True, 0) and link.events() == 0


def test_an_edge_that_comes_while_frames_are_still_in_the_buffer_is_not_lost(link: Stream) -> None:
    """Between two batches of one read."""
    link.monitor.sendall(framed(b"a" * 20) * (lib.LINK_BATCH + 1))
    link.events()
    assert len(link.batch()) == lib.LINK_BATCH
    link.monitor.sendall(framed(b"b" * 20))
    assert link.events()
    assert link.batch() == [b"a" * 20] and link.more[0]
    assert link.batch() == [b"b" * 20]


def test_the_next_client_starts_with_an_empty_stream(link: Stream) -> None:
    """It is not told of half a frame of the one before, nor sent the rest of one."""
    link.monitor.sendall(framed(b"a" * 200)[:100])
    link.everything()
    while link.queue(b"z" * 60000) == 0:
        link.flush()
    link.read(70_000)  # the stream stands in the middle of a frame
    link.detach()
    link.connect()
    link.monitor.sendall(framed(b"b" * 50))
    assert link.everything() == [b"b" * 50]
    assert link.queue(b"c" * 80) == 0
    link.flush()
    assert link.read() == framed(b"c" * 80)


def test_one_connection_at_a_time(link: Stream) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    assert lib.link_stream_attach(link.whole, ours.fileno(), 0) == -errno.EBUSY
    ours.close()
    theirs.close()


# ---- to the guest ----


@settings(max_examples=EXAMPLES)
@given(FRAMES, st.lists(st.integers(1, 200_000), min_size=1))
def test_frames_leave_whole_however_slowly_they_are_read(frames: list[bytes], reads: list[int]) -> None:
    """The socket takes what it can, the rest waits for EPOLLOUT; nothing is lost or doubled."""
    link = Stream()
    wanted = [frame * 20 if len(frame) * 20 < 65000 else frame for frame in frames] * 8
    wire, waiting, turn = b"", list(wanted), 0
    expected = b"".join(framed(frame.ljust(60, b"\0")) for frame in wanted)
    while len(wire) < len(expected):
        while waiting and link.queue(waiting[0]) == 0:
            waiting.pop(0)
        link.flush()
        wire += link.read(reads[turn % len(reads)])
        link.events()
        turn += 1
    assert wire == expected
    link.close()


def test_short_frames_are_padded(link: Stream) -> None:
    """IEEE 802.3: with zeros, up to 60 bytes."""
    assert link.queue(b"x" * 42) == 0
    link.flush()
    assert link.read() == framed(b"x" * 42 + bytes(18))


def test_a_frame_shorter_than_planned_gives_the_later_room_back(link: Stream) -> None:
    """Only the last frame of a read is."""
    for _ in range(3):
        assert link.reserve(54, 1000)[0] == 0
    link.operations.commit(link.link, 54 + 1000, ffi.new("struct offload *"))
    link.operations.commit(link.link, 54 + 10, ffi.new("struct offload *"))
    link.operations.rollback(link.link)
    link.flush()
    assert len(link.read()) == 4 + 1054 + 4 + 64


def test_a_monitor_that_does_not_read_is_full_and_costs_no_wakeup(link: Stream) -> None:
    """Full is a state: reserve() says so, nobody is woken until the monitor reads, and then once."""
    while link.queue(b"x" * 60000) == 0:
        link.flush()
    assert link.queue(b"x" * 60000) == -errno.EAGAIN
    assert link.operations.wait_room(link.link)
    link.events()
    assert link.events() == 0
    link.read()
    assert link.events() & select.EPOLLOUT
    assert link.queue(b"x" * 60000) == 0
    while link.read():
        link.events()
    link.flush()
    link.read()
    assert not link.events() & select.EPOLLOUT, "whoever waits for nothing is not told of each read"


def test_room_that_came_at_once_is_not_waited_for(link: Stream) -> None:
    """The buffer was full of frames that the socket takes as soon as they are offered."""
    while link.queue(b"x" * 1500) == 0:
        pass
    while True:
        waits = link.operations.wait_room(link.link)
        if not waits:
            break
        link.read()
        link.events()
    assert link.queue(b"x" * 1500) == 0


def test_a_monitor_that_has_gone_ends_the_stream_at_the_next_frame(link: Stream) -> None:
    link.monitor.close()
    assert link.queue(b"x" * 100) == 0
    link.flush()
    assert link.ended[:2] == (True, errno.EPIPE)
