# SPDX-License-Identifier: Apache-2.0
"""Connections that a guest does not take, because it is silent, says no, or is not there: how long its peers wait, what
they meet then, and what is said of it.

Adversary: whoever reaches a port of the host, before there is a guest and after; and the guest."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest
from conversation import Conversation
from fake_core import ffi, lib
from segments import ACK, RST, SYN, Ends, Options, Segment, address, ip_packet, parse_segment
from world import START_MS, World, mapped16

Talk = Callable[..., Conversation]

UDP = 17
VIRTUAL = 32768
GUEST, GATEWAY, PEER = address("192.168.127.2"), address("192.168.127.1"), address("198.51.100.7")
SSH, PEER_PORT = 22, 50000
DIAL_SECONDS, DIAL_SECONDS_REAL = 10, 123


class Peer:
    """By its socket on our side."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def closed(self) -> bool:
        return bool(lib.fake_socket_at(self.fd).closed)

    @property
    def aborted(self) -> bool:
        return bool(lib.fake_socket_at(self.fd).aborted)


class Port:
    """One of the host's that leads to the guest's sshd."""

    def __init__(self, world: World, slot: int = 0) -> None:
        self.world = world
        self.listener = lib.fake_listen()
        assert lib.script_listen(slot, self.listener, 6, SSH, mapped16(GUEST)) == 0

    def peer_connects(self, port: int = PEER_PORT) -> Peer:
        fd = int(lib.fake_peer_connect(self.listener, mapped16(PEER), port))
        assert fd >= 0
        self.world.settle()
        return Peer(fd)


@pytest.fixture(name="net")
def virtual_network(world: World) -> World:
    view = world.view
    view.flags |= VIRTUAL
    ffi.memmove(view.guest4, mapped16(GUEST), 16)
    ffi.memmove(view.gateway4, mapped16(GATEWAY), 16)
    ffi.memmove(view.subnet4, mapped16(address("192.168.127.0")), 16)
    view.subnet4_bits = 24
    return world


def sent(world: World) -> list[Segment]:
    segments = [parse_segment(packet) for packet in world.inbox]
    world.inbox.clear()
    return segments


def guest_says(world: World, syn: Segment, flags: int) -> None:
    ends = Ends(syn.packet.destination, syn.destination_port, syn.packet.source, syn.source_port)
    world.send(ends.tcp_head(flags, 7000, syn.seq + 1, 65535, Options(mss=1460) if flags & SYN else None))
    world.settle()


def unanswered(world: World) -> list[tuple[int, int]]:
    """Whose connections were told of, and why."""
    events = [lib.script_event(number) for number in range(lib.script_events())]
    told = [event for event in events if event.kind == lib.LG_EVENT_FLOW_UNANSWERED]
    for event in told:
        assert bytes(event.guest_addr) == mapped16(GUEST) and event.guest_port == SSH
        assert bytes(event.remote_addr) == mapped16(PEER)
    return [(int(event.remote_port), int(event.error)) for event in told]


def test_a_guest_of_a_virtual_network_has_ten_seconds_to_answer(net: World) -> None:
    """As with gvproxy; asked at 0, 1, 3 and 7 s, and told when it is over."""
    peer = Port(net).peer_connects()
    net.advance(DIAL_SECONDS - 0.001)
    assert not peer.closed
    net.advance(0.001)
    segments = sent(net)
    assert [one.time_ms - START_MS for one in segments[:-1]] == [0, 1000, 3000, 7000]
    assert [one.flags for one in segments] == [SYN] * 4 + [RST]
    assert peer.closed and peer.aborted and net.close_reasons() == ["timed_out"]
    assert not net.flows()


@pytest.mark.parametrize("virtual", [True, False])
def test_a_peer_does_not_wait_for_ever_for_a_guest_that_is_not_there(net: World, virtual: bool) -> None:
    """Without a link no SYN goes, and no timer ran for it: such peers stayed, and those that had gone, too."""
    if not virtual:
        net.view.flags &= ~VIRTUAL
    seconds = DIAL_SECONDS if virtual else DIAL_SECONDS_REAL
    net.set_link(connected=False)
    port = Port(net)
    waiting, gone = port.peer_connects(), port.peer_connects(PEER_PORT + 1)
    lib.fake_peer_fin(gone.fd)
    net.settle()
    net.advance(seconds - 0.001)
    assert not waiting.closed and not gone.closed
    net.advance(0.001)
    assert waiting.closed and waiting.aborted and gone.closed
    assert not net.flows(), "nothing of them waits for a guest that has heard of nothing"
    net.set_link(connected=True)
    lib.script_attach()
    net.settle()
    assert not sent(net)


def test_a_peer_that_gives_up_before_there_is_a_guest_leaves_nothing(net: World) -> None:
    """Its RST is for a guest that never heard of the connection: none is owed, and no slot waits to send it."""
    net.set_link(connected=False)
    peer = Port(net).peer_connects()
    lib.fake_peer_reset(peer.fd)
    net.settle()
    assert peer.closed and not net.flows()


def test_a_guest_that_comes_in_time_is_asked_at_once(net: World) -> None:
    net.set_link(connected=False)
    peer = Port(net).peer_connects()
    net.advance(5)
    net.set_link(connected=True)
    lib.script_attach()
    net.settle()
    (syn,) = sent(net)
    assert syn.flags == SYN and syn.time_ms == START_MS + 5000
    guest_says(net, syn, SYN | ACK)
    assert [one.flags for one in sent(net)] == [ACK]
    net.advance(DIAL_SECONDS)
    assert not peer.closed and len(net.flows()) == 1


def test_a_guest_that_takes_nothing_more_does_not_keep_its_own_connection_half_open(
    talk: Talk, world: World
) -> None:
    """The peer has accepted, and our SYN-ACK finds no room: it has the time that one has which is not acknowledged."""
    flow = talk()
    flow("""
        +0 < S 0:0(0) <mss 1460>
        +5 link full
        +0 peer accepts
    """)
    world.advance(DIAL_SECONDS_REAL - 0.001)
    assert not world.close_reasons()
    world.advance(0.001)
    assert world.close_reasons() == ["timed_out"]
    flow("""
        +0 peer sees RST
        +0 link gives 5
        +0 > R. 0:0(0) ack 1
        +0 flow gone
    """)


def test_who_said_no_is_told_with_the_peer_that_asked(net: World) -> None:
    """By the peer's own address: the guest was shown the gateway's."""
    Port(net).peer_connects()
    (syn,) = sent(net)
    guest_says(net, syn, RST | ACK)
    assert unanswered(net) == [(PEER_PORT, errno.ECONNREFUSED)]


def test_silence_is_told_as_one_that_was_heard_before_or_as_nobody(net: World) -> None:
    port = Port(net)
    port.peer_connects()
    net.advance(DIAL_SECONDS)
    assert unanswered(net) == [(PEER_PORT, errno.EHOSTUNREACH)]
    net.send(Ends(GUEST, 40000, GATEWAY, 9).tcp_head(RST, 0, 0, 0))  # it has a MAC address from now on
    port.peer_connects()
    net.advance(DIAL_SECONDS)
    assert unanswered(net)[1:] == [(PEER_PORT, errno.ETIMEDOUT)]
    net.inbox.clear()


def test_with_an_address_of_the_hosts_own_nothing_is_told(net: World) -> None:
    """Where there is no gateway that would be asked what became of its clients."""
    net.view.flags &= ~VIRTUAL
    Port(net).peer_connects()
    (syn,) = sent(net)
    guest_says(net, syn, RST | ACK)
    assert unanswered(net) == []


def test_many_refusals_are_told_five_times_a_second(net: World) -> None:
    """Neither a guest nor whoever knocks is to keep control busy."""
    port = Port(net)
    for number in range(20):
        port.peer_connects(PEER_PORT + number)
        (syn,) = sent(net)
        guest_says(net, syn, RST | ACK)
        net.advance(0.05)
    assert [one - PEER_PORT for one, _ in unanswered(net)] == [0, 4, 8, 12, 16]


def test_a_peer_may_come_by_two_ports_from_one_of_its_own(net: World) -> None:
    """Both lead to one port of the guest's, which could not tell them apart: the second comes from another."""
    for slot in range(2):
        Port(net, slot).peer_connects()
    first, second = sent(net)
    assert (first.source_port, second.source_port) == (PEER_PORT, PEER_PORT + 1)
    for syn in (first, second):
        guest_says(net, syn, SYN | ACK)
    assert [one.flags for one in sent(net)] == [ACK, ACK] and len(net.flows()) == 2


def test_two_who_are_shown_as_the_gateway_are_answered_apart(net: World) -> None:
    """Datagrams from one port of two addresses of the loopback. Cause: the answer to the first went to the second."""
    fd = lib.sys_socket(10, 2 | 0o4000 | 0o2000000, 0)
    assert lib.script_listen(0, fd, UDP, SSH, mapped16(GUEST)) == 0
    hosts = [mapped16(address(f"127.0.0.{number}")) for number in (1, 5)]
    for host in hosts:
        assert lib.fake_datagram_arrive_from(fd, host, PEER_PORT, host, host, b"question", 8, 0) == 0
        net.settle()
    shown = [struct.unpack("!H", packet.payload[:2])[0] for packet in net.inbox]
    assert shown == [PEER_PORT, PEER_PORT + 1] and {packet.source for packet in net.inbox} == {GATEWAY}
    net.inbox.clear()
    buffer = ffi.new("uint8_t[]", 16)
    for host, port in zip(hosts, shown, strict=True):
        net.send(ip_packet(GUEST, GATEWAY, UDP, struct.pack("!HHHH", SSH, port, 8 + 6, 0) + b"answer"))
        net.settle()
        assert lib.fake_datagram_sent(fd, buffer, 16) == 6
        assert bytes(ffi.buffer(lib.fake_datagram_sent_to(), 16)) == host
        assert lib.fake_datagram_sent_port() == PEER_PORT


def test_a_port_by_which_somebody_is_shown_stays_the_same_when_the_one_before_is_free_again(net: World) -> None:
    """A conversation that goes on is the same one to the guest."""
    fd = lib.sys_socket(10, 2 | 0o4000 | 0o2000000, 0)
    assert lib.script_listen(0, fd, UDP, SSH, mapped16(GUEST)) == 0
    gone, stays = (mapped16(address(f"127.0.0.{number}")) for number in (1, 5))

    def shown(host: bytes) -> int:
        assert lib.fake_datagram_arrive_from(fd, host, PEER_PORT, host, host, b"hello", 5, 0) == 0
        net.settle()
        (packet,) = net.inbox
        net.inbox.clear()
        return int.from_bytes(packet.payload[:2], "big")

    assert (shown(gone), shown(stays)) == (PEER_PORT, PEER_PORT + 1)
    for _ in range(3):
        net.advance(20)
        assert shown(stays) == PEER_PORT + 1
    assert len(net.flows()) == 1 and shown(gone) == PEER_PORT


def test_a_guest_that_does_not_answer_is_looked_for_again(net: World) -> None:
    """Another machine may have its address by now, and wait to be spoken to."""
    net.send(Ends(GUEST, 40000, GATEWAY, 9).tcp_head(RST, 0, 0, 0))  # it has a MAC address from now on
    net.settle()
    Port(net).peer_connects()
    assert not net.questions
    net.advance(8)
    assert len(net.questions) == 3, "with each SYN but the first"
    net.inbox.clear()
