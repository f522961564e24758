# SPDX-License-Identifier: Apache-2.0
"""core/datapath/link_tap.c: one frame a read, one frame a write, each with its offloads in front.

A socket that keeps the borders of its records is the device here; tests/contract has real ones."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from core_pieces import ffi, lib
from engine_end import EngineEnd

SOURCE = 78
NOTHING = bytes(10)  # a header without offloads
GSO_UDP_L4, ECN = 5, 0x80


def header(gso_type: int = 0, gso_size: int = 0, flags: int = 0) -> bytes:
    return struct.pack("<BBHHHH", flags, gso_type, 0, gso_size, 0, 0)


class Tap(EngineEnd):
    """The link, and the kernel at the other end."""

    def __init__(self, uso: bool = False) -> None:
        super().__init__("tap", SOURCE)
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self.kernel, ours):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
            end.setblocking(False)
        assert lib.link_tap_attach(self.whole, ours.detach(), uso) == 0

    def events(self) -> int:
        """How many of the device's there were; the link hears of them, as the worker has it."""
        told = self.epoll.poll(0)
        for source, _ in told:
            assert source == SOURCE
            lib.link_tap_event(self.whole)
        return len(told)

    def close(self) -> None:
        lib.link_tap_detach(self.whole)
        self.kernel.close()
        self.epoll.close()


@pytest.fixture(name="tap")
def fresh_tap() -> Iterator[Tap]:
    tap = Tap()
    yield tap
    tap.close()


def test_each_read_is_a_frame_behind_its_header(tap: Tap) -> None:
    frames = [b"a" * 14, b"b" * 60, b"c" * 65535, b"d" * 1500]
    for frame in frames:
        tap.kernel.send(NOTHING + frame)
    assert tap.events() == 1
    assert tap.lent() == [(frame, 0) for frame in frames]
    assert not tap.more[0]
    assert (tap.count("frames_from_guest"), tap.count("bytes_from_guest")) == (4, sum(map(len, frames)))


def test_a_batch_is_no_larger_than_its_buffer(tap: Tap) -> None:
    """The rest has its turn later, without another event."""
    for _ in range(40):
        tap.kernel.send(NOTHING + b"x" * 65535)
    tap.events()
    sizes: list[int] = []
    while not sizes or tap.more[0]:
        sizes.append(len(tap.lent()))
    assert sum(sizes) == 40
    assert max(sizes) == lib.TAP_IN_BYTES // lib.TAP_ROOM


def test_small_frames_lie_close_together(tap: Tap) -> None:
    for _ in range(100):
        tap.kernel.send(NOTHING + b"x" * 60)
    tap.events()
    assert len(tap.lent()) == lib.LINK_BATCH
    assert tap.more[0]
    assert len(tap.lent()) == 100 - lib.LINK_BATCH


def test_nothing_is_read_before_an_event(tap: Tap) -> None:
    assert tap.lent() == []  # what may have been there when it was attached
    tap.kernel.send(NOTHING + b"x" * 60)
    assert tap.lent() == []
    assert tap.events() == 1
    assert len(tap.lent()) == 1


@pytest.mark.parametrize("record", [b"x", NOTHING, NOTHING + b"x" * 65551])
def test_what_is_no_frame_is_dropped_and_counted(tap: Tap, record: bytes) -> None:
    tap.kernel.send(record)
    tap.kernel.send(NOTHING + b"y" * 60)
    tap.events()
    assert tap.lent() == [(b"y" * 60, 0)]
    assert tap.count("drop_short") + tap.count("drop_length") == 1


@pytest.mark.parametrize(
    ("gso_type", "datagram"), [(0, 0), (1, 0), (4, 0), (GSO_UDP_L4, 1400), (GSO_UDP_L4 | ECN, 1400)]
)
def test_several_datagrams_in_a_frame_are_told_by_its_header(tap: Tap, gso_type: int, datagram: int) -> None:
    tap.kernel.send(header(gso_type, 1400) + b"x" * 5000)
    tap.events()
    assert tap.lent() == [(b"x" * 5000, datagram)]


def test_a_frame_is_one_write_with_its_offloads(tap: Tap) -> None:
    offload = ffi.new(
        "struct offload *",
        {"needs_csum": True, "gso_type": 1, "header_length": 66, "gso_size": 1448, "csum_start": 34, "csum_offset": 16},
    )
    assert tap.queue(b"z" * 30000, offload) == 0
    assert tap.kernel.recv(1 << 17) == struct.pack("<BBHHHH", 1, 1, 66, 1448, 34, 16) + b"z" * 30000
    assert tap.queue(b"short" * 4) == 0
    assert tap.kernel.recv(1 << 17) == NOTHING + b"short" * 4, "a tap needs no padding"
    assert tap.count("frames_to_guest") == 2


def test_reservations_are_bounded_and_rolled_back(tap: Tap) -> None:
    pieces, room = ffi.new("struct payload_pieces *"), ffi.new("struct guest_room *")
    made = 0
    while not (err := tap.operations.reserve(tap.link, 66, 65000, pieces, room)):
        made += 1
    assert err == -errno.ENOBUFS and made == lib.FRAME_BATCH_BYTES // (65000 + 66 + 10)
    tap.operations.rollback(tap.link)
    assert tap.queue(b"a" * 100) == 0
    assert tap.kernel.recv(1 << 17) == NOTHING + b"a" * 100
    assert not tap.operations.wait_room(tap.link), "there is always room for the next turn"


def test_a_frame_that_the_device_refuses_is_lost_and_counted(tap: Tap) -> None:
    tap.kernel.close()
    assert tap.queue(b"a" * 100) == 0
    assert (tap.count("frames_to_guest"), tap.count("drop_disconnected")) == (0, 1)


def test_a_device_that_has_gone_ends_the_link() -> None:
    """Of a socket, that is the end; of a device, EBADFD."""
    tap = Tap()
    server, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lib.link_tap_detach(tap.whole)
    assert lib.link_tap_attach(tap.whole, ours.detach(), False) == 0
    server.close()
    tap.events()
    assert tap.lent() == []
    assert (bool(tap.whole.ended), int(tap.whole.error)) == (True, errno.ENODEV)
    assert tap.queue(b"a" * 100) == -errno.ENOTCONN
    assert tap.operations.wait_room(tap.link)
    tap.close()


def test_one_device_at_a_time(tap: Tap) -> None:
    _, other = socket.socketpair()
    assert lib.link_tap_attach(tap.whole, other.fileno(), False) == -errno.EBUSY


@pytest.mark.parametrize("uso", [False, True])
def test_the_kernel_takes_everything_that_is_left_undone(uso: bool) -> None:
    tap = Tap(uso)
    link = tap.whole.link
    assert link.large and link.csum and link.tso4 and link.tso6
    assert (link.uso4, link.uso6) == (uso, uso)
    tap.close()
