# SPDX-License-Identifier: Apache-2.0
"""Packets to a guest that takes no frame beyond its MTU, or whose buffers do not hold one: they come in pieces.

Adversary: nobody. The guest here puts them together as RFC 791, 3.2, and RFC 8200, 4.5, say, and checks what it gets.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

import pytest
from fake_core import lib
from segments import PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_UDP, checksum, ip_packet, pseudo_header
from world import GATEWAY, GUEST, PEER, World

GUEST_PORT, PEER_PORT, MTU, MAX = 40000, 4242, 1500, 65507
SMALL = {"merge": False, "csum": False, "tso4": False, "tso6": False, "buffer_bytes": 14 + MTU}


@dataclass
class Guest:
    """One that has asked a peer something by UDP, and waits."""

    world: World
    family: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)
    end: int | None = None

    def asks(self) -> None:
        question = struct.pack("!HHHH", GUEST_PORT, PEER_PORT, 9, 0) + b"?"
        self.world.send(ip_packet(GUEST[self.family], PEER[self.family], PROTOCOL_UDP, question))
        self.world.settle()

    def is_sent(self, *payloads: bytes) -> None:
        for payload in payloads:
            assert lib.fake_datagram_arrive(lib.fake_last_socket(), payload, len(payload), 0) == 0
        self.world.settle()

    def takes(self) -> int:
        """How many pieces there were; they come in order, and are of one packet."""
        count = len(self.world.inbox)
        for packet in self.world.inbox:
            assert len(packet.frame) <= 14 + self.world.view.mtu and not packet.offload.needs_csum
            if self.family == 4:
                number, flags = struct.unpack("!HH", packet.frame[18:22])
                more, offset, body = flags >> 13 & 1, flags % 8192 * 8, packet.payload
                assert not flags & 0x4000, "fragments that must not be fragmented"
            else:
                assert packet.protocol == 44
                _, flags, number = struct.unpack("!HHI", packet.payload[:8])
                more, offset, body = flags & 1, flags & 0xFFF8, packet.payload[8:]
            assert offset == sum(map(len, self.pieces.values())) and (not more or len(body) % 8 == 0)
            self.pieces[offset] = body
            self.numbers.add(number)
            self.end = None if more else offset + len(body)
        self.world.inbox.clear()
        return count

    def gets(self) -> bytes:
        """What a whole packet carried, with its header."""
        self.takes()
        whole = b"".join(self.pieces.values())
        assert self.end == len(whole) and len(self.numbers) == 1
        self.pieces.clear()
        self.numbers.clear()
        return whole

    def gets_datagram(self) -> bytes:
        whole = self.gets()
        source, destination, length, check = struct.unpack("!HHHH", whole[:8])
        assert (source, destination, length) == (PEER_PORT, GUEST_PORT, len(whole)) and check
        assert checksum(pseudo_header(PEER[self.family], GUEST[self.family], PROTOCOL_UDP, len(whole)) + whole) == 0
        return whole[8:]


@pytest.fixture
def guest(world: World, family: int) -> Guest:
    made = Guest(world, family)
    made.asks()
    return made


@pytest.mark.parametrize("size", [MTU, 8000, MAX])
def test_a_datagram_beyond_the_mtu_of_a_small_guest_comes_in_pieces(guest: Guest, size: int) -> None:
    guest.world.set_link(**SMALL)
    payload = random.Random(size).randbytes(size)
    guest.is_sent(payload)
    assert guest.gets_datagram() == payload


@pytest.mark.world(mtu=68)
def test_the_smallest_mtu_that_there_is(guest: Guest) -> None:
    guest.world.set_link(**{**SMALL, "buffer_bytes": 14 + 68})
    guest.is_sent(bytes(3000))
    assert guest.gets_datagram() == bytes(3000)


def test_what_fits_comes_in_one_frame(guest: Guest) -> None:
    guest.world.set_link(**SMALL)
    payload = bytes(MTU - {4: 28, 6: 48}[guest.family])
    guest.is_sent(payload)
    (packet,) = guest.world.inbox
    assert packet.payload[8:] == payload and guest.world.counter("fragments_to_guest") == 0


def test_pieces_that_find_no_room_wait_for_it(guest: Guest) -> None:
    """And with them the datagrams behind: none is lost, and none is begun anew."""
    guest.world.set_link(**SMALL)
    lib.script_set_room(3)
    first, second = b"a" * 20000, b"b" * 100
    guest.is_sent(first, second)
    assert guest.takes() == 3
    lib.script_give_room(4)
    guest.world.settle()
    assert guest.takes() == 4
    lib.script_give_room(100)
    guest.world.settle()
    last = guest.world.inbox.pop()
    assert guest.gets_datagram() == first and last.payload[8:] == second


def test_a_guest_of_few_buffers_that_merge_gets_pieces_where_they_are_too_few(guest: Guest) -> None:
    """Room for all of it there might never be."""
    guest.world.set_link(**{**SMALL, "merge": True})
    lib.script_set_room(10)
    guest.is_sent(bytes(30000))
    assert guest.takes() == 10
    lib.script_give_room(100)
    guest.world.settle()
    assert guest.gets_datagram() == bytes(30000)


def test_a_guest_whose_buffers_merge_gets_one_frame(guest: Guest) -> None:
    guest.is_sent(bytes(MAX))
    (packet,) = guest.world.inbox
    assert len(packet.payload) == 8 + MAX


def test_what_no_buffer_holds_is_lost_and_the_next_is_not(guest: Guest) -> None:
    """The guest's buffers are smaller than the MTU that it was told."""
    guest.world.set_link(**{**SMALL, "buffer_bytes": 600})
    guest.is_sent(bytes(5000), bytes(1000), b"short")
    (packet,) = guest.world.inbox
    assert packet.payload[8:] == b"short" and guest.world.counter("drop_no_room") == 2


@pytest.mark.parametrize("size", [1000, 8000])
def test_a_large_echo_reply_comes_in_pieces(world: World, family: int, size: int) -> None:
    """Of the gateway's own here; a peer's goes the same way."""
    guest, protocol = Guest(world, family), {4: PROTOCOL_ICMP, 6: PROTOCOL_ICMPV6}[family]
    request = bytes([{4: 8, 6: 128}[family], 0, 0, 0, 0, 7, 0, 1]) + b"x" * size
    world.send(ip_packet(GUEST[family], GATEWAY[family], protocol, request))
    world.set_link(**SMALL)
    world.settle()
    reply = guest.gets() if size > MTU else world.inbox.pop().payload
    pseudo = pseudo_header(GATEWAY[family], GUEST[family], protocol, len(reply)) if family == 6 else b""
    assert checksum(pseudo + reply) == 0 and reply[0] == {4: 0, 6: 129}[family] and reply[8:] == b"x" * size
