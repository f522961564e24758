# SPDX-License-Identifier: Apache-2.0
"""core/datapath/link_dgram.c: one frame a message, over sockets of datagrams and of packets, both ways."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator

import pytest
from core_pieces import EXAMPLES, lib
from engine_end import SocketEnd
from hypothesis import given, settings
from hypothesis import strategies as st

SOURCE = 78
KINDS = {"datagrams": socket.SOCK_DGRAM, "packets": socket.SOCK_SEQPACKET}
FRAMES = st.lists(st.binary(min_size=14, max_size=3000), min_size=1, max_size=80)


class Messages(SocketEnd):
    """The link, and the monitor at the other end of its socket."""

    def __init__(self, kind: int) -> None:
        monitor, ours = socket.socketpair(socket.AF_UNIX, kind)
        monitor.setblocking(False)
        super().__init__("dgram", SOURCE, monitor)
        assert lib.link_dgram_attach(self.whole, ours.detach()) == 0

    def read(self, most: int = 1 << 20) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < most:
            try:
                found.append(self.monitor.recv(1 << 17))
            except BlockingIOError:
                break
        return found


@pytest.fixture(name="link", params=KINDS)
def fresh_link(request: pytest.FixtureRequest) -> Iterator[Messages]:
    link = Messages(KINDS[request.param])
    yield link
    link.close()


# ---- from the guest ----


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=EXAMPLES)
@given(FRAMES)
def test_each_message_is_a_frame(kind: str, frames: list[bytes]) -> None:
    link, got = Messages(KINDS[kind]), []
    for frame in frames:
        try:
            link.monitor.send(frame)
        except BlockingIOError:  # the kernel keeps ten of them or so
            got += link.everything()
            link.monitor.send(frame)
    got += link.everything()
    assert got == frames and not link.socket.ended
    link.close()


@pytest.mark.parametrize("size", [14, 60, 1514, 65550])
def test_the_shortest_and_the_largest_frame_pass_as_messages(link: Messages, size: int) -> None:
    link.monitor.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    link.monitor.send(b"x" * size)
    assert link.everything() == [b"x" * size]


@pytest.mark.parametrize(
    "size, counter", [(1, "drop_short"), (13, "drop_short"), (65551, "drop_length"), (90000, "drop_length")]
)
def test_what_is_no_frame_is_dropped_and_hurts_no_other(link: Messages, size: int, counter: str) -> None:
    link.monitor.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for message in (b"a" * 20, b"x" * size, b"b" * 30):
        link.monitor.send(message)
    assert link.everything() == [b"a" * 20, b"b" * 30]
    assert link.count(counter) == 1 and not link.socket.ended


def test_an_empty_datagram_is_no_end() -> None:
    link = Messages(socket.SOCK_DGRAM)
    link.monitor.send(b"")
    link.monitor.send(b"b" * 30)
    assert link.everything() == [b"b" * 30] and not link.socket.ended
    link.close()


def test_packets_have_an_end_behind_the_last_frame() -> None:
    link = Messages(socket.SOCK_SEQPACKET)
    link.monitor.send(b"a" * 20)
    link.monitor.close()
    assert link.everything() == [b"a" * 20]
    while not link.socket.ended and link.events():
        link.batch()
    assert (bool(link.socket.ended), int(link.socket.error)) == (True, 0)
    link.close()


def test_one_connection_of_messages_at_a_time(link: Messages) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    assert lib.link_dgram_attach(link.whole, ours.fileno()) == -errno.EBUSY
    ours.close()
    theirs.close()


def test_a_stream_is_no_link_of_messages(link: Messages) -> None:
    link.detach()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    assert lib.link_dgram_attach(link.whole, ours.fileno()) == -errno.EPROTOTYPE
    ours.close()
    theirs.close()


# ---- to the guest ----


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=EXAMPLES)
@given(FRAMES, st.lists(st.integers(1, 8), min_size=1))
def test_each_frame_is_a_message_however_slowly_they_are_read(kind: str, frames: list[bytes], reads: list[int]) -> None:
    """The socket takes what it can, the rest waits for EPOLLOUT; nothing is lost or doubled."""
    link = Messages(KINDS[kind])
    waiting, turn = list(frames) * 8, 0
    got: list[bytes] = []
    expected = [frame.ljust(60, b"\0") for frame in waiting]
    while len(got) < len(expected):
        while waiting and link.queue(waiting[0]) == 0:
            waiting.pop(0)
        link.flush()
        got += link.read(reads[turn % len(reads)])
        link.events()
        turn += 1
        assert turn < 20 * len(expected) + 100
    assert got == expected
    link.close()


def test_a_monitor_that_does_not_read_its_messages_costs_no_wakeup(link: Messages) -> None:
    """Full is a state: it is woken when the monitor has read, most of it as unix sockets have it, and not before."""
    while link.queue(b"x" * 60000) == 0:
        link.flush()
    link.events()
    assert link.events() == 0 and link.operations.wait_room(link.link)
    assert link.read()
    assert link.events() & select.EPOLLOUT
    assert link.queue(b"x" * 60000) == 0


def test_a_peer_of_datagrams_that_has_gone_is_noticed_by_the_next_frame() -> None:
    """There is no end of a connection that could be read."""
    link = Messages(socket.SOCK_DGRAM)
    link.monitor.close()
    assert link.queue(b"x" * 60) == 0
    link.flush()
    assert link.socket.ended and link.socket.error in (errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET)
    link.close()
