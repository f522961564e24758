# SPDX-License-Identifier: Apache-2.0
"""What the guest sends to many at once, multicast and broadcast, and the answers of those who heard it."""

from __future__ import annotations

import errno
import struct

import pytest
from fake_core import ffi, lib
from segments import address, ip_packet
from world import GATEWAY, GUEST, OUR_LINK_LOCAL, PEER, World, mapped16

UDP = 17
PORT, GUEST_PORT = 1900, 40000
GROUP = {4: address("239.255.255.250"), 6: address("ff05::c")}
SUBNET, EVERYWHERE = address("198.51.100.255"), address("255.255.255.255")
HERE = {4: address("192.0.2.15"), 6: address("2001:db8::15")}  # the host's own address is the guest's, too
OTHER = {4: address("198.51.100.8"), 6: address("2001:db8:1::8")}


class Question:
    """One socket of the guest's that asks a group, and the host's socket for it."""

    def __init__(self, world: World, family: int, group: bytes | None = None) -> None:
        self.world, self.family, self.group = world, family, group or GROUP[family]

    def asks(self, data: bytes, hops: int = 64, to: bytes | None = None, port: int = PORT) -> None:
        header = struct.pack("!HHHH", GUEST_PORT, port, 8 + len(data), 0)
        self.world.send(ip_packet(GUEST[self.family], to or self.group, UDP, header + data, hops=hops))
        self.world.settle()
        self.fd = int(lib.fake_last_socket())

    def is_answered(self, fd: int, data: bytes, source: bytes, port: int = PORT, to: bytes | None = None) -> None:
        here = mapped16(HERE[self.family])
        there = here if to is None else mapped16(to)
        assert lib.fake_datagram_arrive_from(fd, mapped16(source), port, there, here, data, len(data), 0) == 0
        self.world.settle()

    def gets(self) -> list[tuple[bytes, int, int, bytes]]:
        """Source, both ports, payload."""
        found = []
        for packet in self.world.inbox:
            source, destination, length, _ = struct.unpack("!HHHH", packet.payload[:8])
            assert packet.destination == GUEST[self.family] and length == len(packet.payload)
            found.append((packet.source, source, destination, packet.payload[8:]))
        self.world.inbox.clear()
        return found

    def sent(self, fd: int) -> list[tuple[bytes, int, bytes]]:
        """Whom to, and what."""
        buffer, found = ffi.new("uint8_t[]", 1 << 16), []
        while (length := lib.fake_datagram_sent(fd, buffer, 1 << 16)) >= 0:
            to = bytes(ffi.buffer(lib.fake_datagram_sent_to(), 16))
            found.append((to, int(lib.fake_datagram_sent_port()), bytes(ffi.buffer(buffer, length))))
        return found


@pytest.fixture(name="question")
def fresh_question(world: World, family: int) -> Question:
    return Question(world, family)


def test_whoever_hears_it_may_answer(question: Question) -> None:
    """Each under its own address and port, to the port that asked."""
    question.asks(b"who is there?")
    assert question.sent(question.fd) == [(mapped16(question.group), PORT, b"who is there?")]
    question.is_answered(question.fd, b"I", PEER[question.family])
    question.is_answered(question.fd, b"and I", OTHER[question.family], 50000)
    assert question.gets() == [
        (PEER[question.family], PORT, GUEST_PORT, b"I"),
        (OTHER[question.family], 50000, GUEST_PORT, b"and I"),
    ]
    assert len(question.world.flows()) == 1


def test_the_group_is_asked_again_by_the_same_socket_and_hop_limit(question: Question) -> None:
    question.asks(b"1", hops=2)
    first = question.fd
    question.asks(b"2", hops=2)
    assert question.fd == first and [data for _, _, data in question.sent(first)] == [b"1", b"2"]
    assert lib.fake_socket_at(first).hops == 2


@pytest.mark.parametrize("group", [SUBNET, EVERYWHERE], ids=["of a network", "limited"])
def test_a_broadcast_is_heard_and_answered_likewise(world: World, group: bytes) -> None:
    """Whether an address is one, only the kernel knows."""
    lib.fake_broadcast_address(mapped16(SUBNET))
    question = Question(world, 4, group)
    question.asks(b"who?")
    assert question.sent(question.fd) == [(mapped16(group), PORT, b"who?")]
    question.is_answered(question.fd, b"I", PEER[4])
    assert question.gets() == [(PEER[4], PORT, GUEST_PORT, b"I")]
    assert lib.fake_sockets_open() == 1, "that which was tried first is closed"


def test_nobody_elses_port_is_taken_for_it(question: Question) -> None:
    """A socket that shares its port and is connected to nobody would get what comes to other programs there: it is
    bound while it does not share, and lets only later ones in."""
    question.asks(b"x")
    socket = lib.fake_socket_at(question.fd)
    assert socket.own_port == GUEST_PORT and not socket.bound_shared and socket.reuse_address


def test_what_others_on_the_host_hear_is_not_the_guests(question: Question) -> None:
    """Groups that another program has joined; and broadcasts, of which the guest's own is one."""
    question.asks(b"x")
    assert not lib.fake_socket_at(question.fd).all_groups
    if question.family == 4:
        question.is_answered(question.fd, b"x", HERE[4], GUEST_PORT, to=SUBNET)
        assert not question.gets() and question.world.counter("datagrams_turned_away") == 1


def test_the_host_itself_answers_as_the_gateway(question: Question) -> None:
    question.asks(b"x")
    question.is_answered(question.fd, b"y", HERE[question.family])
    assert question.gets()[0][0] == (GATEWAY[4] if question.family == 4 else OUR_LINK_LOCAL)


def test_one_that_answered_is_asked_by_a_socket_of_its_own(question: Question) -> None:
    """Connected as always, beside the other, and from the same port."""
    question.asks(b"who?")
    group = question.fd
    question.is_answered(group, b"I", PEER[question.family])
    question.gets()
    question.asks(b"and what?", to=PEER[question.family])
    assert question.fd != group and lib.fake_socket_at(question.fd).own_port == GUEST_PORT
    assert bytes(lib.fake_socket_at(question.fd).address) == mapped16(PEER[question.family])


def test_answers_do_not_keep_a_question_alive(question: Question) -> None:
    """Anybody may send them: half a minute after the guest's last word nobody is heard any more."""
    question.asks(b"x")
    for _ in range(3):
        question.world.advance(9)
        question.is_answered(question.fd, b"y", PEER[question.family])
    assert len(question.gets()) == 3
    question.world.advance(4)
    assert not question.world.flows() and lib.fake_sockets_open() == 0


def test_answers_for_which_the_guest_has_no_buffers_are_dropped_and_counted(question: Question) -> None:
    question.asks(b"x")
    lib.script_set_room(0)
    question.is_answered(question.fd, b"y", PEER[question.family])
    assert not question.gets() and question.world.counter("drop_no_room") == 1
    lib.script_give_room(1 << 20)


def test_many_answers_at_once_all_arrive(question: Question) -> None:
    question.asks(b"x")
    for number in range(100):
        here = mapped16(HERE[question.family])
        peer = mapped16(PEER[question.family])
        assert lib.fake_datagram_arrive_from(question.fd, peer, 1000 + number, here, here, b"y", 1, 0) == 0
    question.world.settle()
    assert [source for _, source, _, _ in question.gets()] == [1000 + number for number in range(100)]


def test_a_group_without_a_route_is_told_so(world: World, family: int) -> None:
    world.fail_next("connect", errno.ENETUNREACH)
    Question(world, family).asks(b"x")
    (packet,) = world.inbox
    world.inbox.clear()
    assert packet.payload[:2] == {4: bytes((3, 0)), 6: bytes((1, 0))}[family]
    assert not world.flows() and lib.fake_sockets_open() == 0


def test_a_peer_that_is_forbidden_is_no_broadcast(world: World) -> None:
    """A firewall, or a route that prohibits, says the same as an address that is for all."""
    question = Question(world, 4, PEER[4])
    lib.fake_prohibited_address(mapped16(PEER[4]))
    question.asks(b"x")
    assert question.sent(question.fd) == [] and lib.fake_sockets_open() == 0
    (packet,) = world.inbox
    world.inbox.clear()
    assert packet.payload[:2] == bytes((3, 13)) and not world.flows()
