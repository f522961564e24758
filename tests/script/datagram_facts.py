# SPDX-License-Identifier: Apache-2.0
"""What the data path believes of the kernel's UDP: one table of facts, each a sentence and what shows it.

test_datagram_facts.py runs every fact against the real kernel, in both families, and against the fake one. What follows
them there has no counterpart in the fake kernel, which refuses what the core must not do.

Adversary: nobody. Invariant: as in kernel_facts.py, nothing waits for a time to pass.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from kernel_facts import ERR, ET, IN

ICMP_ORIGIN = {4: 2, 6: 3}
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}  # RFC 792; RFC 4443, 3.1


@dataclass(frozen=True)
class Heard:
    """What one read brought: a length or a negative errno, and what came with it."""

    length: int
    cut: bool = False
    segment: int = 0
    to: str = ""  # IP_PKTINFO: the address in the header, and the one of the host's that answers come from
    local: str = ""
    to6: str = ""  # IPV6_PKTINFO: the address in the header
    peer: str = ""


@dataclass(frozen=True)
class PathError:
    """From the error queue."""

    error: int
    origin: int
    kind: tuple[int, int]
    offender: str
    data: int  # length of what could not be delivered


class Datagrams(ABC):
    """A socket of ours with RECVERR, and a peer that is played. Results are the kernel's, errors negative errnos."""

    family: int
    peer_address: str

    @abstractmethod
    def open(self, connected: bool = True, both_families: bool = False) -> None: ...
    @abstractmethod
    def set(self, option: str) -> None:
        """'joined': UDP_GRO; 'where': IP_PKTINFO, and IPV6_RECVPKTINFO on a socket of IPv6; 'broadcast'; 'quiet': no
        RECVERR."""

    @abstractmethod
    def connect_to_broadcast(self) -> int: ...
    @abstractmethod
    def send(self, length: int, segment: int = 0) -> int: ...
    @abstractmethod
    def hear(self, length: int = 1 << 16) -> Heard: ...
    @abstractmethod
    def hear_error(self) -> PathError | int: ...
    @abstractmethod
    def watch(self, events: int) -> None: ...
    @abstractmethod
    def woken(self) -> int: ...

    # the peer's; these return when what was done has arrived
    @abstractmethod
    def peer_sends(self, length: int, segment: int = 0) -> None: ...
    @abstractmethod
    def peer_broadcasts(self, length: int) -> str:
        """To a broadcast address of IPv4, which is returned."""

    @abstractmethod
    def another_sends(self, length: int) -> None:
        """From another port than the peer's."""

    @abstractmethod
    def peer_gets(self, count: int) -> list[int]:
        """The lengths of so many datagrams, and nothing is left."""

    @abstractmethod
    def peer_leaves(self) -> None:
        """Nobody has its port from now on; after the next send() the error has come."""


Fact = Callable[[Datagrams], None]
FACTS: dict[str, Fact] = {}


def fact(sentence: str) -> Callable[[Fact], Fact]:
    def note(shows: Fact) -> Fact:
        FACTS[sentence] = shows
        return shows

    return note


# ---- reading ----


@fact("a datagram is read whole; without one, EAGAIN")
def _(kernel: Datagrams) -> None:
    kernel.open()
    assert kernel.hear().length == -errno.EAGAIN
    for length in (1, 0, 65507):
        kernel.peer_sends(length)
    assert [kernel.hear().length for _ in range(4)] == [1, 0, 65507, -errno.EAGAIN]


@fact("of a datagram that finds no room the rest is gone, which MSG_TRUNC says")
def _(kernel: Datagrams) -> None:
    kernel.open()
    kernel.peer_sends(100)
    kernel.peer_sends(10)
    assert kernel.hear(60) == Heard(60, cut=True, peer=kernel.peer_address)
    assert kernel.hear(60) == Heard(10, peer=kernel.peer_address)


@fact("under IN|ET each datagram wakes once, read or not")
def _(kernel: Datagrams) -> None:
    kernel.open()
    kernel.watch(IN | ET)
    for _ in range(3):
        kernel.peer_sends(100)
        assert kernel.woken() == IN
        assert kernel.woken() == 0


@fact("a connected socket hears its peer alone")
def _(kernel: Datagrams) -> None:
    kernel.open()
    kernel.another_sends(10)
    kernel.peer_sends(20)
    assert [kernel.hear().length for _ in range(2)] == [20, -errno.EAGAIN]


@fact("a socket that is connected to nobody hears everybody, and cannot send without an address")
def _(kernel: Datagrams) -> None:
    kernel.open(connected=False)
    kernel.another_sends(10)
    kernel.peer_sends(20)
    assert [kernel.hear().length for _ in range(2)] == [10, 20]
    assert kernel.send(10) == -errno.EDESTADDRREQ


# ---- segments ----


@fact("UDP_SEGMENT cuts what is sent into datagrams of one size, of which the last may be shorter")
def _(kernel: Datagrams) -> None:
    kernel.open()
    assert kernel.send(3500, segment=1000) == 3500
    assert kernel.peer_gets(4) == [1000, 1000, 1000, 500]


@fact("64 segments are one message")
def _(kernel: Datagrams) -> None:
    kernel.open()
    assert kernel.send(6400, segment=100) == 6400
    assert kernel.peer_gets(64) == [100] * 64


@fact("what was sent is not more than 65507 bytes in IPv4, cut up or not")
def _(kernel: Datagrams) -> None:
    if kernel.family == 6:
        return  # 65527, of which nobody makes use
    kernel.open()
    assert kernel.send(65508) == -errno.EMSGSIZE
    assert kernel.send(65507) == 65507
    assert kernel.peer_gets(1) == [65507]


@fact("with UDP_GRO segments are read joined, and their size comes with them")
def _(kernel: Datagrams) -> None:
    kernel.open()
    kernel.set("joined")
    kernel.peer_sends(2500, segment=1000)
    heard = kernel.hear()
    assert (heard.length, heard.segment) == (2500, 1000)
    kernel.peer_sends(700)
    heard = kernel.hear()
    assert heard.length == 700 and heard.segment in (0, 700), "one alone needs no size"


@fact("without UDP_GRO segments are read one by one")
def _(kernel: Datagrams) -> None:
    kernel.open()
    kernel.peer_sends(2500, segment=1000)
    heard = [kernel.hear() for _ in range(3)]
    assert [(one.length, one.segment) for one in heard] == [(1000, 0), (1000, 0), (500, 0)]


# ---- errors ----


@fact("a refusal wakes ERR, is met once by the next read, and stays in the error queue")
def _(kernel: Datagrams) -> None:
    kernel.open()
    kernel.watch(IN | ET)
    kernel.peer_leaves()
    assert kernel.send(100) == 100
    assert kernel.woken() & ERR
    assert [kernel.hear().length for _ in range(2)] == [-errno.ECONNREFUSED, -errno.EAGAIN]
    kind = PORT_UNREACHABLE[kernel.family]
    expected = PathError(errno.ECONNREFUSED, ICMP_ORIGIN[kernel.family], kind, kernel.peer_address, 100)
    assert kernel.hear_error() == expected
    assert kernel.hear_error() == -errno.EAGAIN


@fact("a send that meets a refusal sends nothing; the next one does")
def _(kernel: Datagrams) -> None:
    kernel.open()
    kernel.peer_leaves()
    assert kernel.send(100) == 100
    assert kernel.send(200) == -errno.ECONNREFUSED
    assert kernel.send(300) == 300
    assert [error.data for error in (kernel.hear_error(), kernel.hear_error()) if isinstance(error, PathError)] == [
        100,
        300,
    ]


@fact("without RECVERR a refusal wakes ERR and is met once by the next call, and nothing is kept of it")
def _(kernel: Datagrams) -> None:
    kernel.open()
    kernel.set("quiet")
    kernel.watch(IN | ET)
    kernel.peer_leaves()
    assert kernel.send(100) == 100
    assert kernel.woken() & ERR
    assert [kernel.hear().length for _ in range(2)] == [-errno.ECONNREFUSED, -errno.EAGAIN]
    assert kernel.hear_error() == -errno.EAGAIN
    assert kernel.woken() == 0


@fact("the last error that is read from the queue takes the one with it that the next call would have met")
def _(kernel: Datagrams) -> None:
    kernel.open()
    kernel.peer_leaves()
    assert kernel.send(100) == 100
    assert isinstance(kernel.hear_error(), PathError)
    assert kernel.send(100) == 100


@fact("of two errors in the queue, the one that is read leaves the other to be met")
def _(kernel: Datagrams) -> None:
    kernel.open()
    kernel.peer_leaves()
    assert kernel.send(100) == 100
    assert kernel.hear().length == -errno.ECONNREFUSED
    assert kernel.send(200) == 200
    assert kernel.hear().length == -errno.ECONNREFUSED
    assert isinstance(kernel.hear_error(), PathError)
    assert kernel.hear().length == -errno.ECONNREFUSED
    assert isinstance(kernel.hear_error(), PathError)
    assert kernel.hear().length == -errno.EAGAIN


@fact("what had arrived before a refusal is read behind it")
def _(kernel: Datagrams) -> None:
    kernel.open()
    kernel.peer_sends(10)
    kernel.peer_leaves()
    assert kernel.send(100) == 100
    assert [kernel.hear().length for _ in range(2)] == [-errno.ECONNREFUSED, 10]


# ---- where to ----


@fact("PKTINFO tells the address that a datagram was sent to; and of IPv4 the host's own one beside it")
def _(kernel: Datagrams) -> None:
    kernel.open(connected=False)
    kernel.set("where")
    kernel.peer_sends(10)
    heard = kernel.hear()
    told = (heard.to, heard.local) if kernel.family == 4 else (heard.to6,)
    assert set(told) == {kernel.peer_address}  # the peer's address is also ours
    assert heard.peer == kernel.peer_address


@fact("of a broadcast only IPv4's PKTINFO tells the host's own address, also on a socket of both families")
def _(kernel: Datagrams) -> None:
    kernel.open(connected=False, both_families=kernel.family == 6)
    kernel.set("where")
    broadcast = kernel.peer_broadcasts(10)
    heard = kernel.hear()
    assert (heard.length, heard.to, heard.local) == (10, broadcast, "127.0.0.1")
    assert heard.to6 == (f"::ffff:{broadcast}" if kernel.family == 6 else "")


@fact("only with SO_BROADCAST a socket is connected to a broadcast address")
def _(kernel: Datagrams) -> None:
    if kernel.family == 6:
        return  # IPv6 has none
    kernel.open(connected=False)
    assert kernel.connect_to_broadcast() == -errno.EACCES
    kernel.set("broadcast")
    assert kernel.connect_to_broadcast() == 0
